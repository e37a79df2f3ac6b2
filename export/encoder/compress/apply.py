"""A smaller model from a recipe: pruned, then taught by the original, with a report for the evidence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from export.encoder.compress.distill import Distillation, distill
from export.encoder.compress.prune import prune
from export.encoder.compress.texts import read_texts
from export.encoder.prepare import Source
from serving.models.layouts import BadText
from shoal import corpus
from shoal.errors import UsageError
from shoal.paths import cache_dir
from shoal.progress import Silent

IMPORTANCE_TEXTS = 64  # on which it is measured what is needed least
BATCH = 8
MAX_TOKENS = 64


def compress(source: Source, progress: Silent) -> tuple[Source, dict[str, Any]]:
    """The source with a smaller model to export, where its recipe wants one; the original stays.

    A training that was stopped goes on where it was: its state is kept in the cache, by what it depends on.

    Returns:
        The source, and what was done, as plain JSON types.

    Raises:
        UsageError: there is too little text, a text cannot be a row of the task, or the recipe asks for more
            than there is.
        ExportError: the architecture is not known.
    """
    recipe, head = source.recipe, source.head
    if not recipe.compresses:
        return source, {}

    def inputs(texts: Sequence[str], max_length: int = MAX_TOKENS) -> Mapping[str, NDArray]:
        try:
            rows = [source.task.row(text, 0, source.opened) for text in texts]
            features = source.encode(rows, max_length=max_length)
        except BadText as error:
            raise UsageError(f"a text to learn from cannot be: {error}", hint="leave it out") from error
        return network_feed(features, source.inputs)

    teaching: Sequence[str] = corpus.passages()
    if recipe.distill_text:  # read first, so that a file that cannot be read is told of at once
        teaching = read_texts(recipe.distill_text)
    texts = corpus.passages()[:IMPORTANCE_TEXTS]
    feeds = [inputs(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    small, pruned = prune(
        head, feeds, layers=recipe.layers, heads=recipe.heads, ffn=recipe.ffn, progress=progress
    )
    counts = [sum(weight.numel() for weight in module.parameters()) for module in (head, small)]
    report: dict[str, Any] = {"pruned": pruned, "parameters": counts}
    if recipe.distill_steps:
        settings = Distillation(steps=recipe.distill_steps)
        report["distilled"] = distill(
            head,
            small,
            teaching,
            inputs,
            settings=settings,
            folder=_state_folder(source, settings),
            progress=progress,
        )
    return replace(source, head=small), {"compression": report}


def network_feed(features: Mapping[str, NDArray], names: Sequence[str]) -> dict[str, NDArray]:
    """What the network reads of features, [rows, (sequences,) tokens] each.

    The windows of long contexts become rows of one sequence each, without those that only fill up a row that
    has fewer windows than another: nothing would be learned twice.
    """
    feed = {name: features[name] for name in names}
    if "context_mask" not in features:
        return feed
    real = features["context_mask"].any(axis=-1)
    return {name: array[real][:, None] for name, array in feed.items()}


def _state_folder(source: Source, settings: Distillation) -> Path:
    keys = ("task", "max_length", "layers", "heads", "ffn", "distill_text")
    asked = {key: value for key, value in source.recipe.to_dict().items() if key in keys}
    weights = source.opened.checkpoint.describe()["sha256"]
    name = json.dumps([asked, asdict(settings), weights], sort_keys=True)
    return cache_dir() / "distill" / hashlib.sha256(name.encode()).hexdigest()[:16]
