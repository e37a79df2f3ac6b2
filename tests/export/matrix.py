"""Which architectures can be exported: tiny random models of each, the same way as any other model.

`CASES` is the one table: what is tried, and what is refused for which reason. `try_case` exports one against
the original; `document` writes `docs/models.md` from what came of all of them (`make test-export`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from export import run
from export.encoder import verify
from export.encoder.recipe import EncoderRecipe
from export.encoder.tasks import TASKS
from export.generation import build as generation
from export.generation import verify as generation_verify
from export.generation.recipe import GenerationRecipe
from export.text2text.recipe import Text2TextRecipe
from shoal.errors import ExportError, NotProven
from tests import tiny

GENERATION, REWRITING = GenerationRecipe.TASK, Text2TextRecipe.TASK
RANKING, READING = "text-ranking", "image-to-text"
TOOLS = ("torch", "transformers", "optimum-onnx", "onnxruntime", "onnxruntime-genai")


@dataclass(frozen=True)
class Case:
    """One row of the matrix.

    Attributes:
        name: of the architecture, as people know it.
        model: transformers' class, or the one that only the checkpoint's own code has.
        task: what it is exported for.
        config: of the tiny model, beside what `tiny` gives.
        refused: a pattern of the reason why it is not published in fp32; "": it is.
        small: whether CI tries it.
        wire: whether it is served and called, one of each family.
    """

    name: str
    model: str
    task: str
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    refused: str = ""
    small: bool = False
    wire: bool = False

    @property
    def id(self) -> str:
        return f"{self.model}-{self.task}"

    @property
    def served_as(self) -> str:
        return re.sub(r"[^a-z0-9]", "-", self.name.lower())


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        evidence: by precision, of those that could be built.
        errors: by precision, why one could not.
    """

    evidence: Mapping[str, Any]
    errors: Mapping[str, str]

    def reason(self, precision: str) -> str:
        """Why a precision is not published, or ""."""
        if precision in self.evidence:
            return "; ".join(self.evidence[precision].failures)
        return self.errors[precision]


_HEADS = {
    "Model": "sentence-similarity",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
}
_DISENTANGLED = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
# Name, prefix of the classes, config, and which head CI tries.
_ENCODERS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("BERT", "Bert", {}, ""),
    ("RoBERTa", "Roberta", {}, "ForSequenceClassification"),
    ("DistilBERT", "DistilBert", {}, ""),
    # Two positions stand before the first token, and the tokenizer's texts have 160.
    ("MPNet", "MPNet", {"max_position_embeddings": 162}, ""),
    ("XLM-RoBERTa", "XLMRoberta", {}, ""),
    ("DeBERTa", "Deberta", {**_DISENTANGLED, "max_relative_positions": -1}, ""),
    (
        "DeBERTa-v2",
        "DebertaV2",
        {**_DISENTANGLED, "position_buckets": 32, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
        "Model",
    ),
    ("ELECTRA", "Electra", {"embedding_size": 16}, ""),
    ("ALBERT", "Albert", {"embedding_size": 16}, "ForMaskedLM"),
    # Every other layer sees 16 tokens only, so that shorter and longer texts take both ways.
    (
        "ModernBERT",
        "ModernBert",
        {"global_attn_every_n_layers": 2, "local_attention": 16},
        "",
    ),
    ("CamemBERT", "Camembert", {}, ""),
    ("data2vec", "Data2VecText", {}, ""),
    # It has no normalization: random weights of the usual size give logits of 480, where the rounding of
    # fp32 moves PyTorch's own answers by 1e-4.
    (
        "MobileBERT",
        "MobileBert",
        {
            "embedding_size": 16,
            "true_hidden_size": 16,
            "intra_bottleneck_size": 16,
            "initializer_range": 0.015,
        },
        "",
    ),
)


def _encoder_cases() -> Iterator[Case]:
    for name, prefix, config, small in _ENCODERS:
        for suffix, task in _HEADS.items():
            if hasattr(transformers, prefix + suffix):
                classes = {"num_labels": 4} if task.endswith("classification") else {}
                wire = (prefix, suffix) == ("Roberta", "ForSequenceClassification")
                yield Case(name, prefix + suffix, task, config | classes, small=suffix == small, wire=wire)


