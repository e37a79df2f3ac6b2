"""What encoder-decoder to export and how."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from export.recipe import AtLeast1, Recipe
from serving.models.admission import MAX_QUEUE_SIZE


class Text2TextRecipe(Recipe, frozen=True):
    """Settings of one export.

    Attributes:
        source: an installed pip package that ships a checkpoint, a local folder, or a hub id.
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

    precisions: tuple[str, ...] = PRECISIONS
    max_length: Annotated[int, msgspec.Meta(ge=4)] | None = None
    max_new_tokens: AtLeast1 | None = None
    num_beams: AtLeast1 | None = None
    max_batch_size: AtLeast1 = 16
    max_text_bytes: AtLeast1 = 32_768
    max_queue_size: AtLeast1 = MAX_QUEUE_SIZE
