"""The numbers of a JSON schema, kept to the digit.

llguidance reads them as doubles, and counts in integers of 64 bits and remainders of 32. A number that would
come out as another one is refused here, or replaced by one that leaves the answer right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context, Decimal
from fractions import Fraction
from typing import Any

DIGITS = 15  # a double keeps as many, whatever they are
LARGE_DIGITS = 13  # and of a whole number from 2^53 to 10^17 as many
LARGEST = Decimal(10) ** 17  # of a bound
INTEGERS = 2**63
FARTHEST = 330  # powers of ten
LONGEST = 1_100  # characters of a number; a double has at most 767 digits that count
WHOLE = 2**53  # a double that is larger may be the same after adding one
REMAINDERS = 2**32
LARGEST_STEP = 10_000  # a multipleOf in units of its last decimal; the time to compile it grows with it
LISTED = 256  # so few multiples between two bounds are written as a list
LOWER, UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")


class Written(float):
    """A number that remembers the digits of its JSON text: `parse_float` of `json.loads`."""

    text: str

    def __new__(cls, text: str) -> Written:
        made = super().__new__(cls, text)
        made.text = text
        return made


def is_number(value: Any) -> bool:
    """Whether JSON calls it a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def exactly(value: float) -> Decimal:
    """A number as it was written.

    Raises:
        ValueError: it is NaN or infinite, which JSON has no word for, or far beyond what a double can hold.
    """
    if not isinstance(value, int | Written) and not math.isfinite(value):
        raise ValueError(f"{value} is no number of JSON")
    if isinstance(value, Written) and len(value.text) > LONGEST:
        raise ValueError(f"{shown(value)} has more digits than a double can hold")
    meant = Decimal(value.text if isinstance(value, Written) else repr(value))
    if abs(meant.adjusted()) > FARTHEST:
        raise ValueError(f"{shown(value)} is beyond what a double can hold")
    return meant


def survives(value: float) -> bool:
    """Whether a double, a 64-bit integer, and the digits that are written of them, are still this number."""
    meant = exactly(value)
    if abs(meant) >= INTEGERS:
        return False
    read = float(value)
    return Decimal(repr(read)) == meant and (not read.is_integer() or int(read) == meant)


def shown(value: float) -> str:
    """A number for a message, which need not hold all of its digits."""
    text = value.text if isinstance(value, Written) else str(value)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} characters)"


def keep(schema: dict[str, Any]) -> None:
    """Make the bounds and the `multipleOf` of a schema, in place, what comes out right.

    Bounds are drawn in, never let out: to 15 digits (13 beyond 2^53), 15 decimals and 10^17. Values of `enum`
    and `const` are compared with them here, to the digit.

    Raises:
        ValueError: no number is left, or one cannot be kept; says which and why.
    """
    for plain, exclusive in (LOWER, UPPER):
        if isinstance(schema.get(exclusive), bool) and schema.pop(exclusive) and plain in schema:
            schema[exclusive] = schema.pop(plain)  # as draft 4 wrote it
    for name in (*LOWER, *UPPER, "multipleOf"):
        if name in schema and not is_number(schema[name]):
            raise ValueError(f"{name} must be a number")
    if "multipleOf" in schema:
        _check_multiple(schema["multipleOf"])
    if "enum" in schema or "const" in schema:
        _choose(schema)
    before = _limits(schema)
    for names, up in ((LOWER, True), (UPPER, False)):
        _draw_in(schema, names, up)
    after = _limits(schema)
    if None not in after and None not in before and before[0] <= before[1] and after[0] > after[1]:
        raise ValueError(
            f"no number from {before[0]} to {before[1]} can be written, as a double cannot hold it"
        )
    if "multipleOf" in schema:
        _keep_multiple(schema)


def part(schemas: Sequence[dict[str, Any]]) -> None:
    """Draw in, in place, what must not be reached, where llguidance would let it be reached.

    It forgets that a whole bound is exclusive where the other bound, of the same schema or one that is merged
    with it, has the same whole part: of numbers above 2 and up to 2.5, it takes 2 for one.
    """
    for (_, strict), others, sign in ((LOWER, UPPER, 1), (UPPER, LOWER, -1)):
        limits = {_turned(s[name], sign) for s in schemas for name in others if is_number(s.get(name))}
        wholes = {int(limit) for limit in limits if limit > int(limit) >= 0}
        for schema in schemas:
            if not is_number(schema.get(strict)):
                continue
            bound = _turned(schema[strict], sign)
            if bound == int(bound) and int(bound) in wholes:
                step = Decimal(1).scaleb(min(bound.adjusted() + 1, DIGITS) - DIGITS)
                schema[strict] = float((bound + step) * sign)


def check_together(schemas: Sequence[dict[str, Any]]) -> None:
    """Refuse several `multipleOf` whose common multiples would overflow, should their schemas be merged.

    Raises:
        ValueError: says which.
    """
    steps = sorted({exactly(s["multipleOf"]) for s in schemas if is_number(s.get("multipleOf"))})
    scale = max((_parts(step)[1] for step in steps), default=0)
    if math.prod(int(step * 10**scale) for step in steps) >= REMAINDERS:
        raise ValueError(f"multipleOf {', '.join(map(str, steps))}: their common multiples are too large")


def _limits(schema: dict[str, Any]) -> tuple[Any, Any]:
    least, most = (
        [exactly(schema[name]) for name in names if is_number(schema.get(name))] for names in (LOWER, UPPER)
    )
    return max(least, default=None), min(most, default=None)


