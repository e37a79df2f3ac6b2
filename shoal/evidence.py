"""What the command says of the evidence in a manifest. Knows plain dicts only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def notes_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was not compared with the original, or cannot be sent to it, each once.

    Args:
        rows: evidence as plain types.
    """
    return list(dict.fromkeys(note for row in rows for note in (row.get("raw") or {}).get("notes", ())))


def raw_share(raw: Mapping[str, Any] | None) -> str:
    """The share of raw inputs that are answered as by the original library; "" where none was compared.

    Args:
        raw: the entry `raw` of evidence.
    """
    return f"{100 * raw['agreement']:.4g}%" if raw and raw["inputs"] else ""
