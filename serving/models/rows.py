"""Rows of a table in, what the network reads out: the first step of an estimator's ensemble.

A value that the original refuses (a category it never saw, a missing or an infinite number) is an error of
its own request that names row, column and value. ONNX Runtime would answer such a row all the same, or fail
every request of its batch without a name. Columns of texts become counted terms; all other columns pass as
they are.

Parameters in config.pbtxt, all optional: `max_text_bytes` of one text, `max_request_terms`, the terms that
are counted in one request, padding included, and `max_queue_size` of `serving.models.admission`.

What it needs to know lies in `rows.json` beside it, as `Reader.to_json` writes it. Its inputs and outputs are
those of its config. Needs numpy alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import heartbeat
from serving.models.admission import Admission
from serving.models.backend_utils import version_folder
from serving.models.responses import answers, inputs
from serving.models.terms import Terms, inputs_of
from serving.parameters import parameters_of

FILENAME = "rows.json"
MAX_TEXT_BYTES = 1 << 18
MAX_REQUEST_TERMS = 1 << 21
LIMITS = ("max_text_bytes", "max_request_terms")
_MOST_SHOWN = 100  # characters of a text in an error
_MOST_NAMED = 8  # known categories that an error lists


class BadRow(ValueError):
    """A row holds what the original refuses; the message names row, column and value."""


@dataclass(frozen=True)
class Check:
    """What a column may hold.

    Attributes:
        column: its name, as the estimator knows it.
        input: the input that holds it.
        place: which column of that input.
        missing: whether NaN, or of text the empty string, is taken.
        infinite, minus_infinite: whether infinity is.
        least, most: bounds of a number that is not missing; None: none.
        known: all values that are taken, of text or of numbers; None: any.
    """

    column: str
    input: str
    place: int = 0
    missing: bool = True
    infinite: bool = True
    minus_infinite: bool = True
    least: float | None = None
    most: float | None = None
    known: tuple[Any, ...] | None = None

    @property
    def takes_all(self) -> bool:
        """Whether there is nothing to check."""
        return self == Check(self.column, self.input, self.place)

    def refused_text(self, values: NDArray) -> NDArray[np.bool_]:
        """Which of the str objects [rows] are not taken."""
        return np.array([self._reason_of_text(text) != "" for text in values.tolist()], dtype=bool)

    def reason(self, value: Any) -> str:
        """Why a value is not taken; "": it is."""
        return self._reason_of_text(value) if isinstance(value, str) else self._reason_of_number(value)

    def _reason_of_text(self, text: str) -> str:
        if text in self._known:
            return ""
        if text == "":
            return "" if self.missing else "the value is missing, and the model takes none that is"
        if self.known is None:
            return ""
        return f"{_shortened(text)!r} is none of the categories that the model knows: {self._listed()}"

    def _reason_of_number(self, number: Any) -> str:
        if np.isnan(number):
            return "" if self.missing else "the value is missing (NaN), and the model takes none that is"
        if np.isinf(number):
            taken = self.infinite if number > 0 else self.minus_infinite
            return "" if taken else f"{number} is not a finite number"
        if self.known is not None and number not in np.array(self.known, dtype=number.dtype):
            return f"{_plain(number)} is none of the categories that the model knows: {self._listed()}"
        if self.least is not None and number < self.least:
            return f"{_plain(number)} is below {self.least!r}, the least that the model takes"
        if self.most is not None and number > self.most:
            return f"{_plain(number)} is above {self.most!r}, the most that the model takes"
        return ""

    @cached_property
    def _known(self) -> frozenset[Any]:
        return frozenset(self.known or ())

    def _listed(self) -> str:
        names = [repr(_shortened(_plain(value))) for value in self.known or ()]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        return ", ".join(names[:_MOST_NAMED]) + more


def _shortened(value: Any) -> Any:
    """A text of which a message holds the beginning."""
    return f"{value[:_MOST_SHOWN]}..." if isinstance(value, str) and len(value) > _MOST_SHOWN else value


def _plain(value: Any) -> Any:
    """A number as a person writes it: 3 for 3.0."""
    if isinstance(value, str):
        return value
    number = float(str(value))  # the shortest that is the same float32
    return int(number) if np.isfinite(number) and number == int(number) and abs(number) < 1e15 else number


class _Numbers:
    """The checks of the columns of one input of numbers, all at once."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self._checks = checks
        self._places = [check.place for check in checks]
        self._missing, self._infinite, self._minus_infinite = (
            np.array([not getattr(check, name) for check in checks])
            for name in ("missing", "infinite", "minus_infinite")
        )
        self._least = np.array([-np.inf if check.least is None else check.least for check in checks])
        self._most = np.array([np.inf if check.most is None else check.most for check in checks])
        self._known = [(place, np.array(c.known)) for place, c in enumerate(checks) if c.known is not None]

    def check(self, given: NDArray) -> None:
        """Look at numbers [rows, columns].

        Raises:
            BadRow: the first that is refused.
        """
        values = given[:, self._places]
        bad = np.isnan(values) & self._missing
        infinite = np.isinf(values)
        if infinite.any():
            bad |= infinite & np.where(values > 0, self._infinite, self._minus_infinite)
        bad |= ~infinite & ((values < self._least) | (values > self._most))
        for place, known in self._known:
            column = values[:, place]
            bad[:, place] |= np.isfinite(column) & ~np.isin(column, known.astype(column.dtype))
        if bad.any():
            row, place = divmod(int(bad.argmax()), bad.shape[1])
            found = self._checks[place]
            raise BadRow(f"row {row}, column {found.column!r}: {found.reason(values[row, place])}")


