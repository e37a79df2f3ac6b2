"""Configs as our `onnxruntime` backend is shown them: requests of different lengths may meet in one batch.

Triton joins requests of equal shapes only, unless a config says `allow_ragged_batch`. Our backend then gets
them one by one and groups their rows by length (`serving.onnxruntime.batching`). The C++ backend of the
official container takes the same words for a tensor without a batch dimension. So the repository does not
hold them, and the same files serve in both places.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf import text_format

from serving.parameters import IDS, MASK, ROW_PADDING
from serving.placement import on_gpu
from shoal import model_config
from shoal.names import ENCODER, TOKENIZER, part_name


def with_ragged_batches(name: str, configs: Mapping[str, str]) -> str:
    """The config of a network whose rows may be grouped by length, with ragged batches; others as they are.

    Such a network reads tokens [n, tokens] with an attention mask, and gives one value of a fixed shape for
    each row. Its tokenizer says what rows are filled up with.

    Args:
        name: of the model.
        configs: by model, those that are served together.
    """
    from tritonclient.grpc import model_config_pb2  # noqa: PLC0415 - it brings gRPC, see `model_config`

    config = configs[name]
    padding = _padding(name, configs)
    if not padding or model_config.backend_of(config) != "onnxruntime":
        return config
    try:
        read = model_config.parse(config, strict=True)
    except text_format.ParseError:  # Triton says what is wrong with it
        return config
    by_row = {IDS, MASK} <= {entry.name for entry in read.input} and all(
        list(entry.dims) == [-1] and entry.data_type == model_config_pb2.TYPE_INT64 for entry in read.input
    )
    fixed = bool(read.output) and all(dim > 0 for entry in read.output for dim in entry.dims)
    # One large run suits a GPU better.
    if on_gpu(read) or not (
        by_row and fixed and read.HasField("dynamic_batching") and read.max_batch_size > 1
    ):
        return config
    for entry in read.input:
        entry.allow_ragged_batch = True
    read.parameters[ROW_PADDING].string_value = padding
    return model_config.to_text(read)


def _padding(name: str, configs: Mapping[str, str]) -> str:
    """The token id that the tokenizer before a network fills rows up with; empty: there is no tokenizer."""
    ending = part_name("", ENCODER)
    tokenizer = configs.get(part_name(name.removesuffix(ending), TOKENIZER), "")
    if not name.endswith(ending) or not tokenizer:
        return ""
    try:
        return str(model_config.parse(tokenizer).parameters["pad_id"].string_value)
    except text_format.ParseError:
        return ""
