"""Triton configs for TensorRT, made from the config a network has for ONNX Runtime.

Two ways: an engine of our own (`plan_config`), or the ONNX file, from which ONNX Runtime builds engines when
it loads (`accelerated_config`). Both need the official container and a GPU; neither was tried on one. How
the TensorRT backend reads profiles and graphs is taken from its source (src/instance_state.cc), the keys of
the accelerator from the README of triton-inference-server/onnxruntime_backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from tritonclient.grpc import model_config_pb2 as triton

from export.exported import Exported
from export.tensorrt.fingerprint import Fingerprint
from export.tensorrt.shapes import Profile, Shape
from shoal.errors import ExportError

FILENAME = "model.plan"
# Where the server may write in the container; see docker-compose.
ENGINE_CACHE = PurePosixPath("/var/cache/shoal")


def plan_config(
    network: triton.ModelConfig,
    exported: Exported,
    fingerprint: Fingerprint,
    *,
    graph_batches: Sequence[int] = (1,),
) -> triton.ModelConfig:
    """The config of the same network as an engine, with all its profiles and with CUDA graphs.

    A CUDA graph replays one shape exactly: each profile gets one for its best shape, and for each of
    `graph_batches` at its best length. Other shapes run without. Triton tries each graph on each profile and
    logs an error for those that do not allow it: harmless, and only when it starts.

    Args:
        network: from `export.encoder.config.encoder_config`; it is not changed.
        exported: the graph the engine was built from, for the inputs' names and dims.

    Raises:
        ExportError: the engine is one that Triton does not load.
    """
    if fingerprint.flavour != "tensorrt":
        raise ExportError(
            f"Triton does not load engines of {fingerprint.flavour}",
            hint="build with tensorrt, inside the official container",
        )
    config = triton.ModelConfig()
    config.CopyFrom(network)
    config.ClearField("backend")
    config.platform = "tensorrt_plan"
    config.default_model_filename = FILENAME
    del config.instance_group[:]
    group = config.instance_group.add(count=1, kind=triton.ModelInstanceGroup.KIND_GPU)
    group.profile.extend(str(index) for index in range(len(fingerprint.profiles)))
    config.optimization.cuda.graphs = True
    for shape in _graph_shapes(fingerprint.profiles, graph_batches):
        spec = config.optimization.cuda.graph_spec.add(batch_size=shape.batch)
        for value in exported.inputs:
            spec.input[value.name].dim.extend(shape.tokens if dim == -1 else dim for dim in value.dims[1:])
    return config


def _graph_shapes(profiles: Sequence[Profile], batches: Sequence[int]) -> list[Shape]:
    """Each shape once, by profile."""
    shapes = [
        Shape(batch, profile.opt.tokens)
        for profile in profiles
        for batch in (*batches, profile.opt.batch)
        if profile.min.batch <= batch <= profile.max.batch
    ]
    return list(dict.fromkeys(shapes))


def accelerated_config(
    network: triton.ModelConfig,
    exported: Exported,
    profile: Profile,
    cache: PurePosixPath,
) -> triton.ModelConfig:
    """The config of an ONNX file that ONNX Runtime runs through TensorRT.

    What TensorRT does not know (operators of `com.microsoft`, strings) stays with ONNX Runtime's CUDA, piece
    by piece: give it the plain graph, not the fused one. The cache keeps a start from building anew what the
    one before it built. Our own onnxruntime backend, that of the embedded server, refuses this config: it
    takes no parameters of accelerators.

    Precision is that of the graph, so no `precision_mode`: TensorRT 11 takes it from nowhere else.

    Args:
        network: from `export.encoder.config.encoder_config`; it is not changed.
        profile: the shapes engines are built for; `shapes.whole` makes one of several.
        cache: folder inside the container, writable to the server, for engines and what was measured.
    """
    config = triton.ModelConfig()
    config.CopyFrom(network)
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    shapes = {spec.name: profile.of(spec) for spec in exported.inputs}
    accelerator.parameters.update(
        trt_engine_cache_enable="true",
        trt_engine_cache_path=str(cache),
        trt_timing_cache_enable="true",
        trt_timing_cache_path=str(cache),
        **{
            f"trt_profile_{which}_shapes": ",".join(
                f"{name}:{'x'.join(map(str, dims[index]))}" for name, dims in shapes.items()
            )
            for index, which in enumerate(("min", "opt", "max"))
        },
    )
    return config
