"""From a decoder's checkpoint to one graph for each precision, with what quantization is calibrated on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from export.checkpoint.source import Checkpoint
from export.exported import Exported
from export.generation.choosing import Comparison, compare
from export.generation.quantize import quantize_int4, quantize_int8
from export.generation.recipe import AUTO, GenerationRecipe
from export.generation.to_onnx import to_onnx
from export.generation.to_openvino import to_openvino
from serving.generation.runner import DecoderRunner
from serving.generation.runtime import FILES, ONNXRUNTIME, OPENVINO, difference, open_runner
from shoal import corpus
from shoal.errors import ExportError
from shoal.progress import Silent

CALIBRATION_WINDOW = 128  # tokens
CALIBRATION_WINDOWS = 16  # of documentation
CALIBRATION_WRITTEN = 32  # by the model itself
COMPARED = 8  # of them, to compare libraries on


def build(
    recipe: GenerationRecipe, checkpoint: Checkpoint, work: Path, progress: Silent
) -> tuple[dict[str, Exported], Comparison | None]:
    """One graph per precision, in the recipe's order; and what the library that runs int8 was chosen by."""
    compared = None
    made: dict[str, Exported] = {}
    if recipe.gpu:
        for precision in recipe.precisions:
            with progress.step(f"Build the graph in {precision} with ONNX Runtime GenAI"):
                made[precision] = to_onnx(checkpoint.folder, _file(work, precision), precision)
        return made, None
    with progress.step("Build the graph with ONNX Runtime GenAI"):
        plain = to_onnx(checkpoint.folder, _file(work, "fp32"))
    for precision in recipe.precisions:
        path = _file(work, precision)
        if precision == "fp32":
            made[precision] = plain
        elif precision == "int8":
            made[precision], compared = _int8(recipe, checkpoint, work, plain, progress)
        else:
            made[precision] = quantize_int4(plain, path, progress)
    return made, compared


def _int8(
    recipe: GenerationRecipe, checkpoint: Checkpoint, work: Path, plain: Exported, progress: Silent
) -> tuple[Exported, Comparison | None]:
    """The graph of the library that runs int8: the recipe's, or the better of two on this machine."""
    graphs = {}
    if recipe.engine in (OPENVINO, AUTO):
        path = _file(work, "int8-openvino").with_name(FILES[OPENVINO])
        try:
            graphs[OPENVINO] = to_openvino(plain, path, progress)
            _try(path)
        except (ExportError, RuntimeError, ValueError, LookupError) as error:
            told = (
                error.message if isinstance(error, ExportError) else f"OpenVINO cannot run the graph: {error}"
            )
            if recipe.engine == OPENVINO:
                raise ExportError(told, hint="--engine onnxruntime") from error
            graphs.clear()
            progress.note(f"ONNX Runtime runs int8: {told}")
    if recipe.engine == OPENVINO:
        return graphs[OPENVINO], None
    texts = _calibration(checkpoint, plain, progress)
    graphs[ONNXRUNTIME] = quantize_int8(plain, _file(work, "int8"), texts, progress)
    if OPENVINO not in graphs:
        return graphs[ONNXRUNTIME], None
    compared = compare(plain, graphs, texts[:COMPARED], progress)
    return graphs[compared.chosen], compared


def _try(path: Path) -> None:
    """Load a graph and run it: what a library has no kernel for is seen then.

    Raises:
        ExportError: its answers would depend on what runs beside them.
    """
    if difference(open_runner(path, rows=8, max_length=48)):
        raise ExportError("OpenVINO's answers depend on what runs beside them on this CPU")


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
