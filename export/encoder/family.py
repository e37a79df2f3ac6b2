"""Encoders as a family: how their checkpoints are opened, built, measured and published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from export.checkpoint.source import check_source, find_checkpoint
from export.encoder import raw, verify
from export.encoder.build import build
from export.encoder.choosing import choices
from export.encoder.compress.apply import compress
from export.encoder.evidence import EncoderEvidence
from export.encoder.parts import parts_of, release
from export.encoder.prepare import Source, prepare
from export.encoder.recipe import EncoderRecipe
from export.encoder.reference import reference_rows, take_reference
from export.encoder.setting import setting_of
from export.encoder.tasks.task import Row
from export.encoder.to_onnx import to_onnx
from export.evidence import Verified
from export.exported import Exported
from export.family import Compared, Family
from export.raw.measure import OriginalAnswers, RawAnswers, compare
from export.repository import Release
from export.tensorrt.engine import published_engine
from export.tensorrt.library import Library
from serving.in_process import InProcess
from shoal import corpus
from shoal.errors import NotProven
from shoal.manifest import Manifest
from shoal.progress import Silent
from shoal.tensorrt import check_fits

TOOLS = (
    "torch",
    "transformers",
    "sentence-transformers",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxruntime",
    "tokenizers",
    "numpy",
)


@dataclass
class EncoderSubject(Compared):
    """A checkpoint, opened for its task; see `export.family.Subject`.

    Attributes:
        source: the checkpoint with its head and its reading of rows.
        eval_data: labelled data of the user.
    """

    source: Source
    eval_data: Path | None
    _notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    _labelled: list[Row] = field(default_factory=list)

    @property
    def task(self) -> str:
        """See `Subject`."""
        return self.source.task.name

    def describe(self) -> dict[str, Any]:
        """See `Subject`."""
        return self.source.opened.checkpoint.describe()

    def build(self, work: Path, progress: Silent) -> dict[str, Exported]:
        """See `Subject`."""
        source, compression = compress(self.source, progress)
        candidates, decided = build(source, work, progress)
        self._notes = {precision: {**note, **compression} for precision, note in decided.items()}
        return candidates

    def measure(
        self, graphs: Mapping[str, Exported], published: Mapping[str, Manifest], progress: Silent
    ) -> dict[str, EncoderEvidence]:
        """See `Subject`.

        Raises:
            RepositoryError: a published engine does not fit this machine.
        """
        for manifest in published.values():
            if manifest.engine is not None:
                check_fits(manifest.engine, Library(manifest.engine["flavour"]).runner, manifest.rebuild)
        noted = {precision: manifest.evidence["notes"] for precision, manifest in published.items()}
        found = verify.measure(
            self.source.subject,
            graphs,
            eval_data=self.eval_data,
            notes=noted or self._notes,
            on_labelled=self._labelled.extend,
            progress=progress,
        )
        if published:
            serving = {key: manifest.evidence.get("serving") for key, manifest in published.items()}
        else:
            chosen = choices(self.source, graphs, progress)
            serving = {key: choice.to_dict() for key, choice in chosen.items()}
        return {key: replace(entry, serving=serving.get(key)) for key, entry in found.items()}

    def ask_original(self, work: Path | None, progress: Silent) -> RawAnswers:
        """See `Subject`."""
        reference = raw.reference_of(self.source, progress)
        recipe = self.source.recipe
        if work is not None and (recipe.compresses or "fp32" not in recipe.precisions):
            self._check_reading(reference, work, progress)
        return RawAnswers(
            reference,
            lambda precision: raw.tolerance_of(self.task, precision, smaller=recipe.compresses),
        )

    def in_process(self, graph: Exported, precision: str, work: Path) -> InProcess:
        """See `Subject`."""
        return raw.in_process(parts_of(graph, precision, self.source), graph, precision, work)

    def published(self, manifest: Manifest, repository: Path) -> Exported:
        """See `Subject`."""
        if manifest.engine is None:
            return super().published(manifest, repository)
        return published_engine(repository, manifest)

    def published_in_process(self, manifest: Manifest, repository: Path, graph: Exported) -> InProcess:
        """See `Subject`."""
        return raw.published(manifest, repository, verify.open_network(graph, manifest.precision))

    def statistics(self, proven: Sequence[Verified], progress: Silent) -> dict[str, dict[str, Any] | None]:
        """See `Subject`; by precision, because each answers a little otherwise."""
        rows = reference_rows(self.source.subject, self._labelled)
        found = {}
        for item in progress.each("Keep statistics to see drift by", proven):
            precision = item.evidence.precision
            model = verify.open_network(item.exported, precision)
            found[precision] = take_reference(self.source.subject, model, rows, labelled=bool(self._labelled))
        return found

    def release(self, proven: Verified) -> Release:
        """See `Subject`."""
        evidence = cast(EncoderEvidence, proven.evidence)
        return release(proven, self.source, setting_of(evidence.serving))

    def _check_reading(self, reference: OriginalAnswers, work: Path, progress: Silent) -> None:
        """Compare the exact graph of the whole model where it is not published: what a smaller or a coarser
        one may lose would hide that the model was read wrongly.

        Raises:
            NotProven: it answers raw inputs otherwise than the original.
        """
        source = self.source
        made = to_onnx(source.head, work / "exact-bare.onnx", source.feed(corpus.passages()[:2]), progress)
        graph = source.finished(made, work / "exact.onnx")
        with (
            progress.step("Compare answers of the exact graph to raw inputs"),
            raw.in_process(parts_of(graph, "fp32", source), graph, "fp32", work / "exact") as caller,
        ):
            found = compare(reference, caller, source.recipe.name, raw.tolerance_of(self.task, "fp32"))
        if found.failures:
            raise NotProven(f"nothing is published, the model is read wrongly ({'; '.join(found.failures)})")


def find(
    recipe: EncoderRecipe, progress: Silent, *, eval_data: Path | None, versions: Sequence[Manifest] = ()
) -> Callable[[Path], EncoderSubject]:
    """See `export.family.Find`."""
    checkpoint = find_checkpoint(recipe.source)
    check_source(checkpoint, versions)

    def load(folder: Path) -> EncoderSubject:
        with progress.step(f"Load {checkpoint.id}"):
            return EncoderSubject(prepare(recipe, checkpoint, folder), eval_data)

    return load


FAMILY = Family(TOOLS, find)
