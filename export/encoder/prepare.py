"""A checkpoint of an encoder, loaded for its task: what is exported, and what versions are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from export.checkpoint.opened import Opened, open_checkpoint
from export.checkpoint.source import Checkpoint
from export.checkpoint.tokenizer import write_tokenizer
from export.encoder import verify
from export.encoder.backbone import LONGEST, load_head, network_inputs, positions_of
from export.encoder.recipe import EncoderRecipe
from export.encoder.rows import ImageEncoder, TextEncoder, served_settings
from export.encoder.tasks import task_of
from export.encoder.tasks.heads import Head
from export.encoder.tasks.images import processor_of
from export.encoder.tasks.task import Feed, Outputs, Task
from export.encoder.verify import Subject
from export.exported import Exported
from shoal.machine import available_cpus


@dataclass(frozen=True)
class Source:
    """A checkpoint that is ready to be exported for a task.

    Attributes:
        opened: the checkpoint in its own library.
        head: what is exported: the PyTorch original, or a smaller copy of it.
        original: what every version is compared with.
        encode: rows to features, as they will be served.
        inputs: which of the features the network reads.
    """

    recipe: EncoderRecipe
    opened: Opened
    task: Task
    head: Head
    original: Head
    encode: TextEncoder | ImageEncoder
    inputs: tuple[str, ...]

    @property
    def subject(self) -> Subject:
        """What is measured."""
        return Subject(self.task, self.opened, as_model(self.original, self.inputs), self.encode)

    def feed(self, texts: Sequence[str]) -> dict[str, Any]:
        """The network's inputs, of rows that are made from some texts."""
        features = self.encode(self.subject.rows(texts))
        return {name: features[name] for name in self.inputs}

    def finished(self, exported: Exported, path: Path) -> Exported:
        """Add what PyTorch cannot express to a graph, after its precision was chosen: labels."""
        model = onnx.load(exported.path)
        self.task.finish(model, self.head, self.opened, self.recipe.top_k)
        onnx.save(model, path)
        return Exported.read(path)


def prepare(recipe: EncoderRecipe, checkpoint: Checkpoint, folder: Path) -> Source:
    """Load a checkpoint for its task.

    Args:
        folder: the tokenizer that will be served is written there.

    Raises:
        UsageError, ExportError: there is no such task, or the checkpoint is not made for it.
    """
    task = task_of(checkpoint, recipe.task)
    opened = open_checkpoint(checkpoint, task.name, truncate_dim=recipe.truncate_dim)
    head = load_head(opened, task)
    inputs = network_inputs(head, task, opened)
    encode: TextEncoder | ImageEncoder
    if task.layout is None:
        encode = ImageEncoder(processor_of(opened))
    else:
        stated = min(length for length in (opened.longest, positions_of(head.backbone), LONGEST) if length)
        length = min(recipe.max_length or task.longest, stated)
        encode = TextEncoder(
            write_tokenizer(opened.tokenizer, folder),
            task.layout,
            length,
            _pad_id(opened),
            (*inputs, *task.contract.features),
            **served_settings(opened),
            **task.layout_options(opened, length),
        )
    return Source(recipe, opened, task, head, head, encode, inputs)


def _pad_id(opened: Opened) -> int:
    """The token that fills a sequence up; the mask hides it, and some families count positions by it."""
    stated = (getattr(opened.config, "pad_token_id", None), opened.tokenizer.pad_token_id, 0)
    return int(next(token for token in stated if token is not None))


def as_model(head: Head, inputs: Sequence[str]) -> verify.Model:
    """The PyTorch original as a function of features, on the CPUs this process may use."""
    torch.set_num_threads(available_cpus())

    def model(feed: Feed) -> Outputs:
        with torch.inference_mode():
            results = head(**{name: torch.from_numpy(feed[name]) for name in inputs})
        return {name: value.numpy() for name, value in results.items()}

    return model
