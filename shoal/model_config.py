"""A model's `config.pbtxt`, read by Triton's own schema. Nothing else in this project parses one.

Source: `model_config.proto` of triton-inference-server/common, as `tritonclient` brings it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from google.protobuf import text_format

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

_ENSEMBLE, _ENGINE = "ensemble", "tensorrt_plan"


def parse(text: str, *, strict: bool = False) -> ModelConfig:
    """A config that may be changed.

    Args:
        strict: fields that this schema does not have are an error; otherwise they are left out.

    Raises:
        google.protobuf.text_format.ParseError: Triton would refuse it, too.
    """
    # Imported here: it brings gRPC, which the processes that serve models do not need.
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig(), allow_unknown_field=not strict)


def to_text(config: ModelConfig) -> str:
    """Write a config as the text of `config.pbtxt`: fields in the order of the schema, maps sorted by key."""
    return str(text_format.MessageToString(config, use_index_order=True))


def selected_versions(text: str) -> set[int]:
    """Versions that a config selects by number; empty where it selects none, or cannot be read."""
    return {version for version in _read(text).version_policy.specific.versions if version >= 0}


def is_ensemble(text: str) -> bool:
    """Whether a config is that of an ensemble."""
    return str(_read(text).platform) == _ENSEMBLE


def steps_of(text: str) -> frozenset[str]:
    """Models that an ensemble passes its requests through; none where it is not one."""
    return frozenset(step.model_name for step in _read(text).ensemble_scheduling.step)


def backend_of(text: str) -> str:
    """The backend that a config needs; empty where it names none."""
    config = _read(text)
    return "tensorrt" if config.platform == _ENGINE else str(config.backend)


@lru_cache(maxsize=1024)
def _read(text: str) -> ModelConfig:
    """A config that others hold as well; empty where it cannot be read."""
    from tritonclient.grpc import model_config_pb2

    try:
        return parse(text)
    except text_format.ParseError:
        return model_config_pb2.ModelConfig()
