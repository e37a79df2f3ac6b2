"""From a decoder's checkpoint to one graph for each precision, with what quantization is calibrated on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from export.checkpoint.source import Checkpoint
from export.exported import Exported
from export.generation.quantize import quantize_int4, quantize_int8
from export.generation.recipe import GenerationRecipe
from export.generation.to_onnx import to_onnx
from serving.generation.runner import DecoderRunner
from shoal import corpus
from shoal.progress import Silent

CALIBRATION_WINDOW = 128  # tokens
CALIBRATION_WINDOWS = 16  # of documentation
CALIBRATION_WRITTEN = 32  # by the model itself


def build(
    recipe: GenerationRecipe, checkpoint: Checkpoint, work: Path, progress: Silent
) -> dict[str, Exported]:
    """One graph per precision, in the recipe's order."""
    made: dict[str, Exported] = {}
    if recipe.gpu:
        for precision in recipe.precisions:
            with progress.step(f"Build the graph in {precision} with ONNX Runtime GenAI"):
                made[precision] = to_onnx(checkpoint.folder, _file(work, precision), precision)
        return made
    with progress.step("Build the graph with ONNX Runtime GenAI"):
        plain = to_onnx(checkpoint.folder, _file(work, "fp32"))
    for precision in recipe.precisions:
        path = _file(work, precision)
        if precision == "fp32":
            made[precision] = plain
        elif precision == "int8":
            made[precision] = quantize_int8(plain, path, _calibration(checkpoint, plain, progress), progress)
        else:
            made[precision] = quantize_int4(plain, path, progress)
    return made


def _file(work: Path, precision: str) -> Path:
    """The file of a graph: under the name it is served by, since a large one names its weights' file."""
    folder = work / precision
    folder.mkdir(exist_ok=True)
    return folder / "model.onnx"


def _calibration(checkpoint: Checkpoint, plain: Exported, progress: Silent) -> list[list[int]]:
    """Token ids to quantize on: documentation, and what the model writes when nobody asks it for anything.

    The latter is as varied as what the model was trained on, whatever that was (Williams et al. 2024,
    arXiv:2410.17170). Each text begins with a random token and goes on as the model would have it.
    """
    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    ids = tokenizer.encode("\n\n".join(corpus.passages()[1000:]), add_special_tokens=False).ids
    starts = range(0, min(len(ids), CALIBRATION_WINDOWS * CALIBRATION_WINDOW), CALIBRATION_WINDOW)
    windows = [ids[start : start + CALIBRATION_WINDOW] for start in starts]
    runner = DecoderRunner(plain.path, rows=CALIBRATION_WRITTEN, max_length=CALIBRATION_WINDOW)
    chance = np.random.default_rng(0)
    written = chance.integers(runner.vocabulary, size=(CALIBRATION_WRITTEN, 1))
    for length in progress.each("Let the model write sample text", range(CALIBRATION_WINDOW - 1)):
        logits = runner.decode(written[:, -1].tolist(), [length] * len(written))
        # The likeliest after Gumbel noise is a sample at temperature 1.
        following = (logits + chance.gumbel(size=logits.shape)).argmax(axis=1)
        written = np.column_stack([written, following])
    return windows + written.tolist()
