"""Where a decoder's checkpoint comes from, and what transformers says of its use.

A GGUF file is turned into a normal Hugging Face folder once, by transformers, and kept in the cache.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock
from tokenizers import Tokenizer, decoders, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from export.checkpoint.kinds import kind_of, registered
from export.checkpoint.loading import SAFELY, check_generation, of_a_library
from export.checkpoint.opened import NO_LIMIT, open_config, open_tokenizer
from export.checkpoint.source import Checkpoint, find_checkpoint, package_folders, package_version
from shoal.errors import ExportError, UsageError
from shoal.hashes import sha256
from shoal.paths import cache_dir
from shoal.tasks import GENERATION

_READY = "converted.json"  # written last: a folder without it is half a conversion
_FORMAT = 2  # of a conversion; an older one is made again
# What a generation config may ask for that changes a greedy answer, and that is not done here.
_REFUSED = (
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_bos_token_id"),
    *("forced_eos_token_id", "no_repeat_ngram_size", "min_length", "min_new_tokens", "sequence_bias"),
    *("exponential_decay_length_penalty", "guidance_scale", "constraints", "force_words_ids"),
    *("num_beams", "penalty_alpha", "dola_layers", "stop_strings", "max_time", "watermarking_config"),
)
LEAST_CONTEXT = 512  # tokens, which evidence reads at once
# What it may say of sampling, in our names, which are the same.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class DecoderSettings:
    """How transformers uses a checkpoint.

    Attributes:
        context: longest prompt and answer in tokens.
        ends: ids of the tokens that end a text.
        begin: the token that the tokenizer puts before every prompt, or "".
        chat_template: Jinja template of a conversation, or "".
        special_tokens: by name, e.g. `eos_token`, for the template.
        sampling: what the generation config says of sampling, where it says something.
    """

    context: int
    ends: tuple[int, ...]
    begin: str
    chat_template: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    sampling: Mapping[str, float] = field(default_factory=dict)


def find_decoder(source: str) -> Checkpoint:
    """Resolve a folder, a GGUF file, an installed package (with either) or a hub id.

    Raises:
        UsageError: it is none of these.
        ExportError: it is not a causal language model with safetensors.
    """
    if gguf := find_gguf(source):
        return _from_gguf(source, gguf)
    checkpoint = find_checkpoint(source)
    architecture = kind_of(checkpoint).architecture
    if registered(architecture).task != GENERATION:
        raise ExportError(
            f"{source} has the architecture {architecture or '(none)'}, which is not a decoder's",
            hint="leave --task out: what it is for, its files tell",
        )
    return checkpoint


def generates(source: str) -> bool:
    """Whether a source is a model that generates text, by its own files.

    Raises:
        UsageError, ExportError: see `export.checkpoint.source.find_checkpoint`.
    """
    return bool(find_gguf(source)) or kind_of(find_checkpoint(source)).task == GENERATION


def find_gguf(source: str) -> Path | None:
    """The GGUF file that a path or an installed package means, or None. The package is not imported."""
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UsageError(f"there is no file {path}")
        return path.resolve()
    if path.exists():
        return None
    found = (file for folder in package_folders(source) for file in sorted(folder.glob("*.gguf")))
    return next(found, None)


def _from_gguf(source: str, gguf: Path) -> Checkpoint:
    content = sha256(gguf)
    folder = cache_dir() / "checkpoints" / content[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = {"gguf": gguf.name, "sha256": content, "format": _FORMAT}
    with FileLock(f"{folder}.lock"):
        if not (folder / _READY).exists() or json.loads((folder / _READY).read_text()) != made:
            shutil.rmtree(folder, ignore_errors=True)
            work = Path(tempfile.mkdtemp(dir=folder.parent))
            try:
                _convert(gguf, work)
                (work / _READY).write_text(json.dumps(made))
                work.rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    if Path(source).suffix == ".gguf":
        return Checkpoint(folder, source, "folder", "")
    return Checkpoint(folder, source, "package", package_version(source))


def _convert(gguf: Path, folder: Path) -> None:
    from gguf import GGUFReader  # noqa: PLC0415 - slow to import, rarely needed
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    with (
        of_a_library(f"transformers cannot read {gguf.name}", hint="is the download complete?"),
        redirect_stderr(io.StringIO()),  # a progress bar that no option switches off
    ):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32")
        model.save_pretrained(folder)
        fields = GGUFReader(gguf).fields
    names = {key: f"tokenizer.ggml.{key}" for key in ("add_bos_token", "model", "pre")}
    said = {key: fields[name].contents() for key, name in names.items() if name in fields}
    _save_tokenizer(tokenizer, folder, said)


def _save_tokenizer(tokenizer: Any, folder: Path, said: Mapping[str, Any]) -> None:
    """A tokenizer as the file has it, also where transformers' conversion does not keep that.

    Saved as the general class: the one that was converted would add its own steps again when it is loaded.

    Args:
        said: what the file says of its tokenizer.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if said.get("add_bos_token") is False:  # the conversion always puts one before the text
        content["post_processor"] = None
    backend = Tokenizer.from_str(json.dumps(content))
    if said.get("model") == "gpt2":  # it adds steps of other models; llguidance then takes bytes for text
        backend.decoder = decoders.ByteLevel()
    if said.get("pre") == "smollm":  # it splits numbers as GPT-2 does; SmolLM reads digit by digit
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    kept = dict(tokenizer.special_tokens_map)
    general = PreTrainedTokenizerFast(tokenizer_object=backend, **kept)
    general.chat_template = tokenizer.chat_template
    general.save_pretrained(folder)


