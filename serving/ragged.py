"""Configs as our `onnxruntime` backend is shown them: requests of different lengths may meet in one batch.

Triton joins requests of equal shapes only, unless a config says `allow_ragged_batch`. Our backend then gets
them one by one and groups their rows by length (`serving.onnxruntime.batching`). The C++ backend of the
official container takes the same words for a tensor without a batch dimension. So the repository does not
hold them, and the same files serve in both places.
"""

from __future__ import annotations

from shoal import model_config

MASK = "attention_mask"


def with_ragged_batches(config: str) -> str:
    """The config of a network whose rows may be grouped by length, with ragged batches; others as they are.

    Such a network reads tokens [n, tokens] with an attention mask, and gives one value of a fixed shape for
    each row.
    """
    if model_config.backend_of(config) != "onnxruntime":
        return config
    read = model_config.parse(config)
    by_row = any(entry.name == MASK for entry in read.input) and all(
        list(entry.dims) == [-1] for entry in read.input
    )
    fixed = all(dim > 0 for entry in read.output for dim in entry.dims)
    gpu = any(group.kind == group.KIND_GPU for group in read.instance_group)  # one large run suits it better
    if gpu or not (by_row and fixed and read.HasField("dynamic_batching") and read.max_batch_size > 1):
        return config
    for entry in read.input:
        entry.allow_ragged_batch = True
    return model_config.to_text(read)
