"""Times and shares, as people write them: 20m, 2h, 5%, 0.05."""

from __future__ import annotations

import re

from shoal.errors import UsageError

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def seconds(option: str, text: str, least: float) -> float:
    """A time, in seconds.

    Raises:
        UsageError: it is none, or shorter than `least`.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if found is None or float(found[1]) * _UNITS[found[2]] < least:
        raise UsageError(f"{option} {text} is no time of {least:g} s or more", hint="write 20m")
    return float(found[1]) * _UNITS[found[2]]


def share(option: str, text: str) -> float:
    """A share, such as 0.05.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    if found is None:
        raise UsageError(f"{option} {text} is no share", hint="write 2%, or 0.02")
    return float(found[1]) / (100 if found[2] else 1)
