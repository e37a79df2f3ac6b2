"""Distillation: a student learns on unlabelled text to answer as its teacher does.

Its outputs are matched by the loss that suits the task (`export.encoder.compress.losses`): classes by the KL
divergence at a temperature, vectors and numbers by their squared distance; and, whatever the task, the
hidden states of the last layer by their squared distance, token by token (after TinyBERT, Jiao et al. 2020,
arXiv:1909.10351).

Sentences are cut into random spans of words, most of them short, so that a few thousand of them give
ever new inputs of the lengths that are asked for in service. The embedding tables stay the teacher's:
words that the text does not hold keep their meaning. Dropout is off: the teacher's answer is a function
of the text, without noise to average over.

Every random choice follows from the seed and the number of the step, so a run that was killed and goes
on from its folder ends in the same weights, bit by bit, on the same machine with as many threads.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.encoder.compress import state
from export.encoder.compress import texts as spans
from export.encoder.compress.architecture import TransformerEncoder
from export.encoder.compress.losses import Distance
from export.encoder.tasks.heads import Head
from shoal.errors import ExportError, UsageError
from shoal.progress import Silent

Encode = Callable[..., Mapping[str, NDArray[np.int64]]]
Weights = Mapping[str, torch.nn.Parameter]
WARM_UP = 0.1  # of all steps
WEIGHT_DECAY = 0.01
LONGEST_GRADIENT = 1.0  # norm; longer ones are scaled down


@dataclass(frozen=True)
class Distillation:
    """How a student is trained.

    Attributes:
        steps: updates of the weights.
        batch: texts a step.
        learning_rate: of AdamW. It rises over the first tenth of the steps, to nine tenths of this value,
            and falls linearly to 0 after the last.
        seed: of the choice and the cutting of texts.
        max_words: longest span that is cut out of a text.
        max_tokens: longest input in tokens.
        hidden_weight: of the hidden states' distance next to the outputs'.
        temperature: of the softmax or the sigmoid that makes probabilities of logits; a vector and a
            regression have none.
        save_every: steps between two saves.

    Raises:
        UsageError: a value is out of range.
    """

    steps: int = 300
    batch: int = 32
    learning_rate: float = 3e-4
    seed: int = 0
    max_words: int = 32
    max_tokens: int = 64
    hidden_weight: float = 1.0
    temperature: float = 2.0
    save_every: int = 50

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1),
            ("batch", 1),
            ("save_every", 1),
            ("max_words", spans.SHORTEST_SPAN),
            ("max_tokens", spans.SHORTEST_SPAN),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"distillation: {name} is {getattr(self, name)}", hint=f"{least} at least")
        for name in ("learning_rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"distillation: {name} is {getattr(self, name):g}", hint="above 0")
        if not 0 <= self.hidden_weight < math.inf:
            raise UsageError(f"distillation: hidden_weight is {self.hidden_weight:g}", hint="0 or more")


def distill(
    teacher: Head,
    student: Head,
    texts: Sequence[str],
    encode: Encode,
    *,
    settings: Distillation,
    folder: Path,
    progress: Silent | None = None,
) -> dict[str, Any]:
    """Train `student`, in place, to give what `teacher` gives. Both are left in evaluation mode.

    Args:
        teacher, student: give logits of the same shapes for what `encode` makes.
        texts: unlabelled, of any length.
        encode: (texts, max_length=tokens) -> int64 [rows, tokens] or [rows, sequences, tokens] by name, with
            an `attention_mask`.
        folder: keeps the state of the run. A finished run is not repeated: its weights are loaded.

    Returns:
        Plain JSON types: the settings, the loss of the outputs, hashes of the texts and of both models
        before, seconds of training, and that loss on held-out texts: `held_out` {"texts", "before", "after"}.

    Raises:
        UsageError: there are too few texts, or the folder holds another run.
        ExportError: an architecture is not known, the models do not fit, or the loss is not finite.
    """
    spans.check_enough(texts, "distillation")
    distance = Distance(teacher.eval(), student.eval(), settings.temperature)
    run = asdict(settings) | {
        "loss": distance.loss,
        "texts_sha256": _sha256(text.encode() for text in texts),
        "teacher_sha256": _sha256_of(teacher),
        "student_sha256": _sha256_of(student),
    }
    teaching, held_out = spans.split(texts, settings.seed)
    with _trainable(student) as weights:
        optimizer = torch.optim.AdamW(weights.values(), weight_decay=WEIGHT_DECAY)
        start = state.load(folder, run)
        if start is None:
            before = _measure(distance, held_out, encode, settings)
            start = state.State(0, {}, {"before": before, "seconds": 0.0})
        _restore(weights, optimizer, start)
        seconds = start.figures["seconds"]
        began = time.monotonic()
        title = f"Distil for {settings.steps} steps"
        with (progress or Silent()).step(title, total=settings.steps) as advance:
            for _ in range(start.step):
                advance()
            for step in range(start.step, settings.steps):
                _update(distance, weights, optimizer, teaching, encode, step, settings)
                if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
                    seconds = start.figures["seconds"] + time.monotonic() - began
                    figures = start.figures | {"seconds": seconds}
                    state.save(folder, run, state.State(step + 1, _gathered(weights, optimizer), figures))
                advance()
        after = _measure(distance, held_out, encode, settings)
    measured = {"texts": len(held_out), "before": start.figures["before"], "after": after}
    return run | {"texts": len(texts), "seconds": round(seconds, 1), "held_out": measured}


def _update(
    distance: Distance,
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    texts: Sequence[str],
    encode: Encode,
    step: int,
    settings: Distillation,
) -> None:
    """One step of AdamW on the spans that belong to its number."""
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * _rise_and_fall(step, settings.steps)
    batch = spans.batch(texts, step, size=settings.batch, max_words=settings.max_words, seed=settings.seed)
    outputs, hidden = distance(encode(batch, max_length=settings.max_tokens))
    loss = outputs + settings.hidden_weight * hidden
    if not torch.isfinite(loss):
        raise ExportError(f"distillation went astray at step {step}", hint="take a lower learning rate")
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights.values(), LONGEST_GRADIENT)
    optimizer.step()


def _rise_and_fall(step: int, steps: int) -> float:
    """The share of the learning rate: a rise over the first tenth, times a fall to 0 after the last step."""
    return min((step + 1) / max(1.0, WARM_UP * steps), 1.0) * (1 - step / steps)


def _measure(distance: Distance, texts: Sequence[str], encode: Encode, settings: Distillation) -> float:
    """The loss of the outputs over whole texts, as far as `max_tokens` reaches: the mean of its batches."""
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(texts), settings.batch):
            some = texts[start : start + settings.batch]
            total += float(distance(encode(some, max_length=settings.max_tokens))[0]) * len(some)
    return total / len(texts)


@contextmanager
def _trainable(student: torch.nn.Module) -> Iterator[dict[str, torch.nn.Parameter]]:
    """The weights that learn, by name: all but the embeddings. What asks for gradients is put back after."""
    asked = {name: weight.requires_grad for name, weight in student.named_parameters()}
    frozen = {id(weight) for weight in TransformerEncoder(student.backbone).embeddings.parameters()}
    try:
        for weight in student.parameters():
            weight.requires_grad_(id(weight) not in frozen)
        yield {name: weight for name, weight in student.named_parameters() if weight.requires_grad}
    finally:
        student.zero_grad()
        for name, weight in student.named_parameters():
            weight.requires_grad_(asked[name])


def _gathered(weights: Weights, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Weights as `weight/<name>`, AdamW's values as `<its name>/<name>`."""
    found = {f"weight/{name}": weight.detach().contiguous() for name, weight in weights.items()}
    for name, weight in weights.items():
        # A weight that no output depends on (a pooler beside mean pooling) has no moments.
        for key, value in optimizer.state.get(weight, {}).items():
            found[f"{key}/{name}"] = value.contiguous()
    return found


def _restore(weights: Weights, optimizer: torch.optim.Optimizer, saved: state.State) -> None:
    """The opposite of `_gathered`."""
    with torch.no_grad():
        for path, value in saved.tensors.items():
            key, _, name = path.partition("/")
            if key == "weight":
                weights[name].copy_(value)
            else:
                optimizer.state[weights[name]][key] = value


def _sha256_of(model: torch.nn.Module) -> str:
    return _sha256(
        part
        for name, value in sorted(model.state_dict().items())
        for part in (name.encode(), value.detach().contiguous().numpy().tobytes())
    )


def _sha256(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
