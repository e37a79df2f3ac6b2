"""The figures of a version's answers to raw inputs, and what they must reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# Inputs that a version may refuse although the original answers them: what leaves no room in a sequence.
MOST_REFUSED = 0.1


@dataclass(frozen=True)
class RawTolerance:
    """When two answers agree, and how many must.

    Attributes:
        distance: see `export.raw.agreement.Apart`; of what chooses nothing, or of an exact version.
        share: of the inputs.
        choice: whether it is enough that both choose the same.
    """

    distance: float
    share: float = 1.0
    choice: bool = False


@dataclass(frozen=True)
class RawEvidence:
    """How a version's answers to raw inputs agree with those of the original library.

    Attributes:
        original: the library, its version and the call.
        inputs: how many both answered.
        agreement: share of them on which they agree.
        largest: the largest distance of two answers that can be compared by numbers.
        tokens: share of the inputs, and of some that are only read, whose token ids are those of the
            library's tokenizer; None: it has none.
        failed: inputs for which the original itself raises.
        refused: inputs that the version refuses and the original answers.
        worst: the input on which they disagree most, both answers, and of token ids the setting at fault.
        tolerance: what is asked.
        notes: what was not compared, and why.
    """

    original: str
    inputs: int
    agreement: float
    largest: float
    tokens: float | None
    failed: int
    refused: int
    worst: Mapping[str, Any] | None
    tolerance: RawTolerance
    notes: tuple[str, ...] = field(default=())

    @property
    def failures(self) -> list[str]:
        """What misses, with the input that shows it; empty: nothing."""
        said = []
        asked = self.inputs + self.failed + self.refused
        if not asked and self.notes:  # there is nothing to compare with, and the notes say why
            return []
        if not self.inputs:
            reason = self.worst["original"] if self.worst else "no reason given"
            return [f"{self.original} answers none of the raw inputs: {reason}"]
        if self.tokens is not None and self.tokens < 1:
            said.append(f"token ids agree on {self.tokens:.1%} of the raw inputs{self._shown}")
        elif not self.agreement >= self.tolerance.share:
            share = f"{self.agreement:.1%} < {self.tolerance.share:.0%}"
            said.append(f"raw inputs agree {share}{self._shown}")
        if self.refused > MOST_REFUSED * (self.inputs + self.refused):
            said.append(f"{self.refused} raw inputs are refused{self._shown}")
        return said

    @property
    def _shown(self) -> str:
        if self.worst is None:
            return ""
        about = f" ({self.worst['cause']})" if self.worst.get("cause") else ""
        return (
            f": for {self.worst['input']} the original gives {self.worst['original']}, this version"
            f" {self.worst['version']}{about}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Give the figures as plain JSON types, with the verdict."""
        values = asdict(self) | {"notes": list(self.notes), "failures": self.failures}
        if values["largest"] == float("inf"):  # JSON has none
            values["largest"] = None
        return values
