"""Results as people read them: tables and short lines. Knows plain dicts only."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from math import hypot
from typing import Any

from rich import box
from rich.console import JustifyMethod
from rich.markup import escape
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
    """Rows of `to_dict` of any evidence of `export`, with a `version` where published.

    The metric's column is headed by the original's figure.
    """
    if "perplexity" in rows[0]:
        return _generation_table(rows, title)
    if "rows_from" in rows[0]:
        return _tabular_table(rows, title)
    if "answer_match" in rows[0]:
        return _text2text_table(rows, title)
    scored = any(row["score"] is not None for row in rows)
    smaller = any("compression" in row["notes"] for row in rows)
    embeds = rows[0]["task"] == "sentence-similarity"
    closeness = "agreement" if smaller or not embeds else "min_cosine"
    metric = f"{rows[0]['metric']} ({rows[0]['reference_score']:.2f})" if scored else ""
    columns = [
        "precision",
        "#MB",
        "#max |Δ|",
        "#min cos" if closeness == "min_cosine" else "#agree",
        "#batch inv.",
    ]
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
            "" if row[closeness] is None else f"{row[closeness]:.5f}",
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


def _tabular_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Agreement with the original, and rows per second of both."""
    columns = ["precision", "#kB", "#max |Δ|", "#agree", "#ms ×1", "#rows/s ×256", "#original"]
    scored = [row for row in rows if row["value"] is not None]
    metric = f"{rows[0]['metric']} ({rows[0]['reference_value']:.4f})" if scored else ""
    made = table(
        title,
        [*columns, *([f"#{metric}"] if scored else []), "verdict"],
        wraps=["verdict"] if any(row["failures"] for row in rows) else [],
    )
    for row in rows:
        made.add_row(
            row["precision"],
            f"{row['size_bytes'] / 1e3:.0f}",
            f"{row['max_abs_diff']:.0e}",
            f"{row['agreement']:.1%}",
            f"{row['latency_ms']:.2f}",
            f"{row['throughput']:,.0f}",
            f"{row['reference_throughput']:,.0f}",
            *([f"{row['value']:.4f}"] if scored else []),
            _verdict(row),
        )
    return made


def _text2text_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Logits against the original's; answers, greedy and as served, that are the original's, and that are the
    same alone and in a batch; one answer's milliseconds and the tokens per second of eight at once."""
    columns = ["precision", "#MB", "#max |Δ|", "#greedy", "#answers", "#batch", "#ms ×1", "#tokens/s ×8"]
    made = table(
        title, [*columns, "verdict"], wraps=["verdict"] if any(row["failures"] for row in rows) else []
    )
    for row in rows:
        made.add_row(
            row["precision"],
            f"{row['size_bytes'] / 1e6:.1f}",
            f"{row['logits_max_abs_diff']:.1e}",
            *(f"{row[key]:.0%}" for key in ("greedy_match", "answer_match", "batch_invariance")),
            f"{row['latency_ms']:.1f}",
            f"{row['tokens_per_second']:.0f}",
            _verdict(row),
        )
    return made


def answers_table(outputs: Mapping[str, Sequence[Any]], texts: Sequence[str]) -> Table:
    """What a model answered: a vector a row with its cosine to the first, or a line for each entry of a row.

    Args:
        outputs: by name, a list of values for each row.
        texts: what was asked, where it was text.
    """
    if "embedding" in outputs:
        return _vectors_table(outputs["embedding"], texts)
    made = table("", ["", *outputs], wraps=list(outputs))
    for row, columns in enumerate(zip(*outputs.values(), strict=True)):
        for index, entries in enumerate(zip(*columns, strict=False)):
            if index and not entries[0]:  # rows of a response are filled up to the longest
                continue
            asked = texts[row] if not index and row < len(texts) else ""
            made.add_row(escape(_short(asked)), *(escape(_value(entry)) for entry in entries))
    return made


def one_answer(outputs: Mapping[str, Sequence[Any]]) -> str:
    """The first row of an answer, in a few words."""
    if "embedding" in outputs:
        vector = outputs["embedding"][0]
        return f"{[round(value, 4) for value in vector[:4]]}… × {len(vector)}"
    return ", ".join(f"{name} {_value(rows[0][0])}" for name, rows in outputs.items())


def _vectors_table(vectors: Sequence[Sequence[float]], texts: Sequence[str]) -> Table:
    made = table("", ["text", "embedding", "#cosine to the first"], wraps=["text"])
    for text, vector in zip(texts, vectors, strict=True):
        head = ", ".join(f"{value:+.3f}" for value in vector[:4])
        product = sum(a * b for a, b in zip(vector, vectors[0], strict=True))
        cosine = product / max(1e-9, hypot(*vector) * hypot(*vectors[0]))
        made.add_row(escape(_short(text)), f"({head}, …) × {len(vector)}", f"{cosine:.3f}")
    return made


def _value(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= 48 else f"{text[:47]}…"


def differences(found: Mapping[str, Any], names: Sequence[str]) -> Table:
    """What `shoal.compare.compare` found, a line for each difference."""
    made = table("", ["", "", *(f"#{name}" for name in names)], wraps=["", *names])
    for part in ("files", "evidence", "recipe", "tools"):
        for index, (key, pair) in enumerate(found[part].items()):
            made.add_row(part if index == 0 else "", escape(key), *(escape(_figure(value)) for value in pair))
    answers = dict(found["answers"])
    for prompt, pair in answers.pop("tokens", {}).items():
        made.add_row("written", escape(prompt), *(escape(text) for text in pair))
    for index, (output, apart) in enumerate(answers.items()):
        figures = apart.items() if isinstance(apart, Mapping) else [("", apart)]
        shown = ", ".join(f"{name} {_figure(value)}".strip() for name, value in figures)
        made.add_row("answers" if index == 0 else "", output, "", escape(shown))
    return made


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)


def _verdict(row: Mapping[str, Any]) -> str:
    if row["failures"]:
        return f"[red]refused: {'; '.join(row['failures'])}[/]"
    return f"[green]version {row['version']}[/]" if row.get("version") else "[green]proven[/]"


def curl_line(http: str, model: str, inputs: Sequence[Mapping[str, Any]]) -> str:
    """The command to try a model by hand; one that generates streams.

    Args:
        inputs: of one request, as the protocol has them: name, shape, datatype, data.
    """
    texts = {entry["name"]: entry["data"][0] for entry in inputs}
    if "text_input" in texts:
        text = texts["text_input"]
        body = json.dumps({"text_input": text, "stream": True, "sampling_parameters": '{"max_tokens": 20}'})
        return f"curl -sN http://{http}/v2/models/{model}/generate_stream -d {shlex.quote(body)}"
    body = json.dumps({"inputs": list(inputs)}, separators=(",", ":"))
    return f"curl -s http://{http}/v2/models/{model}/infer -d {shlex.quote(body)}"