def _turned(value: float, sign: int) -> Decimal:
    """A bound, or what it is once all numbers are negated: an upper bound is a lower one then."""
    return exactly(value) if sign > 0 else exactly(value).copy_negate()


def _choose(schema: dict[str, Any]) -> None:
    """Leave out the numbers of `enum` and `const` that bounds and `multipleOf` beside them do not allow."""
    low, high = _limits(schema)
    left_out = {exactly(schema[n]) for n in (LOWER[1], UPPER[1]) if is_number(schema.get(n))}
    step: Any = schema.get("multipleOf")

    def fits(value: Any) -> bool:
        if not is_number(value) or not survives(value):
            return True  # it is none, or is refused later
        meant = exactly(value)
        whole = not is_number(step) or Fraction(meant) % Fraction(exactly(step)) == 0
        inside = (low is None or low <= meant) and (high is None or meant <= high)
        return whole and inside and meant not in left_out

    if "const" in schema and not fits(schema["const"]):
        raise ValueError(f"const is {shown(schema['const'])}, which the keywords beside it do not allow")
    if isinstance(values := schema.get("enum"), list):
        schema["enum"] = [value for value in values if fits(value)]
        if values and not schema["enum"]:
            raise ValueError("the keywords beside enum allow none of its values")
    for name in (*LOWER, *UPPER, "multipleOf"):
        schema.pop(name, None)


def _draw_in(schema: dict[str, Any], names: tuple[str, str], up: bool) -> None:
    """Leave the tighter bound of a side, and that inwards of what was meant where it could not be kept."""
    plain, exclusive = names
    bounds = {name: schema.pop(name) for name in names if is_number(schema.get(name))}
    if not bounds:
        return
    sign = 1 if up else -1
    name = max(bounds, key=lambda name: (_turned(bounds[name], sign), name == exclusive))
    meant = _turned(bounds[name], sign)
    if meant > LARGEST:
        raise ValueError(f"{name} is {shown(bounds[name])}, it must lie within 10^17")
    kept = max(meant, -LARGEST)
    large = abs(kept) >= WHOLE
    beyond = Decimal(int(large and name == exclusive))
    if beyond or (kept == meant and not survives(bounds[name])):
        kept = Context(prec=LARGE_DIGITS if large else DIGITS, rounding=ROUND_CEILING).add(kept, beyond)
    if kept.as_tuple().exponent < -DIGITS:  # type: ignore[operator]
        kept = kept.quantize(Decimal(1).scaleb(-DIGITS), ROUND_CEILING, Context(prec=2 * DIGITS))
    value = kept * sign
    schema[plain if kept > meant else name] = int(value) if value == int(value) else float(value)


def _check_multiple(given: float) -> None:
    meant = exactly(given)
    if meant <= 0:
        raise ValueError(f"multipleOf is {shown(given)}, it must be above zero")
    if not -DIGITS <= meant.adjusted() <= DIGITS:
        raise ValueError(f"multipleOf is {shown(given)}, it must lie between 10^-15 and 10^15")


def _parts(value: Decimal) -> tuple[int, int]:
    """A number as whole / 10 ** decimals."""
    sign, digits, exponent = value.normalize(Context(prec=10_000)).as_tuple()
    whole = int("".join(map(str, digits))) * (-1) ** sign
    assert isinstance(exponent, int)  # noqa: S101 - a finite number
    return (whole * 10**exponent, 0) if exponent > 0 else (whole, -exponent)


def _keep_multiple(schema: dict[str, Any]) -> None:
    given = schema["multipleOf"]
    meant = exactly(given)
    types = schema.get("type", [])
    numeric = {"number", "integer"} & set([types] if isinstance(types, str) else types)
    if numeric == {"integer"}:  # a whole multiple of 3/10 is a multiple of 3
        meant = Decimal(Fraction(meant).numerator)
        schema["multipleOf"] = int(meant)
    if types in ("integer", "number") and _list(schema, meant):
        return
    whole, decimals = _parts(meant)
    if _read(float(meant)) != (whole, decimals):
        raise ValueError(f"multipleOf is {shown(given)}, which a double does not hold closely enough")
    if whole > LARGEST_STEP:
        raise ValueError(
            f"multipleOf is {shown(given)}, it must be at most {LARGEST_STEP} in units of its last decimal, "
            f"or have bounds with at most {LISTED} multiples between them"
        )


def _read(value: float) -> tuple[int, int]:
    """Whole and decimals as llguidance finds them, by steps that may round."""
    decimals = 0
    while value % 1:
        value, decimals = value * 10, decimals + 1
    whole = int(value)
    while decimals and whole % 10 == 0:
        whole, decimals = whole // 10, decimals - 1
    return whole, decimals


def _list(schema: dict[str, Any], step: Decimal) -> bool:
    """Write the multiples between two bounds as a list, if they are few: the bounds are kept exactly then."""
    low, high = _limits(schema)
    if low is None or high is None:
        return False
    first, last = math.ceil(Fraction(low) / Fraction(step)), math.floor(Fraction(high) / Fraction(step))
    if last - first >= LISTED:
        return False
    between = [Fraction(step) * n for n in range(first, last + 1)]
    left_out = {exactly(schema[n]) for n in (LOWER[1], UPPER[1]) if is_number(schema.get(n))}
    values = [int(v) if v.denominator == 1 else float(v) for v in between if v not in left_out]
    if not values:
        raise ValueError(f"no multiple of {step} lies between {low} and {high}")
    if not {Fraction(exactly(v)) for v in values} <= set(between):
        return False
    for name in (*LOWER, *UPPER, "multipleOf"):
        schema.pop(name, None)
    schema["enum"] = values
    return True
