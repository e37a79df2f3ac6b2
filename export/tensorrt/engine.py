"""A network as an engine: what stands in the place of an ONNX file from its building to its config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import onnx

from export.exported import Exported, TensorSpec
from export.tensorrt.build import build_engine
from export.tensorrt.config import FILENAME
from export.tensorrt.fingerprint import Fingerprint
from export.tensorrt.prepare import numeric_part
from export.tensorrt.shapes import Profile
from shoal.manifest import Manifest
from shoal.names import LABELS, part_name
from shoal.progress import Silent


@dataclass(frozen=True)
class Engine(Exported):
    """An engine, with the specs of the graph that it computes together with `tail`.

    Attributes:
        fingerprint: what it was built with and for.
        tail: the end of the graph, from numbers to strings, for ONNX Runtime; None where it has no strings.
    """

    fingerprint: Fingerprint
    tail: Exported | None

    @property
    def computed(self) -> tuple[TensorSpec, ...]:
        """The outputs of the engine alone: the graph's but the tail's, and what the tail reads."""
        if self.tail is None:
            return self.outputs
        from_tail = {spec.name for spec in self.tail.outputs}
        kept = tuple(spec for spec in self.outputs if spec.name not in from_tail)
        known = {spec.name for spec in (*kept, *self.inputs)}
        return (*kept, *(spec for spec in self.tail.inputs if spec.name not in known))

    @property
    def filename(self) -> str:
        return FILENAME

    @property
    def provenance(self) -> dict[str, Any]:
        return self.fingerprint.to_dict()


def make_engine(
    graph: Exported,
    path: Path,
    profiles: Sequence[Profile],
    *,
    compute_capabilities: Sequence[str] = (),
    timing_cache: Path | None = None,
    flavour: str = "tensorrt",
    progress: Silent | None = None,
) -> Engine:
    """A finished graph as an engine, and beside it the end that makes strings.

    Args:
        graph: of standard operators, labels and all.
        path: the engine to write; `*.numeric.onnx` and `*.tail.onnx` are written beside it.
        profiles, compute_capabilities, timing_cache, flavour: see `build.build_engine`.

    Raises:
        MissingDependency, UsageError, ExportError: see `build.build_engine`.
    """
    parts = numeric_part(onnx.load(graph.path))
    numeric, tail = graph, None
    if parts.tail is not None:
        numeric = _saved(parts.numeric, path.with_suffix(".numeric.onnx"))
        tail = _saved(parts.tail, path.with_suffix(".tail.onnx"))
    plan = build_engine(
        numeric,
        path,
        profiles,
        compute_capabilities=compute_capabilities,
        timing_cache=timing_cache,
        flavour=flavour,
        progress=progress,
    )
    return Engine(path, graph.inputs, graph.outputs, graph.opset, graph.ir_version, plan.fingerprint, tail)


def _saved(model: onnx.ModelProto, path: Path) -> Exported:
    onnx.save(model, path)
    return Exported.read(path)


def published_engine(repository: Path, manifest: Manifest) -> Engine:
    """The engine of a version in the repository, whose files have been checked."""
    labels = f"{part_name(manifest.model, LABELS)}/"
    tails = [repository / name for name in manifest.files if name.startswith(labels)]
    stated = manifest.onnx
    inputs, outputs = (
        msgspec.convert(stated[side], tuple[TensorSpec, ...]) for side in ("inputs", "outputs")
    )
    return Engine(
        repository / manifest.network / str(manifest.version) / FILENAME,
        inputs,
        outputs,
        stated["opset"],
        stated["ir_version"],
        Fingerprint.from_dict(manifest.engine or {}),
        Exported.read(tails[0]) if tails else None,
    )