_OF_PICTURES = ("CLIPModel", "ViTModel")
_SMALL_DECODER = {"head_dim": 8, "num_key_value_heads": 2}
_TEXT_TOWER = {**tiny.SIZES, "eos_token_id": 3, "projection_dim": 32}
_OTHER_ENCODERS = (
    Case("ConvBERT", "ConvBertModel", "sentence-similarity", refused="batch invariance"),
    # optimum does not know it: through PyTorch's own exporter.
    Case("ERNIE", "ErnieModel", "sentence-similarity"),
    Case("T5", "T5EncoderModel", "sentence-similarity", {"d_model": 32, "d_kv": 8, "d_ff": 64}),
    Case("XLM-RoBERTa-XL", "XLMRobertaXLModel", "sentence-similarity"),
    Case(
        "CLIP", "CLIPModel", "sentence-similarity", {"text_config": _TEXT_TOWER, "vision_config": tiny.VISION}
    ),
    *(
        Case(name, f"{name}{suffix}", task, {**_SMALL_DECODER, **more})
        for name in ("Mistral", "Qwen3")
        for suffix, task, more in (
            ("Model", "sentence-similarity", {}),
            ("ForSequenceClassification", "text-classification", {"num_labels": 3}),
            ("ForSequenceClassification", "text-ranking", {"num_labels": 1}),
        )
    ),
    Case("Qwen3", "Qwen3ForCausalLM", "text-ranking", _SMALL_DECODER, refused="rank by two tokens"),
    Case("ViT", "ViTModel", "sentence-similarity", tiny.VISION, refused="reads image and no text alone"),
    Case(
        "TrOCR",
        "VisionEncoderDecoderModel",
        READING,
        {"model_type": "vision-encoder-decoder"},
        refused="is a VisionEncoderDecoderModel for",
    ),
    Case("FNet", "FNetModel", "sentence-similarity", refused="takes no attention mask"),
    Case(
        "Longformer",
        "LongformerModel",
        "sentence-similarity",
        {"attention_window": 16},
        refused="cannot be exported to ONNX",
    ),
    # Not in transformers itself: their code comes with the checkpoint, and is not run.
    Case(
        "GTE", "NewModel", "sentence-similarity", {"model_type": "new"}, refused="comes with the checkpoint"
    ),
    Case(
        "NomicBERT",
        "NomicBertModel",
        "sentence-similarity",
        {"model_type": "nomic_bert"},
        "comes with the checkpoint",
    ),
)

_CLASSES = {"num_labels": 5}
_PATCHES = {**tiny.VISION, **_CLASSES}
_STAGES = {"depths": [1, 1], "hidden_sizes": [16, 32], **_CLASSES}
# Wide enough for CLIP's answers to differ, and not so wide that each is 0 or 1.
_TOWER = {"vision_config": tiny.VISION, "spread": 4.0, **_CLASSES}
_IMAGES = tuple(
    Case(name, f"{prefix}ForImageClassification", "image-classification", config, **more)
    for name, prefix, config, more in (
        ("ViT", "ViT", _PATCHES, {"wire": True}),
        ("DeiT", "DeiT", {**_PATCHES, "processor": "DeiTImageProcessor"}, {}),
        ("BEiT", "Beit", {**_PATCHES, "processor": "BeitImageProcessor"}, {}),
        ("DINOv2", "Dinov2", {**_PATCHES, "processor": "BitImageProcessor"}, {}),
        ("CLIP", "CLIP", {**_TOWER, "processor": "CLIPImageProcessor"}, {}),
        ("SigLIP", "Siglip", {**_TOWER, "processor": "SiglipImageProcessor"}, {}),
        (
            "Swin",
            "Swin",
            {
                "image_size": 32,
                "embed_dim": 16,
                "depths": [2],
                "num_heads": [2],
                "window_size": 4,
                **_CLASSES,
            },
            {},
        ),
        ("ResNet", "ResNet", {"embedding_size": 8, **_STAGES}, {}),
        (
            "ConvNeXT",
            "ConvNext",
            {**_STAGES, "num_stages": 2, "processor": "ConvNextImageProcessor"},
            {},
        ),
    )
)

