"""What estimator to export and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from export.recipe import check_precisions, name_of, to_plain, values_of
from serving.models.admission import MAX_QUEUE_SIZE
from serving.models.rows import MAX_REQUEST_TERMS, MAX_TEXT_BYTES
from shoal.errors import UsageError
from shoal.names import check_name


@dataclass(frozen=True)
class TabularRecipe:
    """Settings of one export.

    Attributes:
        source: a file or an example, see `export.tabular.find`.
        name: what users will call the model; "": from the source.
        precisions: fp32 alone: trees and linear models compute in it.
        max_batch_size: most rows in one request and in one batch.
        max_text_bytes: longest text in bytes of UTF-8 that is accepted at all.
        max_request_terms: most terms that are counted in the texts of one column in one request, as often as
            they come, and with what fills up rows of fewer terms.
        max_queue_size: requests that may wait for the network; further ones are refused at once.
        top_k: labels in an answer, the likeliest first.
        trust_pickle: load files that can run code when they are loaded.
        eval_data: CSV with a header, the labels in the column `label`, `target` or the last.
    """

    TASK: ClassVar[str] = "tabular"
    PRECISIONS: ClassVar[tuple[str, ...]] = ("fp32",)

    source: str
    name: str = ""
    precisions: tuple[str, ...] = PRECISIONS
    max_batch_size: int = 256
    max_text_bytes: int = MAX_TEXT_BYTES
    max_request_terms: int = MAX_REQUEST_TERMS
    max_queue_size: int = MAX_QUEUE_SIZE
    top_k: int = 5
    trust_pickle: bool = False
    eval_data: Path | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", name_of(self.source.rpartition(":")[2]))
        check_name(self.name)
        check_precisions(self.precisions, self.PRECISIONS)
        for key in ("max_batch_size", "max_text_bytes", "max_request_terms", "max_queue_size", "top_k"):
            if (value := getattr(self, key)) < 1:
                raise UsageError(f"{key} is {value}, it must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Give the value as plain JSON types."""
        return {"task": self.TASK} | to_plain(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TabularRecipe:
        """See `export.recipe.Recipe.from_dict`."""
        return cls(**values_of(cls, {key: value for key, value in values.items() if key != "task"}))
