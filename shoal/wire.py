"""How a column of a table is called on the wire: one rule for those who export and those who call."""

from __future__ import annotations

import re

FEATURES = "features"  # all columns of numbers in one input
_TAKEN = {FEATURES, "label", "score", "prediction"}  # an input and an output cannot share a name


def wire_name(column: str) -> str:
    """Letters, digits, `_`, `-` and `.`, which no protocol or shell minds: `fare paid` is `fare_paid`."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", column) or "_"
    return f"{name}_" if name in _TAKEN else name
