"""What is known of rows without their text: a few numbers each, as histograms, and the distance of two.

The same code runs at the export and live, so that the same rows give the same histogram. Needs numpy, and
scipy for a distance.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Value of one row: a number, or the name of a class.
Value = float | str

# Few bins, because each adds noise: see `noise`. Zero has a bin of its own among shares of unknown tokens.
EDGES: dict[str, tuple[float, ...]] = {
    "length": (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
    "unknown": (1e-6, 0.05, 0.2, 0.5),
    "pieces": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
}
# A model's own scores have no natural scale, so that their bins are equally full of the reference's rows.
QUANTILES = 8
# The commonest classes have bins of their own, all others share one.
MOST_NAMES = 11
# What marks a token that begins a word, in byte-level BPE and in SentencePiece.
_BEGINS = ("Ġ", "▁")  # the second is not an underscore
_ENDS = "</w>"


@dataclass(frozen=True)
class Vocabulary:
    """What each token id is, read from a `tokenizer.json`.

    Attributes:
        special: bool [ids]: stands for no text.
        continues: bool [ids]: goes on a word, or on what stands before it without a space.
        unknown: id of the token for what the tokenizer does not know; None: it knows everything.
    """

    special: NDArray[np.bool_]
    continues: NDArray[np.bool_]
    unknown: int | None

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read the vocabulary of a tokenizer in the format of the library `tokenizers`.

        Raises:
            OSError, ValueError, KeyError: the file cannot be read or is none.
        """
        raw = json.loads(path.read_text(encoding="utf-8"))
        model = raw["model"]
        given = model["vocab"]
        ids = given if isinstance(given, dict) else {entry[0]: i for i, entry in enumerate(given)}
        added = {entry["content"]: entry for entry in raw.get("added_tokens") or []}
        ids = ids | {content: entry["id"] for content, entry in added.items()}
        size = 1 + max(ids.values())
        special, continues = np.zeros(size, bool), np.zeros(size, bool)
        goes_on = _continuation(model, ids)
        for token, number in ids.items():
            special[number] = token in added and bool(added[token]["special"])
            continues[number] = goes_on(token)
        unknown = model["unk_id"] if "unk_id" in model else ids.get(model.get("unk_token"))
        if unknown is not None:
            continues[unknown] = False
        return cls(special, continues, unknown)

    def features(self, ids: ArrayLike, length: int | None = None) -> dict[str, Value]:
        """Numbers that describe one sequence.

        Args:
            ids: token ids [tokens], without padding.
            length: of the sequence in tokens, where not all ids are given.

        Returns:
            `length` in tokens, special ones included; `pieces`, the share of tokens that go on a word, which
            is 1 - words / tokens; and, of a tokenizer that has one, the share of the `unknown` token.

        Raises:
            ValueError: it is not one sequence of ids.
            IndexError: an id is not of this vocabulary.
        """
        tokens = np.asarray(ids, np.int64)
        if tokens.ndim != 1 or (tokens < 0).any():
            raise ValueError("not one sequence of token ids")
        special = self.special[tokens]
        if self.unknown is not None:
            special = special & (tokens != self.unknown)
        own = tokens[~special]
        count = max(1, len(own))
        found: dict[str, Value] = {
            "length": float(length or len(tokens)),
            "pieces": float(self.continues[own].sum() / count),
        }
        if self.unknown is not None:
            found["unknown"] = float((own == self.unknown).sum() / count)
        return found


def _continuation(model: Mapping[str, Any], ids: Mapping[str, int]) -> Any:
    """How a tokenizer's model tells that a token goes on a word, as a function of the token."""
    if prefix := model.get("continuing_subword_prefix"):
        return lambda token: token.startswith(prefix)
    for mark in _BEGINS:
        if any(token.startswith(mark) for token in ids):
            return lambda token: not token.startswith(mark)
    if any(token.endswith(_ENDS) for token in ids):  # as many tokens go on as do not end a word
        return lambda token: not token.endswith(_ENDS)
    return lambda token: False


@dataclass(frozen=True)
class Histogram:
    """How many rows had which value of one feature.

    Attributes:
        counts: of rows in each bin, one more than there are edges or names.
        edges: of bins of numbers, rising; a value on an edge lies above it.
        names: of classes; the last bin is for any other.
    """

    counts: tuple[int, ...]
    edges: tuple[float, ...] = ()
    names: tuple[str, ...] = ()

    def bin(self, value: Value) -> int:
        """The number of the bin that a value falls into."""
        if isinstance(value, str):
            return self.names.index(value) if value in self.names else len(self.names)
        return bisect_right(self.edges, value)

    @classmethod
    def of(cls, feature: str, values: Sequence[Value]) -> Histogram:
        """Count values into bins that suit the feature.

        Args:
            values: of at least one row.
        """
        edges: tuple[float, ...] = ()
        names: tuple[str, ...] = ()
        if isinstance(values[0], str):
            seen = Counter(map(str, values))
            common = sorted(seen, key=lambda name: (-seen[name], name))[:MOST_NAMES]
            names = tuple(sorted(common))
        elif feature in EDGES:
            edges = EDGES[feature]
        else:
            inner = np.linspace(0, 1, QUANTILES + 1)[1:-1]
            edges = tuple(np.unique(np.quantile(np.asarray(values, float), inner).round(6)).tolist())
        empty = cls((), edges, names)
        bins = [empty.bin(value) for value in values]
        size = len(edges or names) + 1
        return cls(tuple(np.bincount(bins, minlength=size).tolist()), edges, names)


