"""What estimator to export and how."""

from __future__ import annotations

from typing import ClassVar

from export.recipe import AtLeast1, Recipe, name_of
from serving.models.admission import MAX_QUEUE_SIZE
from serving.models.rows import MAX_REQUEST_TERMS, MAX_TEXT_BYTES


class TabularRecipe(Recipe, frozen=True):
    """Settings of one export.

    Attributes:
        source: a file or an example, see `export.tabular.find`.
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

    precisions: tuple[str, ...] = PRECISIONS
    max_batch_size: AtLeast1 = 256
    max_text_bytes: AtLeast1 = MAX_TEXT_BYTES
    max_request_terms: AtLeast1 = MAX_REQUEST_TERMS
    max_queue_size: AtLeast1 = MAX_QUEUE_SIZE
    top_k: AtLeast1 = 5
    trust_pickle: bool = False

    def default_name(self) -> str:
        """As the file or the example is called."""
        return name_of(self.source.rpartition(":")[2])
