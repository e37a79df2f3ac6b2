"""Run an engine in this process, to take its evidence; what serves it is Triton. Untried: it takes a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.exported import TensorSpec
from export.tensorrt.engine import Engine
from export.tensorrt.library import Library
from export.tensorrt.shapes import Profile
from shoal.errors import ExportError

Arrays = Mapping[str, NDArray]


def open_engine(engine: Engine) -> Callable[[Arrays], dict[str, NDArray]]:
    """An engine as a function of its inputs, on the first GPU; its tail is not run.

    Raises:
        ExportError: it cannot be opened here, or PyTorch, which holds what it reads and writes, has no CUDA.
        MissingDependency: TensorRT is not installed.
    """
    library = Library(engine.fingerprint.flavour)
    if not torch.cuda.is_available():
        raise ExportError("this PyTorch has no CUDA, which holds an engine's inputs and outputs")
    opened = library.open(engine.path.read_bytes())
    context = opened.create_execution_context()

    def run(feed: Arrays) -> dict[str, NDArray]:
        stream = torch.cuda.current_stream()
        given = {spec.name: np.ascontiguousarray(feed[spec.name]) for spec in engine.inputs}
        index = profile_for(engine.fingerprint.profiles, engine.inputs, given)
        context.set_optimization_profile_async(index, stream.cuda_stream)
        held: dict[str, Any] = {name: torch.from_numpy(value).cuda() for name, value in given.items()}
        for name, value in held.items():
            context.set_input_shape(name, tuple(value.shape))
        for spec in engine.computed:
            kind = library.trt.nptype(opened.get_tensor_dtype(spec.name))
            empty = torch.from_numpy(np.empty(tuple(context.get_tensor_shape(spec.name)), kind))
            held[spec.name] = empty.cuda()
        for name, value in held.items():
            context.set_tensor_address(name, value.data_ptr())
        if not context.execute_async_v3(stream.cuda_stream):
            raise library.failure(f"cannot run {engine.path.name}")
        stream.synchronize()
        return {spec.name: held[spec.name].cpu().numpy() for spec in engine.computed}

    return run


def profile_for(profiles: Sequence[Profile], inputs: Sequence[TensorSpec], given: Arrays) -> int:
    """Number of the first profile that allows the shapes of all inputs.

    Raises:
        ExportError: none does.
    """
    for index, profile in enumerate(profiles):
        ranges = [(given[spec.name].shape, *profile.of(spec)) for spec in inputs]
        if all(
            low <= size <= high
            for shape, least, _, most in ranges
            for size, low, high in zip(shape, least, most, strict=True)
        ):
            return index
    shapes = ", ".join(f"{spec.name} {list(given[spec.name].shape)}" for spec in inputs)
    raise ExportError(f"the engine has no profile for {shapes}")
