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


def serving_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How each version's network runs on CPUs, and the figures that it was chosen by.

    Args:
        rows: evidence as plain types. Encoders have the entry `serving` of `export.encoder.setting`, and
            decoders in int8 that of `export.generation.choosing`.
    """
    return [
        f"{row['precision']}: {line}"
        for row in rows
        if row.get("serving")
        for line in _serving(row["serving"])
    ]


def _serving(chosen: Mapping[str, Any]) -> list[str]:
    if "engine" in chosen:
        return [_engine(chosen)]
    if chosen["because"] == "one CPU":
        return [f"{_instances(chosen)}; with one CPU there is nothing to choose"]
    if chosen["because"] == "recipe":
        return [f"{_instances(chosen)}, {_runs(chosen)}, as the recipe says"]
    lines = []
    for compared in chosen["compared"]:
        figures = compared["figures"]
        called = _instances if len({entry["instances"] for entry in figures}) > 1 else _runs
        said = [
            f"{called(entry)} {entry['rows_per_second']:.0f} rows/s, alone {entry['single_ms']:.1f} ms"
            for entry in figures
        ]
        crowded = f", not changed, since others took {compared['others']:.1f} of {chosen['cpus']} CPUs"
        lines.append(f"{called(chosen)}{crowded if compared['crowded'] else ''} (of {'; '.join(said)})")
    return lines


def _engine(chosen: Mapping[str, Any]) -> str:
    if chosen["engine"] == "openvino":
        return f"OpenVINO, {chosen['faster']:.2f} times as fast as ONNX Runtime here"
    if chosen["crowded"]:
        busy = f"others took {chosen['others']:.1f} of {chosen['cpus']} CPUs"
        return f"ONNX Runtime; OpenVINO was not judged, since {busy}: export again on a quiet machine"
    told = (
        f"perplexity rises by {chosen['rise']:.1%}, and {chosen['invariance']:.0%} of the answers are the"
        " same alone and in a batch"
    )
    return f"ONNX Runtime; OpenVINO was {chosen['faster']:.2f} times as fast, {told}"


def _instances(setting: Mapping[str, Any]) -> str:
    return f"{setting['instances']} instance{'s' if setting['instances'] > 1 else ''}"


def _runs(setting: Mapping[str, Any]) -> str:
    return f"runs of {setting['max_run_tokens']} tokens"
