"""Evidence as people read it: a line a version, its figures, its verdict. Knows plain dicts only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from shoal.show import table

Row = Mapping[str, Any]
# A heading, as `show.table` reads it, and what stands below it.
Column = tuple[str, Callable[[Row], str]]


def evidence_table(rows: Sequence[Row], title: str) -> Table:
    """Rows of `to_dict` of any evidence of `export`, with a `version` where published.

    The metric's column is headed by the original's figure.
    """
    columns = [*_columns(rows), ("verdict", _verdict)]
    refused = any(row["failures"] for row in rows)
    made = table(title, [heading for heading, _ in columns], wraps=["verdict"] if refused else [])
    for row in rows:
        made.add_row(*(shown(row) for _, shown in columns))
    return made


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


def _encoder(rows: Sequence[Row]) -> list[Column]:
    first = rows[0]
    smaller = any("compression" in row["notes"] for row in rows)
    embeds = first["task"] == "sentence-similarity" and not smaller
    columns = [
        _PRECISION,
        _figure("#MB", "size_bytes", ".1f", 1e6),
        _figure("#max |Δ|", "max_abs_diff", ".1e"),
        _figure("#min cos", "min_cosine", ".5f") if embeds else _figure("#agree", "agreement", ".5f"),
        _figure("#batch inv.", "batch_invariance", ".5f"),
        _figure("#ms ×1", "latency_ms", ".2f"),
        _figure("#rows/s ×32", "throughput", ".0f"),
    ]
    return columns + _score(first)


def _score(first: Row) -> list[Column]:
    """The metric on labelled data, where there are some."""
    if first["score"] is None:
        return []
    return [_figure(f"#{first['metric']} ({first['reference_score']:.2f})", "score", ".2f")]


def _generation(first: Row) -> list[Column]:
    """Perplexity and its rise; greedy answers that are the original's, and that are the same alone and in a
    batch; tokens per second of prefill, and of decoding by batch size."""
    speeds = "decode_tokens_per_second"
    return [
        _PRECISION,
        _figure("#MB", "size_bytes", ".0f", 1e6),
        _figure("#ppl", "perplexity", ".2f"),
        _figure("#rise", "perplexity_rise", "+.1%"),
        _figure("#greedy", "greedy_match", ".0%"),
        _figure("#batch", "batch_invariance", ".0%"),
        _figure("#prefill", "prefill_tokens_per_second", ".0f"),
        *((f"#×{batch}", lambda row, batch=batch: f"{row[speeds][batch]:.0f}") for batch in first[speeds]),
    ]


def _tabular(first: Row) -> list[Column]:
    """Agreement with the original, and rows per second of both."""
    columns = [
        _PRECISION,
        _figure("#kB", "size_bytes", ".0f", 1e3),
        _figure("#max |Δ|", "max_abs_diff", ".0e"),
        _figure("#agree", "agreement", ".1%"),
        _figure("#ms ×1", "latency_ms", ".2f"),
        _figure("#rows/s ×256", "throughput", ",.0f"),
        _figure("#original", "reference_throughput", ",.0f"),
    ]
    if first["value"] is not None:
        columns.append(_figure(f"#{first['metric']} ({first['reference_value']:.4f})", "value", ".4f"))
    return columns


def _text2text(first: Row) -> list[Column]:
    """Logits against the original's, and the tokens they choose; answers, greedy and as served, that are the
    original's, and that are the same alone and in a batch; one answer's milliseconds and the tokens per
    second of eight at once."""
    columns = [
        _PRECISION,
        _figure("#MB", "size_bytes", ".1f", 1e6),
        _figure("#max |Δ|", "logits_max_abs_diff", ".1e"),
        _figure("#tokens", "agreement", ".1%"),
        _figure("#greedy", "greedy_match", ".0%"),
        _figure("#answers", "answer_match", ".0%"),
        _figure("#batch", "batch_invariance", ".0%"),
        _figure("#ms ×1", "latency_ms", ".1f"),
        _figure("#tokens/s ×8", "tokens_per_second", ".0f"),
    ]
    return columns + _score(first)


def _verdict(row: Row) -> str:
    if row["failures"]:
        return f"[red]refused: {'; '.join(row['failures'])}[/]"
    return f"[green]version {row['version']}[/]" if row.get("version") else "[green]proven[/]"
