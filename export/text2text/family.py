"""Encoder-decoders as a family: how their checkpoints are opened, built, measured and published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from export.checkpoint.opened import open_tokenizer
from export.checkpoint.source import Checkpoint, check_source
from export.checkpoint.tokenizer import write_tokenizer
from export.encoder.backbone import LONGEST, positions_of
from export.exported import Exported
from export.family import Family, OneModel
from export.raw.measure import RawAnswers
from export.repository import ModelFiles
from export.text2text import raw, verify
from export.text2text.checkpoint import find_encoder_decoder, load_original, search_of
from export.text2text.evidence import Text2TextEvidence
from export.text2text.labelled import Pair, read_pairs
from export.text2text.publish import part_of
from export.text2text.quantize import quantize_int8
from export.text2text.recipe import Text2TextRecipe
from export.text2text.to_onnx import Graphs, require_optimum, to_onnx
from serving.models.text2text import Text2TextSettings
from shoal.manifest import Manifest
from shoal.progress import Silent


@dataclass(frozen=True)
class EncoderDecoder(OneModel):
    """A checkpoint, opened; see `export.family.Subject`.

    Attributes:
        original: of PyTorch.
        settings: how it is served.
        tokenizer: path of the `tokenizer.json` that is served.
        labelled: texts with their targets, of the user.
    """

    recipe: Text2TextRecipe
    checkpoint: Checkpoint
    original: PreTrainedModel
    settings: Text2TextSettings
    tokenizer: Path
    labelled: Sequence[Pair]
    task: str = Text2TextRecipe.TASK

    def describe(self) -> dict[str, Any]:
        """See `Subject`."""
        return self.checkpoint.describe()

    def build(self, work: Path, progress: Silent) -> dict[str, Graphs]:
        """Both graphs in each precision, and beside them their tokenizer."""
        folders = {precision: work / precision for precision in {"fp32", *self.recipe.precisions}}
        for folder in folders.values():
            folder.mkdir()
            write_tokenizer(open_tokenizer(self.checkpoint), folder)
        with progress.step("Export to ONNX through optimum"):
            made = {"fp32": to_onnx(self.original, folders["fp32"])}
        if "int8" in self.recipe.precisions:
            made["int8"] = quantize_int8(made["fp32"], folders["int8"], self.settings, progress)
        return {precision: made[precision] for precision in self.recipe.precisions}

    def measure(
        self, graphs: Mapping[str, Exported], published: Mapping[str, Manifest], progress: Silent
    ) -> dict[str, Text2TextEvidence]:
        """See `Subject`."""
        both = {precision: _both(graph) for precision, graph in graphs.items()}
        return verify.measure(self.original, both, self.settings, labelled=self.labelled, progress=progress)

    def ask_original(self, work: Path | None, progress: Silent) -> RawAnswers:
        """See `Subject`."""
        library = open_tokenizer(self.checkpoint)
        read = raw.Texts(library, self.tokenizer, self.settings, self.recipe.max_length)
        return RawAnswers(raw.reference_of(self.original, read, progress), raw.TOLERANCES.__getitem__)

    def part(self, graph: Exported) -> ModelFiles:
        """See `OneModel`."""
        return part_of(_both(graph), self.recipe, self.settings)

    def published(self, manifest: Manifest, repository: Path) -> Graphs:
        """See `Subject`."""
        return Graphs.read_both(repository / manifest.network / str(manifest.version))


def _both(graph: Exported) -> Graphs:
    assert isinstance(graph, Graphs)  # noqa: S101 - an encoder-decoder is made of two
    return graph


def find(
    recipe: Text2TextRecipe, progress: Silent, *, eval_data: Path | None, versions: Sequence[Manifest] = ()
) -> Callable[[Path], EncoderDecoder]:
    """See `export.family.Find`."""
    if not versions:
        require_optimum()
    checkpoint = find_encoder_decoder(recipe.source)
    check_source(checkpoint, versions)
    labelled = read_pairs(eval_data) if eval_data else []

    def load(folder: Path) -> EncoderDecoder:
        with progress.step(f"Load {checkpoint.id}"):
            original = load_original(checkpoint)
            settings = settings_of(original, recipe, checkpoint)
            tokenizer = write_tokenizer(open_tokenizer(checkpoint), folder)
        return EncoderDecoder(recipe, checkpoint, original, settings, tokenizer, labelled)

    return load


def settings_of(
    original: PreTrainedModel, recipe: Text2TextRecipe, checkpoint: Checkpoint
) -> Text2TextSettings:
    """How a model is served."""
    library = open_tokenizer(checkpoint)
    limits = (library.model_max_length, positions_of(original), LONGEST)
    stated = min(int(limit) for limit in limits if limit)
    return Text2TextSettings(
        search_of(original, recipe),
        min(recipe.max_length or stated, stated),
        recipe.max_text_bytes,
        library.truncation_side,
        max_queue_size=recipe.max_queue_size,
    )


FAMILY = Family(
    ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "tokenizers", "numpy"),
    find,
)
