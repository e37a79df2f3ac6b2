"""`make bench-int8`: our INT8, dynamic, static and of a distilled student, beside plain dynamic quantization.

Accuracy against the PyTorch original, agreement of a text alone and in a batch, and speed, all in one run;
with `--eval-data` also Spearman's correlation on labelled pairs. docs/int8.md shows and explains a run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import msgspec
from onnxruntime.quantization import QuantType, quantize_dynamic
from rich.console import Console

from export.checkpoint.source import find_checkpoint
from export.encoder import verify
from export.encoder.build import build
from export.encoder.compress.apply import compress
from export.encoder.prepare import prepare
from export.encoder.recipe import EncoderRecipe
from export.evidence import evidence_table
from export.exported import Exported
from shoal import machine
from shoal.progress import Bars

PRECISIONS = ("fp32", "int8", "int8-dynamic", "int8-static")


def main() -> None:
    """Build the graphs, measure them in turn, print a table and JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default=EncoderRecipe().source)
    parser.add_argument("--eval-data", type=Path)
    parser.add_argument("--layers", type=int, default=3, help="of the student")
    parser.add_argument("--distill", type=int, default=300, help="steps in which it learns")
    options = parser.parse_args()
    recipe = EncoderRecipe(source=options.source, precisions=PRECISIONS)
    smaller = msgspec.structs.replace(
        recipe, precisions=("int8",), layers=options.layers, distill_steps=options.distill
    )
    progress, out = Bars(Console(stderr=True)), Console(width=120)
    checkpoint = find_checkpoint(recipe.source)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = prepare(recipe, checkpoint, work)
        graphs, _ = build(source, work, progress)
        with progress.step("Quantize plainly, for comparison"):
            quantize_dynamic(
                work / "plain.onnx", work / "dynamic.onnx", weight_type=QuantType.QInt8, per_channel=True
            )
        graphs["plain dynamic"] = Exported.read(work / "dynamic.onnx")
        student, report = compress(replace(source, recipe=smaller), progress)
        name = f"int8, {options.layers} layers"
        (work / "student").mkdir()
        graphs[name] = build(student, work / "student", progress)[0]["int8"]
        evidence = verify.measure(
            source.subject, graphs, eval_data=options.eval_data, notes={name: report}, progress=progress
        )
    rows = [entry.to_dict() for entry in evidence.values()]
    out.print(machine.name(), highlight=False)
    out.print(evidence_table(list(evidence.values()), "INT8 beside plain dynamic quantization"))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
