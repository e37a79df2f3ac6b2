"""What a task is: its inputs, its head, its outputs, how its answers compare. One small class each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from transformers import PreTrainedModel

from export.checkpoint.opened import Opened
from export.encoder.tasks.heads import Head
from shoal.tasks import CONTRACTS, Contract

Feed = Mapping[str, NDArray]
Outputs = Mapping[str, NDArray]
# One row of a request as a person has it: by input, its texts, or the content of an image's file.
Row = Mapping[str, Sequence[Any]]

NO_ANSWER = ""


class Task(ABC):
    """One thing that models are used for.

    Attributes:
        name: as Hugging Face names its pipeline; what it takes and gives on the wire stands in `shoal.tasks`.
        auto: transformers' automatic class for this task.
        network_inputs: of the ensemble's inputs, those that the network reads itself.
        pairs: whether sequences hold two texts, which some networks must be able to tell apart.
        longest: tokens of a sequence at most, whatever the checkpoint can.
        lengths: tokens at which evidence is taken.
        max_batch_size: most rows in one request.
        metric: name of the figure that labelled data give.
    """

    name: ClassVar[str]
    auto: ClassVar[str]
    network_inputs: ClassVar[tuple[str, ...]] = ()
    pairs: ClassVar[bool] = False
    longest: ClassVar[int] = 1 << 20
    lengths: ClassVar[tuple[int, ...]] = (8, 16, 64, 128, 256)
    max_batch_size: ClassVar[int] = 64
    metric: ClassVar[str] = "accuracy"

    @property
    def contract(self) -> Contract:
        """What it takes and gives on the wire."""
        return CONTRACTS[self.name]

    @property
    def layout(self) -> str | None:
        """How texts become tokens; None: images."""
        return self.contract.layout

    @abstractmethod
    def head(self, backbone: PreTrainedModel, opened: Opened) -> Head:
        """The module that is exported.

        Raises:
            ExportError: the checkpoint lacks what the task needs.
        """

    def transformer(self, opened: Opened) -> str:
        """transformers' class that loads the checkpoint with this task's head."""
        return self.auto

    def finish(self, model: onnx.ModelProto, head: Head, opened: Opened, top_k: int) -> None:  # noqa: B027
        """Add to the exported graph, in place, what PyTorch cannot express: labels. Some tasks have none.

        Args:
            top_k: most labels in an answer.
        """

    def layout_options(self, opened: Opened, max_length: int) -> dict[str, str]:
        """Parameters that the layout needs."""
        return {}

    def output_model(self, opened: Opened) -> tuple[str, dict[str, str]] | None:
        """Module in `serving.models` and parameters of the model behind the network, where it needs one."""
        return None

    def row(self, passage: str, index: int, opened: Opened) -> Row:
        """A row of sample input made from a paragraph of text."""
        return {"text": [passage]}

    def compared(self, outputs: Outputs, feed: Feed) -> NDArray[np.float32]:
        """The outputs of the head as vectors that are compared with the original's, [vectors, width]."""
        return outputs["probabilities"]

    def answered(self, outputs: Outputs, feed: Feed, row: Row, opened: Opened) -> Mapping[str, float]:
        """What is made of one row of outputs, [1, ...]: answers and their probabilities, the likeliest first,
        `NO_ANSWER` last. Empty: there is nothing to compare beside `compared`."""
        return {}

    @abstractmethod
    def score(self, answers: Any, eval_data: Path, opened: Opened) -> float:
        """x100, on the user's labelled data.

        Args:
            answers: a function from rows to the head's outputs and the feed they came from.
            eval_data: CSV with a header line; see each task.

        Raises:
            UsageError: the file cannot be read.
        """