@dataclass(frozen=True)
class ReferenceStatistics:
    """Statistics of the rows that a version was exported with.

    Attributes:
        texts: what they are of: `sample`, text that comes with Python, or `eval_data`, the user's own.
        features: name -> histogram.
        centroid: mean direction of the embeddings, float32 [width] of length one; None: it makes none.
    """

    texts: str
    features: dict[str, Histogram]
    centroid: NDArray[np.float32] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give the statistics as plain JSON types, for a manifest."""
        features = {
            name: {key: list(value) for key, value in asdict(histogram).items() if value}
            for name, histogram in self.features.items()
        }
        centroid = [] if self.centroid is None else [round(float(x), 6) for x in self.centroid]
        return {"texts": self.texts, "features": features} | ({"centroid": centroid} if centroid else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReferenceStatistics:
        """From `to_dict`.

        Raises:
            KeyError, TypeError: it is not one.
        """
        features = {
            name: Histogram(**{key: tuple(value) for key, value in fields.items()})
            for name, fields in values["features"].items()
        }
        centroid = values.get("centroid")
        return cls(values["texts"], features, None if centroid is None else np.array(centroid, np.float32))

    @classmethod
    def of(
        cls,
        texts: str,
        rows: Sequence[Mapping[str, Value]],
        centroid: NDArray[np.float32] | None = None,
    ) -> ReferenceStatistics:
        """Of rows that all have the same features.

        Args:
            rows: at least one.
        """
        features = {name: Histogram.of(name, [row[name] for row in rows]) for name in rows[0]}
        return cls(texts, features, centroid)


def answer_features(
    outputs: Mapping[str, NDArray], centroid: NDArray[np.float32] | None = None
) -> list[dict[str, Value]]:
    """Numbers that describe a network's answers, one dict a row.

    Args:
        outputs: of them `embedding` [rows, width], `label` [rows, top] and `score` [rows, top], the likeliest
            first, are read, as far as there are any.
        centroid: what embeddings are compared with.

    Returns:
        `similarity`, the cosine of embedding and centroid; `label`, the likeliest; `confidence`, its score.
    """
    found: dict[str, list[Value]] = {}
    if centroid is not None and "embedding" in outputs:
        found["similarity"] = (unit(outputs["embedding"]) @ centroid).tolist()
    if "label" in outputs:
        found["label"] = [_text(row[0]) for row in outputs["label"]]
    if "score" in outputs:
        found["confidence"] = [float(row[0]) for row in outputs["score"]]
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def centroid_of(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean direction of [rows, width], [width] of length one."""
    return unit(unit(vectors).mean(axis=0, keepdims=True))[0]


def unit(vectors: NDArray) -> NDArray[np.float32]:
    """[rows, width], each brought to length one."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, np.finfo(np.float32).tiny), np.float32)


def _text(label: Any) -> str:
    """Triton gives bytes, ONNX Runtime str."""
    return label.decode() if isinstance(label, bytes) else str(label)


def distance(counts: ArrayLike, reference: ArrayLike) -> float:
    """Jensen-Shannon distance of two histograms over the same bins: 0, the same, to 1, nothing in common.

    It is used rather than the population stability index because it is bounded, symmetric, and defined where
    a bin is empty on one side, where the index is infinite unless somebody chooses what to put there.
    Source: Endres and Schindelin, A new metric for probability distributions, IEEE Transactions on
    Information Theory 49 (2003).

    Args:
        counts: rows in each bin, at least one row.
        reference: the same.
    """
    from scipy.spatial.distance import jensenshannon  # noqa: PLC0415 - the export does not need it

    # Rounding can make the divergence of equal histograms negative, and its root not a number.
    return float(
        np.nan_to_num(jensenshannon(np.asarray(counts, float), np.asarray(reference, float), base=2))
    )


def noise(bins: int, rows: int, reference_rows: int) -> float:
    """The distance to expect, about, of two samples of one distribution.

    The divergence is chi-squared / (8 ln 2) to second order, and chi-squared has `bins` - 1 as its mean.

    Args:
        bins: that are not empty.
        rows, reference_rows: sizes of the samples.
    """
    return float(np.sqrt((bins - 1) * (1 / rows + 1 / reference_rows) / (8 * np.log(2))))
