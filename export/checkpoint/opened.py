"""A checkpoint as the library opens it that its users call.

sentence-transformers and transformers merge many files into settings: what a tokenizer does to a text, how
token vectors become one, which activation stands behind a score. They are asked for the result; no single
file is read for it here. The opened library is also what every version is compared with (`export.originals`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

# transformers 5 offers it at its top only beside torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from export.checkpoint.loading import SAFELY, of_a_library
from export.checkpoint.source import Checkpoint
from shoal import tasks
from shoal.errors import ExportError

_FAST = (
    "its fast version can be made where its slow one runs: pip install sentencepiece tiktoken protobuf, then"
    " AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes tokenizer.json"
)


@dataclass(frozen=True)
class Opened:
    """See the module.

    Attributes:
        checkpoint: the files.
        config: transformers' config of the model.
        tokenizer: transformers' `PreTrainedTokenizerFast`, as the library has it, with everything its files
            say merged; None: of a picture model.
        image_processor: of a picture model; else None.
        library: sentence-transformers' `SentenceTransformer` or `CrossEncoder` of a model that is called
            through it; else None.
    """

    checkpoint: Checkpoint
    config: PretrainedConfig
    tokenizer: Any = None
    image_processor: Any = None
    library: Any = None

    @property
    def labels(self) -> list[str]:
        """Names of the model's classes, in their order."""
        named = self.config.id2label
        return [str(named[key]) for key in sorted(named)]

    @property
    def prompts(self) -> dict[str, str]:
        """What is put before a text, by the name of its use, e.g. `query`; empty texts among them."""
        return dict(self.library.prompts) if self.library is not None and self.own_prompts else {}

    @property
    def own_prompts(self) -> bool:
        """Whether the checkpoint itself names prompts: the library makes up empty ones where it does not."""
        return any(self.library.prompts.values()) or self.default_prompt is not None

    @property
    def default_prompt(self) -> str | None:
        """The name of the prompt of texts that come without one; None: nothing is put before them."""
        name = self.library.default_prompt_name if self.library is not None else None
        return None if name is None else str(name)

    @property
    def longest(self) -> int | None:
        """Tokens of an input at most, as the library truncates it; None: it does not."""
        stated = self.tokenizer.model_max_length
        return int(stated) if stated is not None and stated < NO_LIMIT else None


# transformers writes a very large number where nothing is stated.
NO_LIMIT = 10**9


def open_checkpoint(checkpoint: Checkpoint, task: str, *, truncate_dim: int | None = None) -> Opened:
    """Open a checkpoint for a task.

    Args:
        truncate_dim: of embeddings, components that are kept; None: as the checkpoint says.

    Raises:
        ExportError: its library cannot open it, or it has no fast tokenizer.
    """
    if task == tasks.EMBEDDING:
        return _sentence_transformer(checkpoint, truncate_dim)
    if task == tasks.RANKING:
        return _cross_encoder(checkpoint)
    config = open_config(checkpoint)
    if task == "image-classification":
        return Opened(checkpoint, config, image_processor=open_image_processor(checkpoint))
    return Opened(checkpoint, config, tokenizer=open_tokenizer(checkpoint))


def open_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """transformers' config."""
    with of_a_library(f"transformers cannot read the config of {checkpoint.id}"):
        return AutoConfig.from_pretrained(checkpoint.transformer, **SAFELY)


def open_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerFast:
    """transformers' tokenizer, which has merged all that the checkpoint's files say of it."""
    with of_a_library(f"transformers cannot load the tokenizer of {checkpoint.id}", hint=_FAST):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.transformer, **SAFELY)
    return _fast(tokenizer, checkpoint)


def open_image_processor(checkpoint: Checkpoint) -> Any:
    """transformers' image processor: the one that uses Pillow, as where torchvision is not installed."""
    with of_a_library(f"transformers cannot load the image processor of {checkpoint.id}"):
        return AutoImageProcessor.from_pretrained(checkpoint.transformer, use_fast=False, **SAFELY)


def _fast(tokenizer: Any, checkpoint: Checkpoint) -> PreTrainedTokenizerFast:
    if tokenizer is None:
        raise ExportError(f"{checkpoint.id} has no tokenizer", hint="save it beside the model")
    if not getattr(tokenizer, "is_fast", False):
        raise ExportError(
            f"{checkpoint.id} has the slow tokenizer {type(tokenizer).__name__} only", hint=_FAST
        )
    return tokenizer


def _sentence_transformer(checkpoint: Checkpoint, truncate_dim: int | None) -> Opened:
    with of_a_library(f"sentence-transformers cannot open {checkpoint.id}", hint=_hint(checkpoint)):
        opened = _by_sentence_transformers("SentenceTransformer", checkpoint, truncate_dim=truncate_dim)
    if "text" not in opened.modalities:
        read = ", ".join(map(str, opened.modalities)) or "nothing"
        raise ExportError(
            f"{checkpoint.id} is a {type(opened[0].model).__name__}, which reads {read} and no text alone",
            hint="of a model that reads pictures, one with a head for image-classification can be exported",
        )
    return Opened(checkpoint, opened[0].config, tokenizer=_fast(opened.tokenizer, checkpoint), library=opened)


def _cross_encoder(checkpoint: Checkpoint) -> Opened:
    with of_a_library(f"sentence-transformers cannot open {checkpoint.id} as a cross-encoder"):
        opened = _by_sentence_transformers("CrossEncoder", checkpoint)
    return Opened(checkpoint, opened.config, tokenizer=_fast(opened.tokenizer, checkpoint), library=opened)


def _by_sentence_transformers(kind: str, checkpoint: Checkpoint, **options: Any) -> Any:
    """A checkpoint in one of the library's classes; refuse modules whose weights are a pickle alone."""
    import sentence_transformers  # noqa: PLC0415 - slow to import, rarely needed

    for pickled in sorted(checkpoint.folder.glob("*/pytorch_model.bin")):
        if not any(pickled.parent.glob("*.safetensors")):
            raise ExportError(
                f"{pickled} is a pickle, which is not read",
                hint="load it where you trust it, and save it again: SentenceTransformer(DIR).save(DIR)",
            )
    return getattr(sentence_transformers, kind)(
        str(checkpoint.folder),
        device="cpu",
        model_kwargs={"use_safetensors": True, "dtype": torch.float32},
        **SAFELY,
        **options,
    )


def _hint(checkpoint: Checkpoint) -> str:
    return "" if (checkpoint.transformer / "tokenizer.json").exists() else _FAST
