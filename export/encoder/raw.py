"""Evidence from the raw input for models that an ensemble serves: texts and pictures through an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers.pipelines import PIPELINE_REGISTRY

from export.checkpoint.loading import of_a_library
from export.encoder import verify
from export.encoder.prepare import Source
from export.encoder.rows import ImageEncoder, TextEncoder
from export.exported import Exported
from export.originals import pipelines, sentences
from export.originals.original import Original
from export.raw.agreement import COMPARE
from export.raw.cases import Limits, cases_of
from export.raw.evidence import RawTolerance
from export.raw.measure import OriginalAnswers, ask_original
from export.raw.served import version_folder
from export.raw.tokens import Sequences
from export.repository import ModelFiles
from serving.in_process import InProcess, Model
from shoal import model_config, tasks
from shoal.manifest import Manifest
from shoal.names import TOKENIZER, part_name
from shoal.progress import Silent

# Two vectors whose cosine is 0.985 are 0.17 of their length apart.
_EXACT = {tasks.EMBEDDING: RawTolerance(2e-3), "": RawTolerance(1e-3)}
_CLOSE = {
    tasks.EMBEDDING: RawTolerance(0.2, share=0.97),
    tasks.RANKING: RawTolerance(0.25, share=0.9),
    "": RawTolerance(1.0, share=0.9, choice=True),
}
_COARSE = {tasks.EMBEDDING: RawTolerance(0.35, share=0.97)}
# A smaller model is another model; see `export.encoder.evidence`.
_SMALLER = {tasks.EMBEDDING: RawTolerance(2.0, share=0.9), "": RawTolerance(1.0, share=0.6, choice=True)}


def tolerance_of(task: str, precision: str, *, smaller: bool = False) -> RawTolerance:
    """What the answers of a version must reach.

    Args:
        smaller: it was pruned.
    """
    if smaller:
        levels: tuple[dict[str, RawTolerance], ...] = (_SMALLER,)
    elif precision.endswith("fp32"):
        levels = (_EXACT,)
    else:
        levels = (_COARSE, _CLOSE) if precision == "int4" else (_CLOSE,)
    return next(level[key] for key in (task, "") for level in levels if key in level)


def reference_of(source: Source, progress: Silent) -> OriginalAnswers:
    """Have the original answer the raw inputs of its task.

    Raises:
        ExportError: its library cannot load it.
    """
    task, opened, encode = source.task.name, source.opened, source.encode
    tokens = None
    if isinstance(encode, TextEncoder):
        tokens = Sequences(
            opened.tokenizer,
            part_name(source.recipe.name, TOKENIZER),
            encode.path,
            str(source.task.layout),
            encode.max_length,
            encode.options,
            opened.prompts,
            opened.default_prompt,
        )
    if task == "question-answering" and task not in PIPELINE_REGISTRY.get_supported_tasks():
        note = "this transformers has no question-answering pipeline to compare answers with"
        return OriginalAnswers("transformers", (), (), COMPARE[task], tokens, (note,))
    with of_a_library(f"the original of {opened.checkpoint.id} cannot be called"):
        original = _original(source)
    return ask_original(
        original,
        cases_of(task, _limits(source)),
        COMPARE[task],
        tokens=tokens,
        progress=progress,
    )


def _original(source: Source) -> Original:
    task, opened = source.task.name, source.opened
    # A user who wants shorter inputs compares with the original on inputs as short.
    longest = source.recipe.max_length and source.encode.max_length
    if task == tasks.EMBEDDING:
        return sentences.Embeddings(opened.library, longest)
    if task == tasks.RANKING:
        return sentences.Scores(opened.library, longest)
    options = {"top_k": source.recipe.top_k} if task == tasks.MASKS else {}
    return pipelines.BY_TASK[task](opened.checkpoint.transformer, longest, **options)


def _limits(source: Source) -> Limits:
    encode = source.encode
    if isinstance(encode, ImageEncoder):
        return Limits(processor=encode.processor)
    return Limits(
        encode.max_length,
        source.recipe.max_text_bytes,
        tuple(source.opened.prompts),
        str(source.opened.tokenizer.mask_token or ""),
    )


def in_process(parts: Sequence[ModelFiles], exported: Exported, precision: str, work: Path) -> InProcess:
    """What would be published, joined in this process.

    Args:
        exported: the graph that one of the parts serves.
        work: a folder for the files of the Python models.
    """
    models = {}
    for part in parts:
        config = part.config(1)
        if config.backend == "python":
            folder = work / f"in-process-{precision}" / part.name / "1"
            models[part.name] = Model(config, folder=version_folder(part.files, folder))
        elif config.platform == "ensemble":
            models[part.name] = Model(config)
        else:
            (path,) = (value for value in part.files.values() if isinstance(value, Path))
            whole = path == exported.path
            network = verify.open_network(exported, precision) if whole else verify.open_session(path)
            models[part.name] = Model(config, network=network)
    return InProcess(models)


def published(manifest: Manifest, repository: Path, network: verify.Model) -> InProcess:
    """A published version, joined in this process from the files in the repository.

    Args:
        network: its weights.
    """
    folders = {Path(name).parent for name in manifest.files}
    places = {folder.parts[0]: repository / folder for folder in folders}
    models = {}
    for name, text in manifest.configs.items():
        config = model_config.parse(text)
        if name == manifest.network:
            models[name] = Model(config, network=network)
        elif config.platform == "ensemble":
            models[name] = Model(config)
        elif config.backend == "onnxruntime":  # what an engine cannot hold
            models[name] = Model(config, network=verify.open_session(places[name] / "model.onnx"))
        else:
            models[name] = Model(config, folder=places[name])
    return InProcess(models)