# Windows of 64 tokens, since texts of 256 are scored.
_WINDOW = {"head_dim": 16, "sliding_window": 64}
_DECODERS = tuple(
    Case(name, model, GENERATION, config, **more)
    for name, model, config, more in (
        ("Llama", "LlamaForCausalLM", {}, {}),
        ("Qwen2", "Qwen2ForCausalLM", {}, {}),
        ("Qwen3", "Qwen3ForCausalLM", {"head_dim": 16}, {"small": True, "wire": True}),
        ("Mistral", "MistralForCausalLM", _WINDOW, {}),
        ("Phi", "PhiForCausalLM", {"num_attention_heads": 2}, {}),
        ("Phi-3", "Phi3ForCausalLM", {"original_max_position_embeddings": 1024}, {}),
        ("Gemma", "GemmaForCausalLM", {"head_dim": 16}, {}),
        ("Gemma 2", "Gemma2ForCausalLM", {**_WINDOW, "query_pre_attn_scalar": 16}, {}),
        # The sixth layer is the first that sees everything.
        (
            "Gemma 3",
            "Gemma3ForCausalLM",
            {**_WINDOW, "query_pre_attn_scalar": 16, "num_hidden_layers": 6},
            {},
        ),
        # The fourth is the first without positions.
        ("SmolLM3", "SmolLM3ForCausalLM", {"num_hidden_layers": 4}, {}),
        ("Granite", "GraniteForCausalLM", {}, {}),
        ("OLMo", "OlmoForCausalLM", {}, {"refused": "perplexity rises"}),
        ("GPT-2", "GPT2LMHeadModel", {}, {"refused": "does not know the architecture GPT2LMHeadModel"}),
    )
)

# Models that read one text and write another.
_SEQUENCE_TO_SEQUENCE = tuple(
    Case(name, model, REWRITING)
    for name, model in (
        ("T5", "T5ForConditionalGeneration"),
        ("BART", "BartForConditionalGeneration"),
        ("Marian", "MarianMTModel"),
    )
)

CASES = (*_encoder_cases(), *_OTHER_ENCODERS, *_IMAGES, *_DECODERS, *_SEQUENCE_TO_SEQUENCE)


def make(case: Case, folder: Path) -> Path:
    """The checkpoint of a case."""
    makers: dict[str, Any] = {
        GENERATION: tiny.make_decoder,
        REWRITING: tiny.make_encoder_decoder,
        "image-classification": tiny.make_image,
    }
    if case.task in makers:
        made: Path = makers[case.task](folder, case.model, **case.config)
        return made
    if case.task == READING:
        return _as(tiny.make(folder, "BertModel"), case)
    if case.model in _OF_PICTURES:
        tiny.make_image(folder, "ViTModel", **tiny.VISION)
    if case.model == "ViTModel":
        return folder
    if hasattr(transformers, case.model):
        return tiny.make(folder, case.model, **case.config)
    tiny.make(folder, "BertModel")
    code = {kind: f"modeling.{case.model}" for kind in ("AutoConfig", "AutoModel")}
    return _as(folder, case, auto_map=code)


def _as(folder: Path, case: Case, **more: Any) -> Path:
    """Another model's config over weights that nobody is to read."""
    config = {"architectures": [case.model], **case.config, **more}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    return folder


