"""Rows as people have them to the inputs of a graph, by the very code that is served."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from export.checkpoint.opened import Opened
from export.encoder.tasks.task import Row
from serving.models.images import Processor, decode
from serving.models.layouts import LAYOUTS, Layout


def served_settings(opened: Opened) -> dict[str, str]:
    """What the served tokenizer must know besides `tokenizer.json`; see `serving.models.layouts`."""
    settings = {}
    if opened.tokenizer.truncation_side != "right":
        settings["truncation_side"] = str(opened.tokenizer.truncation_side)
    if opened.prompts:
        settings["prompts"] = json.dumps(opened.prompts)
        if opened.default_prompt is not None:
            settings["default_prompt"] = opened.default_prompt
    return settings


# Evidence is taken on pictures of ours.
_NO_LIMIT = 1 << 40


class RowEncoder(Protocol):
    """Makes the inputs of a graph from rows."""

    @property
    def max_length(self) -> int:
        """Longest input in tokens; 0: it has no length."""

    def __call__(
        self, rows: Sequence[Row], *, max_length: int | None = None, pad_to: int | None = None
    ) -> dict[str, NDArray]:
        """The features of some rows.

        Args:
            rows: at least one, all of one shape.
            max_length: truncate to this many tokens instead of the encoder's own limit.
            pad_to: pad to this length; None: to the longest sequence.
        """


class TextEncoder:
    """Tokenizes.

    Args:
        tokenizer: path of `tokenizer.json`.
        layout: see `serving.models.layouts`.
        max_length: longest input in tokens.
        pad_id: the token that fills a sequence up.
        features: what is wanted of it.
        options: of the layout.
    """

    def __init__(
        self,
        tokenizer: Path,
        layout: str,
        max_length: int,
        pad_id: int,
        features: Sequence[str],
        **options: str,
    ) -> None:
        self.path, self._layout, self.options = tokenizer, LAYOUTS[layout], options
        self.pad_id, self.features = pad_id, tuple(features)
        self.max_length = max_length
        self._by_length: dict[int, Layout] = {}

    @property
    def grouped(self) -> bool:
        """Whether a row makes several sequences."""
        return self._layout.GROUPS

    def __call__(
        self, rows: Sequence[Row], *, max_length: int | None = None, pad_to: int | None = None
    ) -> dict[str, NDArray]:
        """See `RowEncoder`."""
        limit = min(max_length or self.max_length, self.max_length)
        if limit not in self._by_length:
            self._by_length[limit] = self._layout(self.path, limit, **self.options)
        batch = self._by_length[limit].encode({name: [row[name] for row in rows] for name in rows[0]})
        return batch.arrays(pad_to or batch.longest, self.pad_id, self.features)


class ImageEncoder:
    """Decodes and resizes pictures."""

    max_length = 0
    features = ("pixel_values",)

    def __init__(self, processor: Processor) -> None:
        self.processor = processor

    def __call__(
        self, rows: Sequence[Row], *, max_length: int | None = None, pad_to: int | None = None
    ) -> dict[str, NDArray]:
        """See `RowEncoder`; pictures have no length."""
        images = [decode(row["image"][0], "image", max_bytes=_NO_LIMIT, max_pixels=_NO_LIMIT) for row in rows]
        return {"pixel_values": np.stack([self.processor.pixels(image) for image in images])}