@dataclass(frozen=True)
class Reader:
    """Turns the inputs of a request into those of the network.

    Attributes:
        checks: of the columns that do not take everything.
        texts: what is counted in columns of texts, in the order of the network's inputs.
    """

    checks: tuple[Check, ...]
    texts: tuple[Terms, ...]

    @cached_property
    def _by_input(self) -> dict[str, _Numbers]:
        names = dict.fromkeys(check.input for check in self.checks)
        return {name: _Numbers([check for check in self.checks if check.input == name]) for name in names}

    @classmethod
    def from_json(cls, text: str) -> Reader:
        """See `to_json`."""
        values = json.loads(text)
        checks = []
        for entry in values["checks"]:
            known = None if entry["known"] is None else tuple(entry["known"])
            checks.append(Check(**{**entry, "known": known}))
        return cls(tuple(checks), tuple(Terms.from_dict(entry) for entry in values["texts"]))

    def to_json(self) -> str:
        """The content of `rows.json`."""
        checks = [asdict(check) for check in self.checks]
        return json.dumps({"checks": checks, "texts": [terms.to_dict() for terms in self.texts]}, indent=1)

    def read(
        self,
        given: Mapping[str, NDArray],
        *,
        max_text_bytes: int = MAX_TEXT_BYTES,
        max_request_terms: int = MAX_REQUEST_TERMS,
    ) -> dict[str, NDArray]:
        """The network's inputs.

        Args:
            given: arrays by input, numbers or bytes objects, [rows, columns].
            max_text_bytes: of one text.
            max_request_terms: that each column of texts may have, padding included.

        Raises:
            BadRow: a value is refused, or a text is too long or not UTF-8.
            TooManyTerms: the texts have more.
        """
        for name, array in given.items():
            if array.dtype == object:
                _check_lengths(name, array, max_text_bytes)
        for name, checks in self._by_input.items():
            if given[name].dtype != object:
                checks.check(given[name])
        texts = {name: _decoded(name, array[:, 0]) for name, array in given.items() if array.dtype == object}
        for check in self.checks:
            if check.input in texts:
                column = texts[check.input]
                bad = check.refused_text(column)
                if bad.any():
                    row = int(bad.argmax())
                    raise BadRow(f"row {row}, column {check.column!r}: {check.reason(column[row])}")
        documents = {terms.column for terms in self.texts}
        made = {name: array for name, array in given.items() if name not in documents}
        for number, terms in enumerate(self.texts):
            counted = terms.arrays(texts[terms.column].tolist(), max_request_terms)
            made |= dict(zip(inputs_of(number), counted, strict=True))
        return made


def _check_lengths(name: str, texts: NDArray, most: int) -> None:
    for row, text in enumerate(texts[:, 0]):
        if len(text) > most:
            raise BadRow(f"row {row}, column {name!r} has {len(text)} bytes, at most {most} are accepted")


def _decoded(name: str, column: NDArray) -> NDArray:
    made = np.empty(len(column), dtype=object)
    for row, text in enumerate(column):
        try:
            made[row] = text.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"byte {error.start} is 0x{text[error.start]:02x}"
            raise BadRow(f"row {row}, column {name!r}: the text is not UTF-8: {byte}") from None
    return made


class TritonPythonModel:
    """Triton's interface: the columns of a table, each checked, to what the network reads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read `rows.json` from the version's folder."""
        heartbeat.start()
        config = json.loads(args["model_config"])
        path = version_folder(args) / FILENAME
        self._reader = Reader.from_json(path.read_text(encoding="utf-8"))
        self._inputs: Sequence[str] = [entry["name"] for entry in config["input"]]
        self._admission = Admission.of(args["model_name"], config)
        self._limits = {name: int(text) for name, text in parameters_of(config).items() if name in LIMITS}

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order; a bad row fails its own request only."""
        return answers(requests, self._read, self._admission)

    def _read(self, request: Any) -> dict[str, NDArray]:
        given = dict(zip(self._inputs, inputs(request, *self._inputs), strict=True))
        return self._reader.read(given, **self._limits)
