"""The transformer of a checkpoint with the head of its task, and what it reads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from export.checkpoint.kinds import kind_of, registered, registered_for
from export.checkpoint.loading import load
from export.checkpoint.opened import Opened
from export.checkpoint.source import Checkpoint
from export.encoder.tasks.heads import Head
from export.encoder.tasks.task import Task
from shoal.errors import ExportError
from shoal.tasks import GENERATION, RANKING

# Tokens of an input at most, also where the checkpoint or its positions allow more.
LONGEST = 4096


def load_head(opened: Opened, task: Task) -> Head:
    """The PyTorch original in fp32, in evaluation mode: what every version is compared with.

    Raises:
        ExportError: transformers cannot load it, or it lacks what the task needs.
    """
    _check_architecture(opened.checkpoint, task)
    head = task.head(load(task.transformer(opened), opened.checkpoint, task.name), opened).eval()
    _check_inputs(head.backbone, opened, task)
    _check_vocabulary(head.backbone, opened)
    return head


def _check_architecture(checkpoint: Checkpoint, task: Task) -> None:
    """Refuse another task's head, whose weights may have names and shapes of the one that is wanted."""
    kind = kind_of(checkpoint)
    if task.name == RANKING and kind.headed and registered(kind.architecture).task == GENERATION:
        raise ExportError(
            f"{checkpoint.id} is a {kind.architecture}, which would rank by two tokens of a language model:"
            " that is not supported",
            hint="the same score as a class of its own can be exported: docs/tasks.md, Language models that"
            " embed and rank, has the lines that make it",
        )
    wanted = registered_for(task.auto)
    if wanted and kind.architecture not in wanted and kind.headed:
        raise ExportError(
            f"{checkpoint.id} is a {kind.architecture}, which has no head for {task.name}",
            hint="choose another --task, or a checkpoint that was trained for this one",
        )


def _check_inputs(backbone: PreTrainedModel, opened: Opened, task: Task) -> None:
    """Refuse a network that cannot leave padding out."""
    if task.layout is not None and "attention_mask" not in _parameters(backbone):
        raise ExportError(
            f"{opened.checkpoint.id} is a {type(backbone).__name__}, which takes no attention mask: padding"
            " would change its answers",
            hint="choose an architecture that takes one",
        )


def _check_vocabulary(backbone: PreTrainedModel, opened: Opened) -> None:
    """Refuse a tokenizer that is another model's: its tokens have no vectors."""
    if opened.tokenizer is None:
        return
    try:
        rows = getattr(backbone.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # a model of texts and pictures
        return
    if rows is not None and opened.tokenizer.vocab_size > rows:
        raise ExportError(
            f"the tokenizer of {opened.checkpoint.id} has {opened.tokenizer.vocab_size} tokens and the model"
            f" vectors for {rows}",
            hint="is it the tokenizer that the model was trained with?",
        )


def _parameters(module: torch.nn.Module) -> set[str]:
    return set(inspect.signature(module.forward).parameters)


def network_inputs(head: Head, task: Task, opened: Opened) -> tuple[str, ...]:
    """Names of what the network reads of the features.

    Token types are left out where they are all 0 and the network answers the same without them.
    """
    if task.layout is None:
        return ("pixel_values",)
    told = [opened.tokenizer("a")] + ([opened.tokenizer("a", "b")] if task.pairs else [])
    typed = "token_type_ids" in _parameters(head.backbone) and any(
        any(entry.get("token_type_ids", ())) or _reads_zeros(head.backbone, entry) for entry in told
    )
    sentence = getattr(head, "sentence", None)
    prompts = sentence is not None and not sentence.include_prompt
    return (
        *("input_ids", "attention_mask"),
        *(("token_type_ids",) if typed else ()),
        *(("pooling_mask",) if prompts else ()),
    )


def _reads_zeros(backbone: PreTrainedModel, entry: Mapping[str, Any]) -> bool:
    """Whether token types of 0 are not as none: GPT-2 adds the vector of token 0 to each."""
    if "token_type_ids" not in entry:
        return False
    inputs = {name: torch.tensor([entry[name]]) for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.inference_mode():
        told = backbone(**inputs)[0]
        del inputs["token_type_ids"]
        return not torch.equal(told, backbone(**inputs)[0])


# What modules call their table of position vectors.
_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe")


def positions_of(backbone: PreTrainedModel) -> int | None:
    """Tokens of an input at most, by the tables of position vectors that a model adds; None: it has none.
    Those of a picture's patches do not count.

    Families of RoBERTa keep the first positions for padding, they count from the padding's index on; those of
    BART keep two.
    """
    found = []
    for module in backbone.modules():
        for table in (getattr(module, name, None) for name in _TABLES):
            if isinstance(table, torch.nn.Embedding) and "pixel_values" not in _parameters(module):
                padding = getattr(module, "padding_idx", None)
                kept = padding + 1 if isinstance(padding, int) else 0
                found.append(table.num_embeddings - int(getattr(table, "offset", kept)))
    return min(found, default=None)
