"""How far a student is from its teacher: by the loss that suits the answer, and by the last hidden states.

A head's `activation` decides (see `export.encoder.tasks.heads`):

- `softmax`: the KL divergence of the softmax at a temperature T, times T² (Hinton et al. 2015,
  arXiv:1503.02531). Of classes; of a token's classes, token by token; of the tokens where an answer may
  start and end; of zero-shot's candidate labels, among all and each by itself.
- `sigmoid`: the KL divergence of each label's yes and no at a temperature T, times T², summed over the
  labels (Yang et al. 2023, arXiv:2308.06453).
- `none`: the squared distance. Of embeddings (Reimers & Gurevych 2020, arXiv:2004.09813) and regressions.

A head with several outputs has the sum of their losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from export.encoder.compress.architecture import TransformerEncoder
from export.encoder.compress.importance import each_token, over_tokens, tensors
from export.encoder.tasks.heads import Head
from shoal.errors import ExportError


class Distance:
    """Compares two models on the same inputs.

    Args:
        teacher, student: give logits of the same shapes.
        temperature: of the softmax and of the sigmoid of logits.

    Raises:
        ExportError: an architecture is not known, or the hidden sizes differ.
    """

    def __init__(self, teacher: Head, student: Head, temperature: float) -> None:
        self._teacher, self._student, self._temperature = teacher, student, temperature
        self._last = [TransformerEncoder(model.backbone).layers[-1] for model in (teacher, student)]
        sizes = [model.backbone.config.hidden_size for model in (teacher, student)]
        if sizes[0] != sizes[1]:
            raise ExportError(
                f"a student of hidden size {sizes[1]} cannot learn from a teacher of {sizes[0]}",
                hint="make the student with export.encoder.compress.prune",
            )

    @property
    def loss(self) -> str:
        """What the outputs are compared by."""
        return "squared distance" if self._teacher.activation == "none" else "KL divergence"

    def __call__(self, feed: Mapping[str, NDArray[np.int64]]) -> tuple[torch.Tensor, torch.Tensor]:
        """The distance of the outputs and that of the last hidden states; gradients flow to the student."""
        inputs = tensors(feed)
        mask = inputs["attention_mask"]
        with _captured(self._last) as hidden:
            with torch.no_grad():
                expected = self._teacher.logits(dict(inputs))
            got = self._student.logits(dict(inputs))
        shapes = [[tuple(value.shape) for value in each] for each in (expected, got)]
        if shapes[0] != shapes[1]:
            raise ExportError(f"the student gives {shapes[1]}, its teacher {shapes[0]}")
        pairs = zip(got, expected, strict=True)
        outputs = torch.stack([self._output(*pair, mask) for pair in pairs]).sum()
        sequences = mask.reshape(-1, mask.shape[-1])  # hidden states know no rows of several sequences
        return outputs, squared(hidden[1], hidden[0].detach(), sequences)

    def _output(self, got: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._teacher.activation == "softmax":
            return softmax_divergence(got, expected, mask, self._temperature)
        if self._teacher.activation == "sigmoid":
            return sigmoid_divergence(got, expected, self._temperature)
        return squared(got, expected, mask)


def squared(got: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared distance in units of the expected mean square; for unit vectors 2 - 2 cosine.

    Args:
        got, expected: [rows, ...]; [rows, tokens, ...] counts where the mask is 1.
        mask: int64 [rows, tokens].
    """
    got, expected = _real(got, mask), _real(expected, mask)
    return (got - expected).square().sum() / expected.square().sum().clamp(min=1e-12)


def softmax_divergence(
    got: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor, temperature: float
) -> torch.Tensor:
    """KL(expected || got) of the softmax at a temperature, times its square, nats: mean of all softmaxes.

    Args:
        got, expected: logits [rows, ..., classes]. [rows, tokens, classes] counts where the mask is 1;
            where the classes are the tokens of a sequence, [rows, sequences, tokens], padding is none.
        mask: int64 [rows, tokens] or [rows, sequences, tokens].
    """
    wanted, given = (
        functional.log_softmax(_possible(_real(logits, mask) / temperature, mask), dim=-1).flatten(0, -2)
        for logits in (expected, got)
    )
    return functional.kl_div(given, wanted, reduction="batchmean", log_target=True) * temperature**2


def sigmoid_divergence(got: torch.Tensor, expected: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(expected || got) of each label's sigmoid at a temperature, times its square, nats: the sum over the
    labels, the mean over the rows.

    Args:
        got, expected: logits [rows, labels].
    """
    # The probabilities of yes and no are a softmax over the logit and 0.
    wanted, given = (
        functional.log_softmax(torch.stack([logits, torch.zeros_like(logits)], dim=-1) / temperature, dim=-1)
        for logits in (expected, got)
    )
    return functional.kl_div(given, wanted, reduction="batchmean", log_target=True) * temperature**2


def _real(value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Values for each token without those of padding, [real tokens, ...]; others as they are."""
    return value[mask.bool()] if each_token(value, mask) else value


def _possible(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits of tokens, so that padding has no probability; others as they are."""
    if over_tokens(logits, mask):
        return logits.masked_fill(mask == 0, torch.finfo(logits.dtype).min)
    return logits


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
