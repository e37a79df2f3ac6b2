"""What encoder-decoder to export and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from export.recipe import check_precisions, name_of, to_plain, values_of
from serving.models.admission import MAX_QUEUE_SIZE
from shoal.errors import UsageError
from shoal.names import check_name


@dataclass(frozen=True)
class Text2TextRecipe:
    """Settings of one export.

    Attributes:
        source: an installed pip package that ships a checkpoint, a local folder, or a hub id.
        name: what users will call the model.
        precisions: which versions to make, in this order; the last that is proven is served.
        max_length: longest text in tokens, longer text is truncated; None: what the checkpoint says.
        max_new_tokens: longest answer; None: what the checkpoint's generation config says, else 256.
        num_beams: answers that compete, 1: greedy; None: what the checkpoint's generation config says.
        max_batch_size: most texts in one request and in one batch.
        max_text_bytes: longest text that is accepted at all, in bytes of UTF-8, and in characters once it is
            normalized.
        max_queue_size: requests that may wait; further ones are refused at once.
        eval_data: texts and the answers they should have, for chrF as part of the evidence; see
            `export.text2text.labelled`.
    """

    PRECISIONS: ClassVar[tuple[str, ...]] = ("fp32", "int8")
    TASK: ClassVar[str] = "text2text-generation"

    source: str
    name: str = ""
    precisions: tuple[str, ...] = PRECISIONS
    max_length: int | None = None
    max_new_tokens: int | None = None
    num_beams: int | None = None
    max_batch_size: int = 16
    max_text_bytes: int = 32_768
    max_queue_size: int = MAX_QUEUE_SIZE
    eval_data: Path | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", name_of(self.source))
        check_name(self.name)
        check_precisions(self.precisions, self.PRECISIONS)
        for key, least in (
            ("max_length", 4),
            ("max_new_tokens", 1),
            ("num_beams", 1),
            ("max_batch_size", 1),
            ("max_text_bytes", 1),
            ("max_queue_size", 1),
        ):
            value = getattr(self, key)
            if value is not None and value < least:
                raise UsageError(f"{key} is {value}, it must be at least {least}")

    def to_dict(self) -> dict[str, Any]:
        """Give the value as plain JSON types."""
        return {"task": self.TASK} | to_plain(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Text2TextRecipe:
        """See `export.recipe.Recipe.from_dict`."""
        return cls(**values_of(cls, {key: value for key, value in values.items() if key != "task"}))
