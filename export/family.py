"""What a family of models says of itself: how its sources are opened, built, measured and published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tritonclient.grpc import model_config_pb2 as triton

from export.evidence import Verified
from export.exported import Exported
from export.raw.evidence import RawEvidence
from export.raw.served import Caller, version_folder
from export.repository import ModelFiles, Published, Release
from serving.in_process import InProcess, Model
from shoal import model_config
from shoal.manifest import Manifest
from shoal.progress import Silent


class Answers(Protocol):
    """What the original library answers to raw inputs."""

    def compared(self, caller: Caller, model: str, precision: str) -> RawEvidence:
        """How the answers of a model agree with them.

        Args:
            caller: has the model.
            model: the name that users call.
            precision: of the version that answers; it decides what must be reached.
        """


class Subject(Protocol):
    """One source, opened: what versions are made from and compared with."""

    @property
    def task(self) -> str:
        """What the model is for, as Hugging Face names it."""

    @property
    def doubts(self) -> Sequence[str]:
        """Why a version of it may miss its tolerance, in sentences; known once it is built."""
        return ()

    def describe(self) -> dict[str, Any]:
        """The source as the manifest states it."""

    def unmeasured(self, repository: Path, work: Path) -> Published | None:
        """Publish what cannot be measured here, where the recipe asks for that; None: it does not."""
        return None

    def build(self, work: Path, progress: Silent) -> Mapping[str, Exported]:
        """One graph for each precision, in the recipe's order.

        Args:
            work: a folder for files; nothing in it is kept.

        Raises:
            ExportError: the source cannot be turned into ONNX.
        """

    def measure(
        self, graphs: Mapping[str, Exported], published: Mapping[str, Manifest], progress: Silent
    ) -> dict[str, Any]:
        """Evidence for each graph, by precision; without `raw` where the subject is `Compared`.

        Args:
            published: by precision, where the graphs are those of published versions.
        """

    def ask_original(self, work: Path | None, progress: Silent) -> Answers:
        """Have the original library answer raw inputs.

        Args:
            work: a folder for files, where the model is just being exported.

        Raises:
            NotProven: the exact graph of a model that is published smaller or coarser reads it wrongly.
        """

    def published(self, manifest: Manifest, repository: Path) -> Exported:
        """The graph of a version in the repository, whose files have been checked."""
        return Exported.read(repository / manifest.network / str(manifest.version) / "model.onnx")

    def statistics(self, proven: Sequence[Verified], progress: Silent) -> Mapping[str, dict[str, Any] | None]:
        """Give, by precision, what drift is seen by (docs/drift.md); nothing where drift is not watched."""
        return {}

    def release(self, proven: Verified) -> Release:
        """A proven graph and the models around it, as they will stand in the repository."""


@runtime_checkable
class Compared(Subject, Protocol):
    """A subject whose answers to raw inputs are compared after `measure`, which does not do it itself."""

    def in_process(self, graph: Exported, precision: str, work: Path) -> AbstractContextManager[Caller]:
        """What would be published, answering in this process."""

    def published_in_process(
        self, manifest: Manifest, repository: Path, graph: Exported
    ) -> AbstractContextManager[Caller]:
        """A published version, answering in this process from the files in the repository."""


class OneModel(Compared, Protocol):
    """A subject whose version is one model: it reads a text, runs its graphs, and writes a text."""

    def part(self, graph: Exported) -> ModelFiles:
        """A graph as a version of the model."""

    def answering(self, config: triton.ModelConfig, folder: Path, precision: str) -> InProcess:
        """A version in this process.

        Args:
            config: as it is published.
            folder: of the version, with its graphs, tokenizer and `model.py`.
        """
        return InProcess({config.name: Model(config, folder=folder)})

    def in_process(self, graph: Exported, precision: str, work: Path) -> InProcess:
        """See `Compared`."""
        part = self.part(graph)
        folder = version_folder(part.files, work / "raw" / precision / "1")
        return self.answering(part.config(1), folder, precision)

    def published_in_process(self, manifest: Manifest, repository: Path, graph: Exported) -> InProcess:
        """See `Compared`."""
        config = model_config.parse(manifest.configs[manifest.network])
        return self.answering(config, graph.path.parent, manifest.precision)

    def release(self, proven: Verified) -> Release:
        """See `Subject`."""
        part = self.part(proven.exported)
        return Release(proven, (part,), part.name)


class Find(Protocol):
    """Finds the source of a recipe, before anything is made."""

    def __call__(
        self,
        recipe: Any,
        progress: Silent,
        *,
        eval_data: Path | None,
        versions: Sequence[Manifest] = (),
    ) -> Callable[[Path], Subject]:
        """Find and check it.

        Args:
            eval_data: labelled data of the user.
            versions: published ones that must have been made from it.

        Returns:
            What opens it, given a folder for files that will be served, as the tokenizer.

        Raises:
            UsageError, ExportError: it cannot be found or read, or the data cannot.
            RepositoryError: it is not what a version was made from.
        """


@dataclass(frozen=True)
class Family:
    """One kind of models.

    Attributes:
        tools: packages whose versions the manifest states.
        find: see `Find`.
    """

    tools: tuple[str, ...]
    find: Find
