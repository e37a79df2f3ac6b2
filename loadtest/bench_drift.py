"""`make bench-drift`: how far from a reference rows of its own kind are, rows of others, and both together.

Distances are those that a monitor exports (`serving.drift`), of an encoder in INT8, to the reference that is
kept by default, and with `--eval-data` also to one of the user's own texts. docs/drift.md shows a run.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from export.checkpoint.source import find_checkpoint
from export.encoder import verify
from export.encoder.build import build
from export.encoder.prepare import Source, prepare
from export.encoder.recipe import EncoderRecipe
from export.encoder.reference import ROWS, described, reference_rows, take_reference
from export.encoder.rows import TextEncoder
from export.encoder.tasks.task import Feed, Outputs, Row
from serving.drift.statistics import QUANTILES, ReferenceStatistics, Value, distance, noise
from shoal import corpus, machine
from shoal.errors import ShoalError, UsageError
from shoal.progress import Bars, Silent
from shoal.show import table

# Rows and a centroid to what is known of each row.
Describe = Callable[[Sequence[Row], NDArray[np.float32] | None], list[dict[str, Value]]]
# Feature -> the number of the bin that each row falls into, int64 [rows].
Bins = Mapping[str, NDArray[np.int64]]

DRAWS = 200
POOL = 3000  # rows of documentation from which draws are made
SAMPLES = (100, 1000)  # rows: the fewest that are told of, and a full window
MIXED = (5, 10)  # one row in so many is of another language
NOISE_DRAWS = 2000
SOURCES = ("argparse", "asyncio.events", "collections", "json.decoder", "pathlib", "statistics", "textwrap")
# 125 sentences a language, each of one beginning, one middle and one end.
_PARTS = {
    "German": (
        (
            "Meine Großmutter",
            "Der alte Fischer",
            "Die Bürgermeisterin",
            "Unser Nachbar",
            "Das kleine Mädchen",
        ),
        ("kaufte gestern", "verschenkte neulich", "beschrieb ausführlich", "vergaß wieder", "suchte überall"),
        (
            "einen zerbrochenen Regenschirm auf dem Wochenmarkt.",
            "die Schlüssel zum Gartenhäuschen hinter der Kirche.",
            "das Rezept für Zwetschgenkuchen mit Streuseln.",
            "drei Fahrkarten für die Straßenbahn nach Zehlendorf.",
            "ein Wörterbuch, das im Keller verstaubt war.",
        ),
    ),
    "French": (
        ("Ma grand-mère", "Le vieux pêcheur", "La boulangère du village", "Notre voisin", "La petite fille"),
        (
            "a acheté hier",
            "a oublié dimanche",
            "cherchait partout",
            "a décrit longuement",
            "a retrouvé enfin",
        ),
        (
            "un parapluie cassé sur la place du marché.",
            "les clés de la cabane derrière l'église.",
            "la recette de la tarte aux mirabelles.",
            "trois billets de tramway pour la gare.",
            "un dictionnaire couvert de poussière.",
        ),
    ),
    "Finnish": (
        ("Isoäitini", "Vanha kalastaja", "Kylän kauppias", "Naapurimme", "Pieni tyttö"),
        ("osti eilen", "unohti taas", "etsi kaikkialta", "kuvaili tarkasti", "löysi viimein"),
        (
            "rikkinäisen sateenvarjon torilta.",
            "puutarhamökin avaimet kirkon takaa.",
            "luumupiirakan ohjeen vanhasta kirjasta.",
            "kolme raitiovaunulippua rautatieasemalle.",
            "pölyisen sanakirjan kellarista.",
        ),
    ),
    "Chinese": (
        ("我的奶奶", "老渔夫", "村里的面包师", "我们的邻居", "那个小女孩"),
        ("昨天买了", "又忘记了", "到处寻找", "终于找到了", "仔细描述了"),
        (
            "市场上一把坏了的雨伞。",
            "教堂后面小木屋的钥匙。",
            "旧书里的李子蛋糕食谱。",
            "三张去火车站的电车票。",
            "地下室里满是灰尘的词典。",
        ),
    ),
}
SENTENCES = {
    name: [("" if name == "Chinese" else " ").join(parts) for parts in product(*lists)]
    for name, lists in _PARTS.items()
}


def python_source() -> list[str]:
    """Paragraphs of Python's own library: pieces of code of 40 to 400 characters."""
    found = []
    for name in SOURCES:
        for piece in inspect.getsource(import_module(name)).split("\n\n"):
            if 40 <= len(piece.strip()) <= 400:
                found.append(piece.strip())
    return found


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        rows: what they are.
        count: how many at once.
        draws: how often they were drawn; 1: they are all there are.
        distances: feature -> mean, least and largest distance over the draws.
    """

    reference: str
    rows: str
    count: int
    draws: int
    distances: dict[str, tuple[float, float, float]] = field(default_factory=dict)


class Bench:
    """Rows of one kind, a reference of others of them, and what is held against it.

    Args:
        name: of the reference.
        describe: rows and a centroid to what is known of each row.
        own: rows of the same kind that the reference is not of.
    """

    def __init__(
        self, name: str, reference: ReferenceStatistics, describe: Describe, own: Sequence[Row]
    ) -> None:
        self._name, self._reference, self._describe = name, reference, describe
        self._own = self._bins(own)
        self.lines: list[Line] = []

    def compare(self, others: Mapping[str, Sequence[Row]], progress: Silent) -> None:
        """Lines of rows of the same kind, of others, and of some other languages among the same."""
        with progress.step(f"Compare with {self._name}", total=len(others)) as advance:
            for count in SAMPLES:
                self._drawn("the same", (self._own, count))
            for name, rows in others.items():
                bins = self._bins(rows)
                self._add(name, [bins])
                for share in MIXED if name in SENTENCES else ():
                    few = SAMPLES[0] // share
                    self._drawn(f"one in {share} {name}", (self._own, SAMPLES[0] - few), (bins, few))
                advance()

    def _bins(self, rows: Sequence[Row]) -> Bins:
        features = self._describe(rows, self._reference.centroid)
        return {
            name: np.array([histogram.bin(row[name]) for row in features])
            for name, histogram in self._reference.features.items()
        }

    def _drawn(self, rows: str, *parts: tuple[Bins, int]) -> None:
        """Draws without replacement, so many rows of each part."""
        if any(_count(bins) < count for bins, count in parts):
            return
        chance = np.random.default_rng(0)
        draws = []
        for _ in range(DRAWS):
            chosen = [(bins, chance.choice(_count(bins), count, replace=False)) for bins, count in parts]
            draws.append(
                {name: np.concatenate([bins[name][index] for bins, index in chosen]) for name in self._own}
            )
        self._add(rows, draws)

    def _add(self, rows: str, draws: Sequence[Bins]) -> None:
        distances = {}
        for name, histogram in self._reference.features.items():
            size = len(histogram.counts)
            found = [distance(np.bincount(bins[name], minlength=size), histogram.counts) for bins in draws]
            distances[name] = (float(np.mean(found)), min(found), max(found))
        self.lines.append(Line(self._name, rows, _count(draws[0]), len(draws), distances))


def _count(bins: Bins) -> int:
    return len(next(iter(bins.values())))


def noise_of(rows: int) -> dict[str, Any]:
    """What `noise` predicts for two samples of one distribution over eight bins, and what they show."""
    chance = np.random.default_rng(0)
    shares = np.full(QUANTILES, 1 / QUANTILES)
    found = [
        distance(chance.multinomial(rows, shares), chance.multinomial(ROWS, shares))
        for _ in range(NOISE_DRAWS)
    ]
    return {
        "bins": QUANTILES,
        "rows": rows,
        "predicted": noise(QUANTILES, rows, ROWS),
        "mean": float(np.mean(found)),
        "largest": max(found),
    }


def main() -> None:
    """Build the graph, describe the rows, print a table and JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default=EncoderRecipe().source)
    parser.add_argument("--eval-data", type=Path, help="of the source's task: what users send")
    try:
        _run(parser.parse_args())
    except ShoalError as error:
        sys.exit(f"error: {error}")


