"""Evidence as people read it: a line a version, its figures, its verdict. Knows plain dicts only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from shoal.show import table

Row = Mapping[str, Any]
# A heading, as `show.table` reads it, and what stands below it.
Column = tuple[str, Callable[[Row], str]]


def evidence_table(rows: Sequence[Row], title: str) -> Table:
    """Rows of `to_dict` of any evidence of `export`, with a `version` where published.

    The first figure is the share of raw inputs that are answered as the original library answers them. What
    stands in a table fits into 80 columns; the JSON has every figure.
    """
    columns = [_PRECISION, _RAW, *_columns(rows), ("verdict", _verdict)]
    refused = any(row["failures"] for row in rows)
    made = table(title, [heading for heading, _ in columns], wraps=["verdict"] if refused else [])
    for row in rows:
        made.add_row(*(shown(row) for _, shown in columns))
    return made


def notes_of(rows: Sequence[Row]) -> list[str]:
    """What was not compared with the original, or cannot be sent to it, each once."""
    return list(dict.fromkeys(note for row in rows for note in (row.get("raw") or {}).get("notes", ())))


def raw_share(evidence: Mapping[str, Any]) -> str:
    """The share of raw inputs that are answered as by the original library; "" where none was compared."""
    raw = evidence.get("raw")
    return f"{100 * raw['agreement']:.4g}%" if raw and raw["inputs"] else ""


def _columns(rows: Sequence[Row]) -> list[Column]:
    first = rows[0]
    if "perplexity" in first:
        return _generation(first)
    if "rows_from" in first:
        return _tabular(first)
    return _text2text(first) if "answer_match" in first else _encoder(rows)


def _figure(heading: str, key: str, form: str, unit: float = 1.0) -> Column:
    """A figure of the evidence; nothing where there is none."""
    return heading, lambda row: "" if row[key] is None else format(row[key] / unit, form)


_PRECISION: Column = ("precision", lambda row: row["precision"])
_RAW: Column = ("#raw", raw_share)


def _encoder(rows: Sequence[Row]) -> list[Column]:
    """Size, parity, batch invariance, speed of one row and of 32."""
    first = rows[0]
    smaller = any("compression" in row["notes"] for row in rows)
    embeds = first["task"] == "sentence-similarity" and not smaller
    score = _score(first, "score", "reference_score", ".2f")
    return [
        _figure("#MB", "size_bytes", ".1f", 1e6),
        *([] if score else [_figure("#max |Δ|", "max_abs_diff", ".1e")]),
        _figure("#cosine", "min_cosine", ".5f") if embeds else _figure("#agree", "agreement", ".5f"),
        _figure("#batch", "batch_invariance", ".5f"),
        _figure("#ms ×1", "latency_ms", ".2f"),
        _figure("#×32/s", "throughput", ".0f"),
        *score,
    ]


def _score(first: Row, key: str, reference: str, form: str) -> list[Column]:
    """The metric on labelled data, where there are some: of the version, and of the original."""
    if first[key] is None:
        return []
    return [(f"#{first['metric']}", lambda row: f"{row[key]:{form}} of {row[reference]:{form}}")]


def _generation(first: Row) -> list[Column]:
    """Perplexity and its rise; greedy answers that are the same alone and in a batch; tokens per second of
    prefill, and of decoding by batch size."""
    speeds = "decode_tokens_per_second"
    return [
        _figure("#MB", "size_bytes", ".0f", 1e6),
        _figure("#ppl", "perplexity", ".2f"),
        _figure("#rise", "perplexity_rise", "+.1%"),
        _figure("#batch", "batch_invariance", ".0%"),
        _figure("#prefill", "prefill_tokens_per_second", ".0f"),
        *((f"#×{batch}", lambda row, batch=batch: f"{row[speeds][batch]:.0f}") for batch in first[speeds]),
    ]


def _tabular(first: Row) -> list[Column]:
    """Size, largest difference of a score, agreement of labels, speed of one row and of 256."""
    return [
        _figure("#kB", "size_bytes", ".0f", 1e3),
        _figure("#max |Δ|", "max_abs_diff", ".0e"),
        _figure("#agree", "agreement", ".1%"),
        _figure("#ms ×1", "latency_ms", ".2f"),
        _figure("#×256/s", "throughput", ",.0f"),
        *_score(first, "value", "reference_value", ".4f"),
    ]


def _text2text(first: Row) -> list[Column]:
    """Logits against the original's, and the tokens they choose; answers that are the same alone and in a
    batch; one answer's milliseconds and the tokens per second of eight at once."""
    score = _score(first, "score", "reference_score", ".2f")
    return [
        _figure("#MB", "size_bytes", ".1f", 1e6),
        *([] if score else [_figure("#max |Δ|", "logits_max_abs_diff", ".1e")]),
        _figure("#tokens", "agreement", ".1%"),
        _figure("#batch", "batch_invariance", ".0%"),
        _figure("#ms ×1", "latency_ms", ".1f"),
        _figure("#×8/s", "tokens_per_second", ".0f"),
        *score,
    ]


def _verdict(row: Row) -> str:
    if row["failures"]:
        return f"[red]refused: {escape('; '.join(row['failures']))}[/]"
    return f"[green]version {row['version']}[/]" if row.get("version") else "[green]proven[/]"
