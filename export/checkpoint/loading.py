"""The libraries that checkpoints are made for: called without their noise, their errors told in one line."""

from __future__ import annotations

import errno
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from export.checkpoint.source import Checkpoint
from shoal.errors import ExportError, ShoalError

_LOGGERS = ("sentence_transformers", "optimum", "torch", "torch.onnx", "torch.fx", "huggingface_hub")
# Where these hold, a checkpoint runs no code of its own, and its weights are no pickle.
SAFELY: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


class _Unread(io.StringIO):
    """What libraries print goes nowhere, while a progress bar goes on where it is."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self.rich_proxied_file = getattr(stream, "rich_proxied_file", stream)  # rich writes to this one

    def write(self, text: str) -> int:
        return len(text)


@contextmanager
def of_a_library(failed: str, *, hint: str = "") -> Iterator[None]:
    """Whatever a library raises inside, as an `ExportError` of one line; its remarks are not shown.

    Args:
        failed: what did not work, e.g. `./mine cannot be loaded`.
        hint: what to do about it.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(_Unread(sys.stdout)),
            redirect_stderr(_Unread(sys.stderr)),
        ):
            warnings.simplefilter("ignore")
            yield
    except (ShoalError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # a full disk is no fault of the checkpoint
            raise
        raise ExportError(f"{failed}: {reason_of(error)}", hint=hint) from error
    except BaseException as error:  # libraries raise what they like; a panic of tokenizers is no Exception
        raise ExportError(f"{failed}: {reason_of(error)}", hint=hint) from error


TAKE_OUT = "take %s out of generation_config.json to serve the model without it"


def check_generation(given: GenerationConfig, refused: Sequence[str], source: str) -> None:
    """Refuse a generation config that asks for what is not supported.

    Args:
        refused: names of settings; one that has transformers' default asks for nothing.

    Raises:
        ExportError: it does; the message names the setting.
    """
    plain = GenerationConfig()
    for key in refused:
        if (value := getattr(given, key, None)) and value != getattr(plain, key, None):
            raise ExportError(
                f"the generation config of {source} asks for {key} = {value}, which is not supported",
                hint=TAKE_OUT % key,
            )


def reason_of(error: BaseException) -> str:
    """What an error says, in one line of at most 300 characters."""
    if isinstance(error, torch.onnx.OnnxExporterError):  # says where, not what
        error = error.__cause__ or error
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # colours
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    said = lines[0] if lines else type(error).__name__
    if isinstance(error, KeyError | TypeError | AttributeError | IndexError):  # which say little alone
        said = f"{type(error).__name__}: {said}"
    return said if len(said) <= 300 else f"{said[:299]}…"


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
    with of_a_library(f"transformers cannot load {checkpoint.id} for {purpose}"):
        model, loaded = getattr(transformers, kind).from_pretrained(
            checkpoint.transformer,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **SAFELY,
            **options,
        )
    # Hidden states alone are read of a bare model, and many a checkpoint comes without its pooler.
    bare = not any(mark in kind for mark in ("For", "LMHead", "Generation"))
    missing = sorted(name for name in loaded["missing_keys"] if not (bare and "pooler" in name))
    if missing:
        raise ExportError(
            f"{checkpoint.id} has no weights for {purpose}: {missing[0]} is missing",
            hint="choose another --task, or a checkpoint that was trained for this one",
        )
    if loaded["mismatched_keys"]:
        name, stored, wanted = loaded["mismatched_keys"][0]
        raise ExportError(
            f"{checkpoint.id} has weights of another shape than its config says: {name} is {list(stored)},"
            f" not {list(wanted)}"
        )
    return model.eval()