def _run(options: argparse.Namespace) -> None:
    progress = Bars(Console(stderr=True))
    recipe = EncoderRecipe(source=options.source, precisions=("int8",))
    with tempfile.TemporaryDirectory() as folder:
        source = prepare(recipe, find_checkpoint(recipe.source), Path(folder))
        if source.task.layout != "text":
            raise UsageError(f"{recipe.source} reads more than one text", hint="an embedder or a classifier")
        model = verify.open_network(build(source, Path(folder), progress)[0]["int8"], "int8")
        lines = _lines(source, model, options.eval_data, progress)
    formula = [noise_of(count) for count in SAMPLES]
    out = Console(width=130)
    out.print(f"{machine.cpu_model()}; {recipe.source} in int8", highlight=False)
    out.print(_shown(lines))
    for entry in formula:
        out.print(
            f"two samples of {entry['bins']} equal bins, {entry['rows']} and {ROWS} rows:"
            f" predicted {entry['predicted']:.3f}, mean of {NOISE_DRAWS} draws {entry['mean']:.3f}",
            highlight=False,
        )
    print(json.dumps({"lines": [vars(line) for line in lines], "noise": formula}))


def _lines(source: Source, model: verify.Model, eval_data: Path | None, progress: Silent) -> list[Line]:
    """The lines of the default reference, and of one of the labelled rows where there are any."""
    subject = source.subject
    encode = subject.encode
    assert isinstance(encode, TextEncoder)  # noqa: S101 - its layout is text

    def describe(rows: Sequence[Row], centroid: NDArray[np.float32] | None) -> list[dict[str, Value]]:
        return described(subject, encode, model, rows, centroid)[0]

    def bench(name: str, reference: Sequence[Row], own: Sequence[Row], *, labelled: bool) -> Bench:
        taken = take_reference(subject, model, reference, labelled=labelled)
        assert taken is not None  # noqa: S101 - they are texts
        return Bench(name, ReferenceStatistics.from_dict(taken), describe, own)

    documentation = subject.rows(corpus.texts(POOL, seed=77))
    others = {name: subject.rows(texts) for name, texts in SENTENCES.items()}
    others["Python source"] = subject.rows(python_source())
    default = bench("documentation", reference_rows(subject, []), documentation, labelled=False)
    if eval_data is None:
        default.compare(others, progress)
        return default.lines
    rows = _labelled(source, model, eval_data, progress)
    random.Random(0).shuffle(rows)  # noqa: S311 - an order, not a secret
    default.compare(others | {eval_data.name: rows}, progress)
    own = bench(eval_data.name, rows[:ROWS], rows[ROWS:], labelled=True)
    own.compare(others | {"documentation": documentation}, progress)
    return default.lines + own.lines


def _labelled(source: Source, model: verify.Model, path: Path, progress: Silent) -> list[Row]:
    """The rows of labelled data, as the task reads them."""
    found: list[Row] = []

    def answers(rows: Sequence[Row]) -> tuple[Outputs, Feed]:
        found.extend(rows)
        feed = source.subject.feed(rows)
        return model(feed), feed

    with progress.step(f"Read {path.name}"):
        source.task.score(answers, path, source.opened)
    if len(found) <= ROWS:
        raise UsageError(
            f"{path} has {len(found)} texts", hint=f"more than {ROWS}: so many are the reference"
        )
    return found


def _shown(lines: Sequence[Line]) -> Any:
    """Distances to a hundredth: of draws the mean, the least and the largest."""
    features = list(lines[0].distances)
    made = table("Jensen-Shannon distance to a reference", ["reference", "rows", "#count", *features])
    for line in lines:
        cells = [
            f"{mean:.2f} ({least:.2f}–{most:.2f})" if line.draws > 1 else f"{mean:.2f}"
            for mean, least, most in (line.distances[name] for name in features)
        ]
        made.add_row(line.reference, line.rows, str(line.count), *cells)
    return made


if __name__ == "__main__":
    main()
