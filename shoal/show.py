"""Results as people read them: tables and short lines. Knows plain dicts only."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import JustifyMethod
from rich.table import Table


def table(title: str, columns: Sequence[str], *, wraps: Collection[str] = ()) -> Table:
    """A table in the house style: a column named with a leading `#` holds figures, those in `wraps` text
    that may need several lines."""
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        name = column.removeprefix("#")
        justify: JustifyMethod = "right" if column.startswith("#") else "left"
        made.add_column(name, justify=justify, overflow="fold", no_wrap=name not in wraps)
    return made


def evidence_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Rows of `Evidence.to_dict` or of `GenerationEvidence.to_dict`, with a `version` where published.

    The metric's column is headed by the original's figure.
    """
    if "perplexity" in rows[0]:
        return _generation_table(rows, title)
    scored = any(row["score"] is not None for row in rows)
    ranks = any(row["agreement"] is not None for row in rows)
    metric = f"{rows[0]['metric']} ({rows[0]['reference_score']:.2f})" if scored else ""
    columns = ["precision", "#MB", "#max |Δ|", "#agree" if ranks else "#min cos", "#batch inv."]
    made = table(
        title,
        [*columns, "#ms ×1", "#rows/s ×32", *([f"#{metric}"] if scored else []), "verdict"],
        wraps=["verdict"] if any(row["failures"] for row in rows) else [],
    )
    for row in rows:
        made.add_row(
            row["precision"],
            f"{row['size_bytes'] / 1e6:.1f}",
            f"{row['max_abs_diff']:.1e}",
            f"{row['agreement']:.1%}" if ranks else f"{row['min_cosine']:.5f}",
            f"{row['batch_invariance']:.5f}",
            f"{row['latency_ms']:.2f}",
            f"{row['throughput']:.0f}",
            *([f"{row['score']:.2f}"] if scored else []),
            _verdict(row),
        )
    return made


def _generation_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Perplexity and its rise; greedy answers that are the original's, and that are the same alone and in a
    batch; tokens per second of prefill, and of decoding by batch size."""
    batches = list(rows[0]["decode_tokens_per_second"])
    columns = ["precision", "#MB", "#ppl", "#rise", "#greedy", "#batch", "#prefill"]
    made = table(
        title,
        [*columns, *(f"#×{batch}" for batch in batches), "verdict"],
        wraps=["verdict"] if any(row["failures"] for row in rows) else [],
    )
    for row in rows:
        made.add_row(
            row["precision"],
            f"{row['size_bytes'] / 1e6:.0f}",
            f"{row['perplexity']:.2f}",
            f"{row['perplexity_rise']:+.1%}",
            f"{row['greedy_match']:.0%}",
            f"{row['batch_invariance']:.0%}",
            f"{row['prefill_tokens_per_second']:.0f}",
            *(f"{row['decode_tokens_per_second'][batch]:.0f}" for batch in batches),
            _verdict(row),
        )
    return made


def _verdict(row: Mapping[str, Any]) -> str:
    if row["failures"]:
        return f"[red]refused: {'; '.join(row['failures'])}[/]"
    return f"[green]version {row['version']}[/]" if row.get("version") else "[green]proven[/]"


def curl_line(http: str, model: str, text: str = "Fish swim in shoals.", *, generates: bool = False) -> str:
    """The command to try a text model by hand; one that generates streams."""
    if generates:
        body = json.dumps({"text_input": text, "stream": True, "sampling_parameters": '{"max_tokens": 20}'})
        return f"curl -sN http://{http}/v2/models/{model}/generate_stream -d {shlex.quote(body)}"
    body = f'{{"inputs":[{{"name":"text","shape":[1,1],"datatype":"BYTES","data":["{text}"]}}]}}'
    return f"curl -s http://{http}/v2/models/{model}/infer -d {shlex.quote(body)}"
