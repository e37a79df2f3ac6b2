"""The models of an encoder's version: before the network, the network, behind it, and their ensemble."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as triton

from export.encoder import config
from export.encoder.prepare import Source
from export.encoder.rows import TextEncoder
from export.encoder.setting import Setting
from export.evidence import Verified
from export.exported import Exported
from export.repository import ModelFiles, Release, model_py
from export.tensorrt import ACCELERATED
from export.tensorrt.config import ENGINE_CACHE, accelerated_config, plan_config
from export.tensorrt.engine import Engine
from export.tensorrt.shapes import Profile, from_buckets, from_traffic, read_traffic, whole
from export.triton_config import network_config
from shoal.names import ENCODER, LABELS, OUTPUT, PREPROCESSOR, TOKENIZER, part_name


def release(proven: Verified, source: Source, setting: Setting | None = None) -> Release:
    """A proven graph and the models around it, as they will stand in the repository.

    Args:
        setting: how the network runs; None: the default.
    """
    parts = parts_of(proven.exported, proven.evidence.precision, source, setting)
    return Release(proven, parts, part_name(source.recipe.name, ENCODER))


def parts_of(
    exported: Exported, precision: str, source: Source, setting: Setting | None = None
) -> tuple[ModelFiles, ...]:
    """A graph and the models around it, in the order in which requests pass them, the ensemble last.

    Args:
        setting: how the network runs; None: the default.
    """
    recipe, task, name = source.recipe, source.task, source.recipe.name
    parts = []
    if isinstance(source.encode, TextEncoder):
        files: dict[str, Path | str] = {
            "tokenizer.json": source.encode.path.read_text(encoding="utf-8"),
            "model.py": model_py("tokenizer"),
        }
        make = partial(config.tokenizer_config, recipe, task, source.encode)
        parts.append(ModelFiles(part_name(name, TOKENIZER), files, make))
    else:
        make = partial(config.image_config, recipe, task, source.encode.processor)
        parts.append(ModelFiles(part_name(name, PREPROCESSOR), {"model.py": model_py("images")}, make))
    make = partial(_network_config, exported, precision, source, setting or Setting())
    parts.append(ModelFiles(part_name(name, ENCODER), {exported.filename: exported.path}, make))
    if isinstance(exported, Engine) and exported.tail is not None:
        batch = config.batch_size_of(recipe, task)
        make = partial(network_config, part_name(name, LABELS), exported.tail, batch)
        parts.append(ModelFiles(part_name(name, LABELS), {exported.tail.filename: exported.tail.path}, make))
    if (output := task.output_model(source.opened)) is not None:
        module, parameters = output
        make = partial(config.output_config, recipe, task, exported, parameters)
        parts.append(ModelFiles(part_name(name, OUTPUT), {"model.py": model_py(module)}, make))
    steps = [part.config(1) for part in parts]
    make = partial(
        config.ensemble_config,
        recipe,
        task,
        source.encode,
        steps,
        config.facts_of(source.opened, task),
    )
    return (*parts, ModelFiles(name, {}, make))


def _network_config(
    exported: Exported, precision: str, source: Source, setting: Setting, version: int
) -> triton.ModelConfig:
    """The config of a network on ONNX Runtime, on TensorRT, or on the one through the other."""
    if isinstance(exported, Engine):
        computed = replace(exported, outputs=exported.computed)
        onnx_config = config.encoder_config(source.recipe, source.task, computed, setting, version)
        return plan_config(onnx_config, exported, exported.fingerprint)
    onnx_config = config.encoder_config(source.recipe, source.task, exported, setting, version)
    if precision == ACCELERATED:
        return accelerated_config(onnx_config, exported, whole(profiles_of(source)), ENGINE_CACHE)
    return onnx_config


def profiles_of(source: Source) -> tuple[Profile, ...]:
    """The shapes that TensorRT builds for: of the traffic that the recipe names, or of its buckets."""
    recipe, batch = source.recipe, config.batch_size_of(source.recipe, source.task)
    buckets = config.buckets_of(recipe, source.encode.max_length) or (1,)  # a picture has no length
    if recipe.traffic is None:
        return from_buckets(batch, buckets)
    return from_traffic(read_traffic(recipe.traffic), batch, buckets[-1])
