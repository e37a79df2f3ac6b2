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

from shoal.dialect import INPUT_TOKENS, SAMPLING, STREAM, TEXT_INPUT
from shoal.tasks import EMBEDDING, GENERATION


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


def answers_table(outputs: Mapping[str, Sequence[Any]], texts: Sequence[str]) -> Table:
    """What a model answered: a vector a row with its cosine to the first, or a line for each entry of a row.

    Args:
        outputs: by name, a list of values for each row.
        texts: what was asked, where it was text.
    """
    outputs = _without_counts(outputs)
    if "embedding" in outputs:
        return _vectors_table(outputs["embedding"], texts)
    made = table("", ["", *outputs], wraps=list(outputs))
    for row, columns in enumerate(zip(*outputs.values(), strict=True)):
        for index, entries in enumerate(zip(*columns, strict=False)):
            if index and entries[0] == "":  # rows of a response are filled up to the longest
                continue
            asked = texts[row] if not index and row < len(texts) else ""
            made.add_row(escape(_short(asked)), *(escape(_value(entry)) for entry in entries))
    return made


def one_answer(outputs: Mapping[str, Sequence[Any]]) -> str:
    """The first row of an answer, in a few words."""
    if "embedding" in outputs:
        vector = outputs["embedding"][0]
        return f"{[round(value, 4) for value in vector[:4]]}… × {len(vector)}"
    return ", ".join(f"{name} {_value(rows[0][0])}" for name, rows in _without_counts(outputs).items())


def _without_counts(outputs: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """The outputs that answer something: the number of tokens is one a row, whatever a row has of others."""
    return {name: rows for name, rows in outputs.items() if name != INPUT_TOKENS}


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
    """What `shoal.cli.compare.compare` found, a line for each difference."""
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


def sdk_line(url: str, model: str, task: str) -> str | None:
    """The command to try a model by hand with OpenAI's SDK; None: OpenAI's API has no such task.

    Args:
        url: of the gateway's root.
        task: of the model, see `shoal.tasks`.
    """
    if task == GENERATION:
        call = (
            f'chat.completions.create(model="{model}", max_tokens=40,'
            ' messages=[{"role": "user", "content": "Why do fish swim in shoals?"}])'
            ".choices[0].message.content"
        )
    elif task == EMBEDDING:
        call = f'embeddings.create(model="{model}", input="Fish swim in shoals.").data[0].embedding[:4]'
    else:
        return None
    client = f'OpenAI(base_url="{url}/v1", api_key="none")'
    return f"python -c {shlex.quote(f'from openai import OpenAI; print({client}.{call})')}"


def curl_line(http: str, model: str, inputs: Sequence[Mapping[str, Any]]) -> str:
    """The command to try a model by hand; one that generates streams.

    Args:
        inputs: of one request, as the protocol has them: name, shape, datatype, data.
    """
    texts = {entry["name"]: entry["data"][0] for entry in inputs}
    if TEXT_INPUT in texts:
        text = texts[TEXT_INPUT]
        body = json.dumps({TEXT_INPUT: text, STREAM: True, SAMPLING: '{"max_tokens": 20}'})
        return f"curl -sN http://{http}/v2/models/{model}/generate_stream -d {shlex.quote(body)}"
    body = json.dumps({"inputs": list(inputs)}, separators=(",", ":"))
    return f"curl -s http://{http}/v2/models/{model}/infer -d {shlex.quote(body)}"
