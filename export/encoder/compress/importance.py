"""How much a model's output moves when a part is taken out, measured on unlabelled text.

Michel et al. 2019 (arXiv:1905.10650) put a gate of 1 on every head and take the mean of
|dL/dgate| over texts, L being the task's loss. Without labels the natural loss is the distance of the
output from the ungated model's, but this is zero and smallest at a gate of 1, and so is its gradient:
it would say nothing. The second order is not zero. To that order, closing gate g moves the output f(x)
by ||df/dg||^2, which is what is measured here, as E[(v . df/dg)^2] over random signs v (Hutchinson's
estimator). No text is held against another, so a part that only a few texts need is still seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from export.encoder.compress.architecture import TransformerEncoder
from shoal.progress import Silent

Feed = Mapping[str, NDArray[np.int64]]
PROBES = 4  # random directions a batch of texts


@dataclass(frozen=True)
class Importance:
    """Mean squared change of the output, in units of its own mean square.

    Attributes:
        heads: one float64 [heads of that layer] a layer.
        columns: one float64 [columns of that layer] a layer.
    """

    heads: list[NDArray[np.float64]]
    columns: list[NDArray[np.float64]]


def tensors(feed: Feed) -> dict[str, torch.Tensor]:
    """A feed as int64 tensors of the same shapes."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feed.items()}


def each_token(value: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether there are values for each token, [batch, tokens, values]."""
    return value.shape[:-1] == mask.shape


def over_tokens(value: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether there is one value for each token of several sequences, [batch, sequences, tokens]."""
    return mask.ndim > 2 and value.shape == mask.shape


def flat(outputs: Mapping[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """All outputs of a row side by side, float [batch, values]; those of padding are zero.

    Args:
        mask: int64 [batch, tokens] or [batch, sequences, tokens].
    """

    def without_padding(value: torch.Tensor) -> torch.Tensor:
        if each_token(value, mask):
            return value * mask.unsqueeze(-1)
        return value * mask if over_tokens(value, mask) else value

    return torch.cat([without_padding(value).flatten(1) for value in outputs.values()], dim=1)


def measure_importance(
    module: torch.nn.Module, feeds: Sequence[Feed], *, seed: int = 0, progress: Silent | None = None
) -> Importance:
    """The importance of every attention head and feed-forward column.

    Args:
        module: has a `backbone`; in evaluation mode.
        feeds: calibration texts, int64 [batch, tokens] or [batch, sequences, tokens], with an
            `attention_mask`.
    """
    encoder = TransformerEncoder(module.backbone)
    layers = encoder.layers
    points = [(encoder.context(layer), len(encoder.heads(layer))) for layer in layers]
    points += [(encoder.down(layer), encoder.down(layer).in_features) for layer in layers]
    sums = [np.zeros(groups) for _, groups in points]
    squares = 0.0
    chance = torch.Generator().manual_seed(seed)
    for feed in (progress or Silent()).each("Weigh heads and columns", feeds):
        inputs = tensors(feed)
        with torch.enable_grad(), _gated(points, len(inputs["input_ids"])) as gates:
            output = flat(module(**inputs), inputs["attention_mask"])
            squares += float(output.detach().square().sum())
            for _ in range(PROBES):
                signs = torch.randint(0, 2, output.shape, generator=chance) * 2.0 - 1.0
                moved = torch.autograd.grad((output * signs).sum(), gates, retain_graph=True)
                for place, gradient in enumerate(moved):
                    sums[place] += gradient.double().square().sum(0).numpy() / PROBES
    scores = [total / squares for total in sums]
    return Importance(scores[: len(layers)], scores[len(layers) :])


@contextmanager
def _gated(points: Sequence[tuple[torch.nn.Linear, int]], batch: int) -> Iterator[list[torch.Tensor]]:
    """Multiply the input of each linear map by gates of 1, float [batch, groups]: one a row, so that the
    gradients of different rows stay apart; the sequences of a row share it."""
    gates = [torch.ones(batch, groups, requires_grad=True) for _, groups in points]

    def hook(gate: torch.Tensor) -> object:
        def multiply(linear: torch.nn.Linear, inputs: tuple[torch.Tensor]) -> torch.Tensor:
            wide = gate.repeat_interleave(linear.in_features // gate.shape[1], dim=1)
            wide = wide.repeat_interleave(len(inputs[0]) // batch, dim=0)
            return inputs[0] * wide[:, None, :]

        return multiply

    handles = [
        linear.register_forward_pre_hook(hook(gate)) for (linear, _), gate in zip(points, gates, strict=True)
    ]
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


def least_needed_layers(
    module: torch.nn.Module, feeds: Sequence[Feed], count: int, *, progress: Silent | None = None
) -> list[tuple[int, float]]:
    """`count` layers to take out, one by one: each time the one whose absence moves the output least.

    Returns:
        (layer, mean squared change so far in units of the output's mean square), in the order of removal.
        The module is as it was.
    """
    encoder = TransformerEncoder(module.backbone)
    every = encoder.layers
    kept = list(range(len(every)))
    removed: list[tuple[int, float]] = []
    runs = sum(len(every) - step for step in range(count)) + 1
    with (progress or Silent()).step("Weigh layers", total=runs) as advance, torch.inference_mode():
        try:
            expected = _run(module, feeds)
            advance()
            squares = sum(float(output.square().sum()) for output in expected)
            while len(removed) < count:
                moved = {}
                for layer in kept:
                    encoder.layers = [every[index] for index in kept if index != layer]
                    pairs = zip(_run(module, feeds), expected, strict=True)
                    moved[layer] = sum(float((a - b).square().sum()) for a, b in pairs) / squares
                    advance()
                least = min(moved, key=lambda layer: moved[layer])
                kept.remove(least)
                removed.append((least, moved[least]))
        finally:
            encoder.layers = every
    return removed


def _run(module: torch.nn.Module, feeds: Sequence[Feed]) -> list[torch.Tensor]:
    inputs = [tensors(feed) for feed in feeds]
    return [flat(module(**each), each["attention_mask"]) for each in inputs]
