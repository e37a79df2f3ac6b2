"""The PyTorch original of a checkpoint: what every version is compared with. Knows transformers alone."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from export.source import Checkpoint
from shoal.errors import ExportError


def load(kind: str, checkpoint: Checkpoint, purpose: str, **options: Any) -> PreTrainedModel:
    """A model in fp32, in evaluation mode, with all its weights.

    Args:
        kind: transformers' class, e.g. `AutoModelForCausalLM`.
        purpose: the task, for errors.
        options: more for `from_pretrained`.

    Raises:
        ExportError: transformers cannot load it, or the checkpoint lacks weights. Those would be made up at
            random, and "proven" against themselves.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, loaded = getattr(transformers, kind).from_pretrained(
            checkpoint.folder,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # transformers and safetensors raise what they like
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"transformers cannot load {checkpoint.id} for {purpose}: {reason}") from error
    # Hidden states alone are read of a bare model, and many a checkpoint comes without its pooler.
    missing = sorted(
        name for name in loaded["missing_keys"] if not (kind == "AutoModel" and "pooler" in name)
    )
    if missing:
        raise ExportError(
            f"{checkpoint.id} has no weights for {purpose}: {missing[0]} is missing",
            hint="choose another --task, or a checkpoint that was trained for this one",
        )
    made: PreTrainedModel = model.eval()
    return made
