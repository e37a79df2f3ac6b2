"""How a network shares the CPUs of a machine, and the rule that chooses it from measured figures.

A default is left only for what is clearly faster and does not keep a single text waiting, and on a machine
that does nothing else: what is measured in seconds is noisy, and no choice should change with noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from export.speed import is_crowded
from serving.onnxruntime.batching import GROUP_TOKENS, RUN_TOKENS

# Of the default's rows per second, and of its time of a single text.
FASTER, SLOWER = 1.10, 1.25
# Of an instance, by VmRSS: a process with ONNX Runtime took 59 MB, and the 24 MB of all-MiniLM-L6-v2 in INT8
# took 47 more, since weights are packed for the kernels, too.
PROCESS_BYTES, COPIES = 64 << 20, 2
# Of the memory, what the instances of one network may take.
SHARE = 0.25

RECIPE, ONE_CPU, MEASURED = "recipe", "one CPU", "measured"


@dataclass(frozen=True)
class Setting:
    """How a network runs.

    Attributes:
        instances: sessions that share the CPUs.
        max_run_tokens, max_run_padding: see `serving.onnxruntime.batching.grouped`.
    """

    instances: int = 1
    max_run_tokens: int = GROUP_TOKENS
    max_run_padding: int = RUN_TOKENS

    def threads(self, cpus: int) -> int:
        """Of each instance."""
        return max(1, cpus // self.instances)


@dataclass(frozen=True)
class Figures:
    """What was measured of a setting.

    Attributes:
        rows_per_second: under many callers, texts of different lengths.
        single_ms: a text alone, milliseconds on average over short and long ones.
    """

    setting: Setting
    rows_per_second: float
    single_ms: float


@dataclass(frozen=True)
class Comparison:
    """Settings that were measured beside each other.

    Attributes:
        figures: the default's first.
        cpus: that could be used.
        others: CPUs of these that other processes took meanwhile.
    """

    figures: tuple[Figures, ...]
    cpus: int
    others: float = 0.0

    @property
    def chosen(self) -> Setting:
        """What is served."""
        return self.figures[0].setting if self.crowded else choose(self.figures)

    @property
    def crowded(self) -> bool:
        """Whether others took so much that nothing can be said."""
        return is_crowded(self.others, self.cpus)

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain JSON types."""
        figures = [
            {
                **asdict(entry.setting),
                "threads": entry.setting.threads(self.cpus),
                "rows_per_second": entry.rows_per_second,
                "single_ms": entry.single_ms,
            }
            for entry in self.figures
        ]
        return {"others": self.others, "crowded": self.crowded, "figures": figures}


@dataclass(frozen=True)
class Choice:
    """A setting, and why it was chosen.

    Attributes:
        because: `recipe`, `one CPU` or `measured`.
        cpus: that could be used.
        callers: that asked at once; 0: nothing was measured.
        compared: the default of a later comparison is what the one before it chose.
    """

    setting: Setting
    because: str
    cpus: int
    callers: int = 0
    compared: tuple[Comparison, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain JSON types, for the evidence; `setting_of` reads it."""
        about = {"because": self.because, "cpus": self.cpus, "callers": self.callers}
        compared = [comparison.to_dict() for comparison in self.compared]
        return {**asdict(self.setting), **about, "compared": compared}


def setting_of(serving: Mapping[str, Any] | None) -> Setting:
    """The setting in evidence; the default where nothing was chosen."""
    return Setting(**{key: serving[key] for key in asdict(Setting())}) if serving else Setting()


def choose(figures: Sequence[Figures]) -> Setting:
    """The fastest of the settings that may take the default's place; else the default.

    Args:
        figures: at least the default's, which is the first.
    """
    default, *others = figures
    better = [
        entry
        for entry in others
        if entry.rows_per_second >= FASTER * default.rows_per_second
        and entry.single_ms <= SLOWER * default.single_ms
    ]
    return max(better, key=lambda entry: entry.rows_per_second, default=default).setting


def instance_counts(cpus: int, size_bytes: int, memory_bytes: int) -> list[int]:
    """Numbers of instances worth comparing: one with all CPUs, and such with four threads and with one each.

    Args:
        size_bytes: of the file with the weights, which each instance holds.
        memory_bytes: of the machine; a quarter of it is enough for one network.
    """
    counts = {cpus, *([cpus // 4] if cpus >= 8 else [])} - {1}
    most = SHARE * memory_bytes / (COPIES * size_bytes + PROCESS_BYTES)
    return [1, *sorted(count for count in counts if count <= most)]
