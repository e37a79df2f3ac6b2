"""`make bench-int8`: our INT8 beside plain dynamic quantization and fp32, in one run.

Accuracy against the PyTorch original, agreement of a text alone and in a batch, and speed; with
`--eval-data` also Spearman's correlation on labelled pairs. docs/int8.md shows and explains a run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic
from rich.console import Console

from export import pipeline, verify
from export.exported import Exported
from export.recipe import Recipe
from export.source import find_checkpoint
from shoal import machine
from shoal.evidence import evidence_table
from shoal.progress import Bars


def main() -> None:
    """Build the three graphs, measure them in turn, print a table and JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default=Recipe().source)
    parser.add_argument("--eval-data", type=Path)
    options = parser.parse_args()
    recipe = Recipe(source=options.source)
    progress, out = Bars(Console(stderr=True)), Console()
    checkpoint = find_checkpoint(recipe.source)
    source = pipeline.prepare(recipe, checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        graphs, _ = pipeline.build(source, work, progress)
        with progress.step("Quantize plainly, for comparison"):
            quantize_dynamic(
                work / "plain.onnx", work / "dynamic.onnx", weight_type=QuantType.QInt8, per_channel=True
            )
        graphs["dynamic"] = Exported.read(work / "dynamic.onnx")
        evidence = verify.measure(source.subject, graphs, eval_data=options.eval_data, progress=progress)
    rows = [entry.to_dict() for entry in evidence.values()]
    out.print(f"{machine.cpu_model()}, {machine.available_cpus()} CPUs", highlight=False)
    out.print(evidence_table(rows, "INT8 beside plain dynamic quantization"))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