def decoder_settings(checkpoint: Checkpoint) -> DecoderSettings:
    """What transformers makes of the checkpoint's files.

    Raises:
        ExportError: one cannot be read, does not state how long a text may be, or asks for a way to generate
            that is not supported.
    """
    config, tokenizer = open_config(checkpoint), open_tokenizer(checkpoint)
    generation = _generation_config(checkpoint, config)
    stated = getattr(config.get_text_config(), "max_position_embeddings", None)
    context = stated or tokenizer.model_max_length
    if context is None or context >= NO_LIMIT:
        raise ExportError(
            f"{checkpoint.id} does not state its max_position_embeddings", hint="add it to config.json"
        )
    if context < LEAST_CONTEXT:
        raise ExportError(
            f"{checkpoint.id} holds {context} tokens, and at least {LEAST_CONTEXT} are needed to measure it",
            hint="choose a model with a longer context",
        )
    ends = generation.eos_token_id
    said = generation.to_diff_dict()
    return DecoderSettings(
        context=int(context),
        ends=tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),),
        begin=_begin(tokenizer),
        chat_template=_template(tokenizer),
        special_tokens={
            name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)
        },
        sampling={name: said[name] for name in _SAMPLING if said.get(name) is not None},
    )


def _generation_config(checkpoint: Checkpoint, config: Any) -> GenerationConfig:
    folder = checkpoint.transformer
    with of_a_library(f"transformers cannot read the generation config of {checkpoint.id}"):
        if (folder / "generation_config.json").exists():
            given = GenerationConfig.from_pretrained(folder, **SAFELY)
        else:
            given = GenerationConfig.from_model_config(config)
    check_generation(given, _REFUSED, checkpoint.id)
    return given


def _begin(tokenizer: PreTrainedTokenizerFast) -> str:
    """The token that stands before every prompt, or ""."""
    bare, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    added = whole[: len(whole) - len(bare)]
    return str(tokenizer.decode(added[:1])) if added and whole[-len(bare) :] == bare else ""


def _template(tokenizer: PreTrainedTokenizerFast) -> str:
    """The chat template, of several the default one, as transformers chooses it."""
    given = tokenizer.chat_template
    return str(given.get("default", "")) if isinstance(given, dict) else str(given or "")
