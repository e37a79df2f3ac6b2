"""How far a student is from its teacher: outputs, and hidden states of the last layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from export.compress.architecture import Encoder
from export.compress.importance import tensors
from shoal.errors import ExportError

LOGITS = "logits"


class Distance:
    """Compares two models on the same inputs.

    Args:
        teacher, student: give dicts of float tensors of the same names and shapes.
        temperature: of the softmax of logits.

    Raises:
        ExportError: an architecture is not known, or the hidden sizes differ.
    """

    def __init__(self, teacher: torch.nn.Module, student: torch.nn.Module, temperature: float) -> None:
        self._teacher, self._student, self._temperature = teacher, student, temperature
        self._last = [Encoder(model.backbone).layers[-1] for model in (teacher, student)]
        sizes = [model.backbone.config.hidden_size for model in (teacher, student)]
        if sizes[0] != sizes[1]:
            raise ExportError(
                f"a student of hidden size {sizes[1]} cannot learn from a teacher of {sizes[0]}",
                hint="make the student with export.compress.prune",
            )
        many = getattr(teacher.backbone.config, "problem_type", None) == "multi_label_classification"
        self._softmax = not many

    def __call__(self, feed: Mapping[str, NDArray[np.int64]]) -> tuple[torch.Tensor, torch.Tensor]:
        """The distance of the outputs and that of the last hidden states; gradients flow to the student."""
        inputs = tensors(feed)
        mask = inputs["attention_mask"]
        with _captured(self._last) as hidden:
            with torch.no_grad():
                expected = self._teacher(**inputs)
            got = self._student(**inputs)
        shapes = [{name: tuple(value.shape) for name, value in each.items()} for each in (expected, got)]
        if shapes[0] != shapes[1]:
            raise ExportError(f"the student gives {shapes[1]}, its teacher {shapes[0]}")
        outputs = sum(self._output(name, got[name], expected[name], mask) for name in expected)
        return outputs, squared(hidden[1], hidden[0].detach(), mask)

    def _output(
        self, name: str, got: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        if name == LOGITS and self._softmax and expected.shape[-1] > 1:
            return divergence(got, expected, mask, self._temperature)
        return squared(got, expected, mask)


def squared(got: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared distance in units of the expected mean square; for unit vectors 2 - 2 cosine.

    Args:
        got, expected: [batch, ...]; [batch, tokens, ...] counts where the mask is 1.
        mask: int64 [batch, tokens].
    """
    got, expected = _real(got, mask), _real(expected, mask)
    return (got - expected).square().sum() / expected.square().sum().clamp(min=1e-12)


def divergence(
    got: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor, temperature: float
) -> torch.Tensor:
    """KL(expected || got) of the softmax at a temperature, times its square (Hinton et al. 2015), nats.

    Args:
        got, expected: [batch, ..., classes]; [batch, tokens, classes] counts where the mask is 1.
    """
    wanted, given = (
        functional.log_softmax(_real(logits, mask) / temperature, dim=-1).flatten(0, -2)
        for logits in (expected, got)
    )
    return functional.kl_div(given, wanted, reduction="batchmean", log_target=True) * temperature**2


def _real(value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Values for each token without those of padding, [real tokens, ...]; others as they are."""
    if value.ndim > 2 and value.shape[:2] == mask.shape:
        return value[mask.bool()]
    return value


@contextmanager
def _captured(layers: list[torch.nn.Module]) -> Iterator[list[torch.Tensor]]:
    """What each layer gave last, float [batch, tokens, hidden]."""
    outputs: list[torch.Tensor] = [torch.empty(0)] * len(layers)

    def hook(place: int) -> object:
        def keep(layer: torch.nn.Module, inputs: object, output: object) -> None:
            # Some families give a tuple that begins with it.
            outputs[place] = output[0] if isinstance(output, tuple) else output

        return keep

    handles = [layer.register_forward_hook(hook(place)) for place, layer in enumerate(layers)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