@contextmanager
def little_evidence() -> Iterator[None]:
    """Evidence of fewer sizes and no speed to speak of: what is wrong with an architecture shows at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "SPEED_ROUNDS", 1)
        patch.setattr(verify, "BATCH_SIZES", (1, 5))
        for task in TASKS.values():
            patch.setattr(type(task), "lengths", (task.lengths[0], max(64, 2 * task.lengths[0])))
        patch.setattr(generation_verify, "SPEED_ROUNDS", 1)
        patch.setattr(generation_verify, "SPEED_BATCHES", (1,))
        patch.setattr(generation_verify, "WINDOWS", 2)
        patch.setattr(generation, "CALIBRATION_WRITTEN", 4)
        yield


def try_case(case: Case, folder: Path, repository: Path, precisions: Sequence[str]) -> Outcome:
    """Export a case in each precision, and keep what was said of it.

    Args:
        folder: empty; the checkpoint goes there.
        repository: what is proven goes there; the last precision that is will be served.
    """
    source = make(case, folder / "checkpoint")
    kind = {GENERATION: GenerationRecipe, REWRITING: Text2TextRecipe}.get(case.task, EncoderRecipe)
    evidence: dict[str, Any] = {}
    errors: dict[str, str] = {}
    pending = [tuple(precisions)]
    while pending:
        asked = pending.pop()
        settings: dict[str, Any] = {"source": str(source), "name": case.served_as, "precisions": asked}
        if case.task == RANKING:  # which no file of a language model tells
            settings["task"] = RANKING
        try:
            with little_evidence():
                run.export(
                    kind(**settings),
                    repository,
                    on_evidence=lambda found: evidence.update({entry.precision: entry for entry in found}),
                )
        except NotProven:
            pass  # the evidence says why
        except ExportError as error:
            if len(asked) > 1:  # of which one it is true shows when each is tried alone
                pending.extend((precision,) for precision in asked)
            else:
                errors[asked[0]] = error.message.replace(str(source), case.model)
    return Outcome(evidence, errors)


def document(outcomes: Mapping[Case, Outcome], served: Sequence[Case]) -> str:
    """`docs/models.md`.

    Args:
        outcomes: of all cases, in their order, in fp32 and int8.
        served: those that answered over the wire as the original does.
    """
    versions = ", ".join(f"{tool} {metadata.version(tool).partition('+')[0]}" for tool in TOOLS)
    rows = [_row(case, outcome, case in served) for case, outcome in outcomes.items()]
    return _TEXT.format(versions=versions, rows="\n".join(rows))


_TEXT = """# Which models can be exported

Written by `make test-export`, with {versions}. Do not
edit: CI checks that it lists what `tests/export/matrix.py` tries.

Each row is a tiny model with random weights, exported and compared with the original as any other model is.
That tells whether Shoal gets an architecture right, not how well a trained model quantizes: INT8 is judged on
these random weights, which forgive less, and `shoal export` judges it anew for each checkpoint. What is not
published is refused with the reason that stands here. What is published answers raw inputs as the original
library does: [evidence.md](evidence.md).

- **fp32**: largest difference of any component; of a decoder, how far perplexity moves (its greedy answers
  are all the original's, token by token).
- **int8**: whether it is within its tolerance.
- **wire**: called on a real Triton as well, one model of each family.

| architecture | class in transformers | task | fp32 | int8 | wire | why not |
|---|---|---|---|---|---|---|
{rows}
"""
_ROW = re.compile(r"^\| (?P<name>[^|]+) \| `(?P<model>\w+)` \| (?P<task>[\w-]+) \| (?P<fp32>[^|]+) \|", re.M)


def documented(text: str) -> dict[tuple[str, str, str], bool]:
    """(architecture, class, task) -> whether fp32 is published, of each row of the document."""
    rows = (match.groupdict() for match in _ROW.finditer(text))
    return {(row["name"], row["model"], row["task"]): row["fp32"] != "no" for row in rows}


def _row(case: Case, outcome: Outcome, served: bool) -> str:
    wire = "yes" if served else ""
    if why := _stable(outcome.reason("fp32")):  # the other is made from this one
        exact = small = "no"
    else:
        exact, why = _exactness(outcome.evidence["fp32"]), _stable(outcome.reason("int8"))
        small, why = ("no", f"int8: {why}") if why else ("yes", "")
    return f"| {case.name} | `{case.model}` | {case.task} | {exact} | {small} | {wire} | {why} |"


def _exactness(evidence: Any) -> str:
    """A bound that holds on any CPU, since the last digits do not."""
    if isinstance(evidence, generation_verify.GenerationEvidence):
        bound = next(b for b in (0.0001, 0.001) if abs(evidence.perplexity_rise) <= b)
        return f"± {bound:.2%}"
    difference = getattr(evidence, "logits_max_abs_diff", None) or evidence.max_abs_diff
    bound = next(b for b in (1e-5, 1e-4, 1e-3) if difference <= b)
    return f"≤ 1e{round(math.log10(bound))}"


def _stable(reason: str) -> str:
    """A reason without the figure and the input that show it, e.g. `agreement < 97%`, for a table."""
    line = re.sub(r": for .*?(?=; |$)", "", reason.splitlines()[0] if reason else "")
    return re.sub(r" [\d.e-]+%? (?=[<>] )", " ", line).replace("|", "/")
