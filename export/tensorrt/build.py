"""Build an engine from an ONNX file: strongly typed, with a fingerprint, written in one rename.

What cannot become an engine is refused in one line that names the operator: those of `com.microsoft`, which
the fusions for ONNX Runtime leave behind, and strings (see `prepare.numeric_part`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.exported import Exported
from export.graph import CONTRIB
from export.tensorrt.fingerprint import Fingerprint
from export.tensorrt.library import Library, one_line
from export.tensorrt.shapes import Profile
from shoal.errors import ExportError, UsageError
from shoal.hashes import sha256
from shoal.paths import write_atomic
from shoal.progress import Advance, Silent
from shoal.tensorrt import compute_capability


@dataclass(frozen=True)
class Plan:
    """An engine on disk.

    Attributes:
        size: in bytes.
    """

    path: Path
    fingerprint: Fingerprint
    size: int


def build_engine(
    exported: Exported,
    path: Path,
    profiles: Sequence[Profile],
    *,
    compute_capabilities: Sequence[str] = (),
    timing_cache: Path | None = None,
    flavour: str | None = None,
    progress: Silent | None = None,
) -> Plan:
    """Build an engine whose precision is that of the graph: fp32, fp16 by casts, INT8 by Q/DQ.

    A graph in fp32 is computed in fp32: TF32, which TensorRT would take by itself, keeps 10 bits of 23.

    Args:
        exported: a graph of standard operators, as `to_onnx` and `prepare` write it.
        path: the engine to write, whole or not at all.
        profiles: shapes it is built for; Triton counts them from 0 in this order.
        compute_capabilities: GPUs it is for, e.g. `8.9`; none: the one that is here. TensorRT-RTX alone
            builds for others.
        timing_cache: what TensorRT measured before on this kind of GPU, read and written again, so that the
            next build is faster. TensorRT-RTX has none, it chooses kernels where the engine runs.
        flavour: `tensorrt` or `tensorrt-rtx`; none: the first that is installed.

    Raises:
        MissingDependency: neither is installed.
        UsageError: no profile, or a GPU is asked for that cannot be built for.
        ExportError: TensorRT cannot take an operator or build the engine; it is quoted.
    """
    if not profiles:
        raise UsageError("an engine needs a profile", hint="see shapes.from_buckets")
    library = Library(flavour)
    targets = _targets(library, compute_capabilities)
    builder = library.builder()
    network, _parser = _parse(library, builder, exported.path)
    config = builder.create_builder_config()
    config.clear_flag(library.trt.BuilderFlag.TF32)
    for profile in profiles:
        _add_profile(library, builder, config, exported, profile)
    if library.ahead_of_time:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(_constant(library, target), index)
    cache = None if library.ahead_of_time else _read_timing_cache(config, timing_cache)
    with (progress or Silent()).step(f"Build an engine with {library.flavour}", total=100) as advance:
        monitor = _monitor(library.trt, advance)
        config.progress_monitor = monitor
        engine = builder.build_serialized_network(network, config)
        if monitor.interrupted:
            raise KeyboardInterrupt
        if engine is None:
            raise library.failure(f"cannot build {exported.path.name}")
    write_atomic(path, memoryview(engine))
    if cache is not None and timing_cache is not None:
        write_atomic(timing_cache, memoryview(cache.serialize()))
    fingerprint = Fingerprint(
        flavour=library.flavour,
        version=library.version,
        compute_capabilities=targets,
        onnx_sha256=sha256(exported.path),
        strongly_typed=True,
        profiles=tuple(profiles),
    )
    return Plan(path, fingerprint, path.stat().st_size)


def _targets(library: Library, asked: Sequence[str]) -> tuple[str, ...]:
    """The GPUs to build for, each once, in the order asked."""
    targets, here = tuple(dict.fromkeys(asked)), compute_capability()
    if not targets and here is None:
        raise UsageError("there is no NVIDIA GPU to build for", hint="name one: compute capability 8.9")
    if not library.ahead_of_time and here is not None and set(targets) - {here}:
        raise UsageError(
            f"tensorrt builds for the GPU that is here, {here}, not for {', '.join(targets)}",
            hint="build where the engine is to run",
        )
    for target in targets if library.ahead_of_time else ():
        _constant(library, target)
    return targets or (str(here),)


def _constant(library: Library, capability: str) -> Any:
    """`8.9` as the library's own constant."""
    known = library.trt.ComputeCapability
    names = {f"{name[2:-1]}.{name[-1]}": name for name in dir(known) if name.startswith("SM")}
    if capability not in names:
        raise UsageError(
            f"{library.flavour} {library.version} does not build for compute capability {capability}",
            hint=f"it builds for {', '.join(sorted(names, key=float))}",
        )
    return getattr(known, names[capability])


def _parse(library: Library, builder: Any, path: Path) -> tuple[Any, Any]:
    """The network, and the parser that must live as long: it holds the weights."""
    trt = library.trt
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    if parser.parse_from_file(str(path)):
        return network, parser
    if not parser.num_errors:
        raise library.failure(f"cannot read {path.name}")
    # Without an operator it is the summary of the errors before it.
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    first = next((error for error in errors if error.node_operator()), errors[0])
    reason = one_line(first.desc())
    operator, name = first.node_operator(), first.node_name()
    node = f"{operator} ({name or 'without a name'})" if operator else path.name
    raise ExportError(
        f"{library.flavour} {library.version} cannot take {node}: {reason}",
        hint=f"build from the plain graph, without operators of {CONTRIB} and without strings",
    )


def _add_profile(library: Library, builder: Any, config: Any, exported: Exported, profile: Profile) -> None:
    made = builder.create_optimization_profile()
    for spec in exported.inputs:
        made.set_shape(spec.name, *profile.of(spec))
    if config.add_optimization_profile(made) < 0:
        raise library.failure(f"refuses the profile {profile.min} to {profile.max}")


def _read_timing_cache(config: Any, path: Path | None) -> Any:
    """What was measured before, or an empty cache where that was on another GPU. Untried: it needs a GPU."""
    if path is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _monitor(trt: Any, advance: Advance) -> Any:
    """Turns TensorRT's phases, which lie one in another, into calls of `advance`, 100 in all."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._lock = threading.Lock()  # phases may run on threads of their own
            self._parents: dict[str, str | None] = {}
            self._steps: dict[str, int] = {}
            self._done: dict[str, int] = {}
            self._told = 0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._lock:
                self._parents[name], self._steps[name], self._done[name] = parent, max(1, steps), 0

        def step_complete(self, name: str, step: int) -> bool:
            self._done[name] = step + 1
            self._tell(name)
            return not self.interrupted

        def phase_finish(self, name: str) -> None:
            self._done[name] = self._steps[name]
            self._tell(name)

        def _tell(self, name: str) -> None:
            try:
                with self._lock:
                    part = 0.0
                    at: str | None = name
                    while at is not None:
                        part = min(1.0, (self._done[at] + part) / self._steps[at])
                        at = self._parents.get(at)
                    while self._told < int(100 * part):
                        advance()
                        self._told += 1
            except KeyboardInterrupt:  # may not pass through TensorRT, which is asked to end instead
                self.interrupted = True

    return Monitor()
