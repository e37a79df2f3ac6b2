"""Where a decoder's checkpoint comes from: a Hugging Face folder, or a package that ships a GGUF file.

A GGUF file is turned into a normal Hugging Face folder once, by transformers, and kept in the cache.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
import tempfile
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock
from tokenizers import Tokenizer, decoders, pre_tokenizers

from export.source import Checkpoint, find_checkpoint
from shoal.errors import ExportError, UsageError
from shoal.manifest import sha256
from shoal.paths import cache_dir

_READY = "converted.json"  # written last: a folder without it is half a conversion


@dataclass(frozen=True)
class DecoderSettings:
    """What a checkpoint's own files say of its use.

    Attributes:
        context: longest prompt and answer in tokens.
        ends: ids of the tokens that end a text.
        begin: the token every prompt begins with, or "".
        chat_template: Jinja template of a conversation, or "".
    """

    context: int
    ends: tuple[int, ...]
    begin: str
    chat_template: str


def find_decoder(source: str) -> Checkpoint:
    """Resolve a folder, a GGUF file, an installed package (with either) or a hub id.

    Raises:
        UsageError: it is none of these.
        ExportError: it is not a causal language model with safetensors and a fast tokenizer.
    """
    if gguf := find_gguf(source):
        return _from_gguf(source, gguf)
    checkpoint = find_checkpoint(source)
    if not generates(source):
        architecture = (checkpoint.config.get("architectures") or ["(not stated)"])[0]
        raise ExportError(f"{source} has the architecture {architecture}, which is not a decoder's")
    return checkpoint


def generates(source: str) -> bool:
    """Whether a source is a model that generates text, by its own config.

    Raises:
        UsageError, ExportError: see `export.source.find_checkpoint`.
    """
    if find_gguf(source):
        return True
    architectures = find_checkpoint(source).config.get("architectures") or [""]
    return str(architectures[0]).endswith(("ForCausalLM", "LMHeadModel"))


def find_gguf(source: str) -> Path | None:
    """The GGUF file that a path or an installed package means, or None. The package is not imported."""
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UsageError(f"there is no file {path}")
        return path.resolve()
    if not path.exists() and re.fullmatch(r"[A-Za-z0-9_.-]+", source):
        spec = importlib.util.find_spec(re.sub(r"[-.]", "_", source))
        for location in (spec.submodule_search_locations or []) if spec else []:
            for found in sorted(Path(location).glob("*.gguf")):
                return found
    return None


def _from_gguf(source: str, gguf: Path) -> Checkpoint:
    content = sha256(gguf)
    folder = cache_dir() / "checkpoints" / content[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / _READY).exists():
            shutil.rmtree(folder, ignore_errors=True)
            work = Path(tempfile.mkdtemp(dir=folder.parent))
            try:
                _convert(gguf, work)
                (work / _READY).write_text(json.dumps({"gguf": gguf.name, "sha256": content}))
                work.rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    packaged = Path(source).suffix != ".gguf"
    kind, revision = ("package", metadata.version(source)) if packaged else ("folder", "")
    return Checkpoint(folder, source, kind, revision)


def _convert(gguf: Path, folder: Path) -> None:
    from gguf import GGUFReader  # noqa: PLC0415 - slow to import, rarely needed
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    transformers_logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):  # a progress bar that no option switches off
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32")
    except Exception as error:  # transformers raises what it likes
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"transformers cannot read {gguf.name}: {reason}") from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    fields = GGUFReader(gguf).fields
    names = {key: f"tokenizer.ggml.{key}" for key in ("add_bos_token", "model", "pre")}
    said = {key: fields[name].contents() for key, name in names.items() if name in fields}
    _correct_tokenizer(folder / "tokenizer.json", said)


def _correct_tokenizer(path: Path, said: dict[str, Any]) -> None:
    """What the file says and transformers' conversion does not keep."""
    if said.get("add_bos_token") is False:  # it always puts one before the text
        content = json.loads(path.read_text(encoding="utf-8"))
        content["post_processor"] = None
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(path))
    if said.get("model") == "gpt2":  # it adds steps of other models; llguidance then takes bytes for text
        tokenizer.decoder = decoders.ByteLevel()
    if said.get("pre") == "smollm":  # it splits numbers as GPT-2 does; SmolLM reads digit by digit
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.save(str(path))


def decoder_settings(checkpoint: Checkpoint) -> DecoderSettings:
    """Read `config.json`, `generation_config.json` and the tokenizer's files.

    Raises:
        ExportError: one cannot be read, or does not state how long a text may be.
    """
    folder = checkpoint.folder
    config = checkpoint.config
    generation = _read(folder / "generation_config.json", {})
    tokenizer = _read(folder / "tokenizer_config.json", {})
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    template = tokenizer.get("chat_template") or ""
    if (folder / "chat_template.jinja").exists():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(template, list):  # several, by name
        template = next((entry["template"] for entry in template if entry["name"] == "default"), "")
    begin = tokenizer.get("bos_token") or ""
    begin = begin["content"] if isinstance(begin, dict) else begin
    context = config.get("max_position_embeddings") or config.get("n_positions")
    if not context:
        raise ExportError(f"{checkpoint.id} does not state its max_position_embeddings")
    adds = _read(folder / "tokenizer.json").get("post_processor") is not None
    return DecoderSettings(
        context=int(context),
        ends=tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),),
        begin=begin if adds else "",
        chat_template=template,
    )


def _read(path: Path, default: Any = None) -> Any:
    if default is not None and not path.exists():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
