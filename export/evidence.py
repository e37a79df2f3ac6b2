"""What evidence is, what it must reach, and the gate: without it nothing is published.

`Verified` is made from evidence within its limits alone, and `repository.write` takes nothing else: a
model without evidence, or with evidence that misses a limit, cannot be published.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from rich.markup import escape
from rich.table import Table

from export.exported import Exported
from export.raw.evidence import RawEvidence
from shoal.errors import NotProven
from shoal.evidence import raw_share
from shoal.machine import available_cpus
from shoal.show import table


@dataclass(frozen=True)
class Check:
    """A figure of evidence that may have a limit.

    Attributes:
        key: the figure's attribute.
        words: what it is called in a refusal; `{0.metric}` is filled in from the evidence.
        form: how its value is written.
        most: whether the limit is the most that it may be; else it is the least.
    """

    key: str
    words: str
    form: str
    most: bool = False

    def failure(self, evidence: Any, limit: float) -> str:
        """What misses, as figures; "": nothing does, or it was not measured. A NaN misses."""
        value = getattr(evidence, self.key)
        if value is None or (value <= limit if self.most else value >= limit):
            return ""
        bound = format(limit, self.form if self.form.endswith("%") else "g")
        return f"{self.words.format(evidence)} {value:{self.form}} {'>' if self.most else '<'} {bound}"


# A heading, as `shoal.show.table` reads it, and what stands below it.
Column = tuple[str, Callable[[Any], str]]


def figure(heading: str, key: str, form: str, unit: float = 1.0) -> Column:
    """A column of one figure of the evidence; nothing where there is none."""

    def shown(entry: Any) -> str:
        value = getattr(entry, key)
        return "" if value is None else format(value / unit, form)

    return heading, shown


@dataclass(frozen=True, kw_only=True)
class Measured(ABC):
    """The measured figures of one version; each family has its own.

    Attributes:
        precision: which limits apply.
        size_bytes: of the ONNX file with its weights, or of the engine.
        cpus: threads the speed was measured with.
        raw: its answers to raw inputs; None: they were not compared.
    """

    CHECKS: ClassVar[tuple[Check, ...]]

    precision: str
    size_bytes: int
    cpus: int = field(default_factory=available_cpus)
    raw: RawEvidence | None = None

    @property
    @abstractmethod
    def limits(self) -> Mapping[str, float]:
        """Limits by key of `CHECKS`: what this version must reach; what is not in it has no limit."""

    @classmethod
    @abstractmethod
    def columns(cls, entries: Sequence[Any]) -> list[Column]:
        """The figures that a table of some evidence shows; they fit into 80 columns."""

    @property
    def failures(self) -> list[str]:
        """What misses its limit, as figures; empty: proven."""
        limits = self.limits
        found = (check.failure(self, limits[check.key]) for check in self.CHECKS if check.key in limits)
        return [*(self.raw.failures if self.raw else ()), *filter(None, found)]

    def to_dict(self) -> dict[str, Any]:
        """Give the figures as plain JSON types, with the verdict."""
        failures = self.failures
        plain: dict[str, Any] = _plain(asdict(self))
        raw = self.raw.to_dict() if self.raw else None
        return {**plain, "raw": raw, "failures": failures, "proven": not failures}


@dataclass(frozen=True, kw_only=True)
class Scored(Measured):
    """Figures that may have a metric on labelled data among them.

    Attributes:
        metric: its name; None or "" without such data.
        score, reference_score: of the version, and of the original; None without such data.
    """

    metric: str | None = None
    score: float | None = None
    reference_score: float | None = None

    @property
    def loss(self) -> float | None:
        """What the version loses of the metric."""
        if self.score is None or self.reference_score is None:
            return None
        return self.reference_score - self.score

    @classmethod
    def score_columns(cls, entries: Sequence[Scored]) -> list[Column]:
        """The metric, where there is one: of the version, and of the original."""
        if entries[0].score is None:
            return []
        return [(f"#{entries[0].metric}", lambda entry: f"{entry.score:.2f} of {entry.reference_score:.2f}")]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def evidence_table(entries: Sequence[Measured], title: str, versions: Sequence[int | None] = ()) -> Table:
    """Evidence as people read it: a line a version, its figures, its verdict.

    The first figure is the share of raw inputs that are answered as the original library answers them. The
    JSON has every figure.

    Args:
        versions: of each entry, shown as v1, v2 and so on; None: it is not published.
    """

    def verdict(index: int, entry: Measured) -> str:
        if entry.failures:
            return f"[red]refused: {escape('; '.join(entry.failures))}[/]"
        published = versions and versions[index]
        return f"[green]v{published}[/]" if published else "[green]proven[/]"

    columns: list[Column] = [
        ("precision", lambda entry: entry.precision),
        ("#raw", lambda entry: raw_share(entry.raw.to_dict() if entry.raw else None)),
        *type(entries[0]).columns(entries),
    ]
    refused = any(entry.failures for entry in entries)
    headings = [*(heading for heading, _ in columns), "verdict"]
    made = table(title, headings, wraps=["verdict"] if refused else [])
    for index, entry in enumerate(entries):
        made.add_row(*(shown(entry) for _, shown in columns), verdict(index, entry))
    return made


class Verified:
    """An exported graph whose evidence meets its tolerance, its answers to raw inputs among it.

    Raises:
        NotProven: it does not; the message holds the figures.
    """

    def __init__(self, exported: Exported, evidence: Measured) -> None:
        if evidence.raw is None:
            raise NotProven(f"{evidence.precision} is not published: no answer to a raw input was compared")
        if evidence.failures:
            raise NotProven(f"{evidence.precision} is not published: {'; '.join(evidence.failures)}")
        self.exported = exported
        self.evidence = evidence


def verified(candidates: Mapping[str, Exported], evidence: Mapping[str, Measured]) -> list[Verified]:
    """Those candidates that are proven, in their order. The others are made from the fp32 graph: where that
    misses its tolerance it is wrong, however wide theirs are.

    Raises:
        NotProven: none is; the message holds the figures.
    """
    exact = evidence.get("fp32")
    proven = [
        Verified(graph, evidence[precision])
        for precision, graph in candidates.items()
        if not evidence[precision].failures and not (exact and exact.failures)
    ]
    if not proven:
        reasons = "; ".join(
            f"{name}: {', '.join(entry.failures) or 'made from the same graph'}"
            for name, entry in evidence.items()
        )
        raise NotProven(f"nothing is published, no precision is within tolerance ({reasons})")
    return proven
