"""What each task puts behind a transformer, as PyTorch modules: these are exported, and compared with.

A head ends in what the task needs and no more: a vector instead of all hidden states, probabilities instead
of logits, the scores of one masked token instead of those of all. Where a row has several sequences
([rows, sequences, tokens], see `serving.models.layouts`), the head folds them into the batch and back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from export.encoder.sentence import Sentence


class Head(torch.nn.Module, ABC):
    """A transformer and what a task does with its output.

    Args:
        backbone: the transformer, with the checkpoint's own head where it has one.

    Attributes:
        outputs: names of what `forward` gives.
        activation: what makes answers of `logits`: `softmax` over their last dimension, `sigmoid` of each
            value, or `none`. A smaller model learns `logits` by the loss that belongs to it, see
            `export.encoder.compress.losses`.
    """

    outputs: tuple[str, ...] = ("probabilities",)
    activation: str = "none"

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = backbone.config

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pooling_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """int64 [rows, (sequences,) tokens] or float32 [rows, 3, height, width], to `outputs`."""
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "pixel_values": pixel_values,
            "pooling_mask": pooling_mask,
        }
        inputs = {name: value for name, value in given.items() if value is not None}
        return dict(zip(self.outputs, self.run(inputs), strict=True))

    @abstractmethod
    def logits(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """What stands before the activation, float32 tensors, one for each of `outputs`."""

    def run(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The values of `outputs`, of the shapes of `logits`."""
        return tuple(_activated(logits, self.activation) for logits in self.logits(inputs))


class Embedding(Head):
    """From token vectors to one vector a text, as the checkpoint's sentence-transformers modules do it.

    Args:
        sentence: what stands behind the transformer.
    """

    outputs = ("embedding",)

    def __init__(self, backbone: PreTrainedModel, sentence: Sentence) -> None:
        super().__init__(backbone)
        self.sentence = sentence
        self.tail = torch.nn.ModuleList(sentence.tail)

    def logits(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """float32 [rows, width]. `pooling_mask` is the attention mask without the tokens of a prompt."""
        mask = inputs.pop("pooling_mask", inputs["attention_mask"])
        value: Any = getattr(self.backbone, self.sentence.method)(**inputs)
        for name in self.sentence.output:
            value = value[name] if isinstance(value, Mapping) else getattr(value, name)
        if self.sentence.pooling:
            value = torch.cat([POOLING[mode](value, mask) for mode in self.sentence.pooling], dim=1)
        features = {"sentence_embedding": value}
        for module in self.tail:
            features = module(features)
        return (features["sentence_embedding"][:, : self.sentence.truncate_dim],)


def _real(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mask [rows, tokens] as factors of hidden states [rows, tokens, width]."""
    return mask.unsqueeze(-1).to(hidden.dtype)


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = _real(hidden, mask)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _mean_sqrt_length(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = _real(hidden, mask)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9).sqrt()


def _weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Later tokens weigh more (Muennighoff 2022, arXiv:2202.08904)."""
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device).unsqueeze(0).to(hidden.dtype)
    weights = _real(hidden, mask) * places.unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _max(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).max(dim=1).values


def _first(hidden: Tensor, mask: Tensor) -> Tensor:
    return _at(hidden, mask.to(torch.int32).argmax(1))


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    return _at(hidden, (mask * torch.arange(mask.shape[1], device=mask.device)).to(torch.int32).argmax(1))


def _at(hidden: Tensor, place: Tensor) -> Tensor:
    """The hidden state of one token of each row. Gathered: indexing by two tensors confuses a tracer."""
    index = place.to(torch.int64).reshape(-1, 1, 1).expand(-1, 1, hidden.shape[2])
    return hidden.gather(1, index).squeeze(1)


# sentence-transformers' modes of pooling, in its names: hidden states [rows, tokens, width] and the mask
# [rows, tokens] to vectors [rows, width].
POOLING: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_length,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


class Classification(Head):
    """Logits to scores: `softmax` (one label), `sigmoid` (each label by itself) or `none` (a regression)."""

    def __init__(self, backbone: PreTrainedModel, activation: str) -> None:
        super().__init__(backbone)
        self.activation = activation

    def logits(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """float32 [rows, classes]."""
        return (_class_logits(self.backbone, inputs),)


def _class_logits(backbone: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Logits of a text's classes [rows, classes].

    A decoder reads them off the last token that is no padding. One whose config names no padding takes the
    last token whatever it is, and one row at a time: here the mask tells which it is.
    """
    if (
        getattr(backbone.config, "pad_token_id", None) is None
        and hasattr(backbone, "score")
        and "input_ids" in inputs
    ):
        hidden = backbone.base_model(**inputs).last_hidden_state
        return backbone.score(_last(hidden, inputs["attention_mask"]))
    return backbone(**inputs).logits


class Score(Head):
    """One number a row: how well a text answers a query.

    Args:
        activation: what a CrossEncoder does to the logit.
    """

    outputs = ("score",)

    def __init__(self, backbone: PreTrainedModel, activation: torch.nn.Module) -> None:
        super().__init__(backbone)
        self.scored = activation
        self.activation = "sigmoid" if isinstance(activation, torch.nn.Sigmoid) else "none"

    def logits(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """float32 [rows, 1]; where no sigmoid follows, the score itself."""
        logits = _class_logits(self.backbone, inputs)
        return (logits if self.activation == "sigmoid" else self.scored(logits),)


class TokenClassification(Head):
    """Probabilities of each token's classes."""

    activation = "softmax"

    def logits(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """float32 [rows, tokens, classes]."""
        return (self.backbone(**inputs).logits,)


class FillMask(Head):
    """Probabilities of every token of the vocabulary where the mask is."""

    activation = "softmax"

    def __init__(self, backbone: PreTrainedModel, mask_id: int) -> None:
        super().__init__(backbone)
        self.mask_id = mask_id
        self._position: Any = None
        self._narrowed = False
        # The product with the vocabulary is the larger half of a small model: one token of it is wanted.
        backbone.get_output_embeddings().register_forward_pre_hook(self._masked_only)

    def _masked_only(self, module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = arguments
        if self._position is None:
            return arguments
        self._narrowed = True
        return (_at(hidden, self._position).unsqueeze(1), *others)

    def logits(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """float32 [rows, vocabulary]."""
        self._position = (inputs["input_ids"] == self.mask_id).to(torch.int64).argmax(1)
        self._narrowed = False
        try:
            logits = self.backbone(**inputs).logits
            # MobileBERT multiplies with the matrix of its output layer, and never calls the layer.
            return (logits[:, 0] if self._narrowed else _at(logits, self._position),)
        finally:
            self._position = None


class Grouped(Head, ABC):
    """Rows of several sequences, folded into the batch and back."""

    def folded(self, inputs: dict[str, Tensor]) -> tuple[Any, list[int]]:
        """The transformer's output over [rows * sequences, tokens], and [rows, sequences]."""
        shape = inputs["input_ids"].shape
        flat = {name: value.reshape(-1, shape[2]) for name, value in inputs.items()}
        return self.backbone(**flat), [shape[0], shape[1]]


class QuestionAnswering(Grouped):
    """Logits of where an answer starts and ends, in each window: what stands behind the network takes the
    softmax, over the tokens that may be an answer."""

    outputs = ("start_logits", "end_logits")
    activation = "softmax"

    def logits(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """float32 [rows, windows, tokens] twice."""
        output, shape = self.folded(inputs)
        return tuple(
            logits.reshape(*shape, inputs["input_ids"].shape[2])
            for logits in (output.start_logits, output.end_logits)
        )

    def run(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The logits themselves."""
        return self.logits(inputs)


class ZeroShot(Grouped):
    """Entailment of each candidate label's sentence by the text.

    Args:
        entailment, contradiction: indices of the checkpoint's classes.
    """

    outputs = ("probabilities", "independent")
    activation = "softmax"

    def __init__(self, backbone: PreTrainedModel, entailment: int, contradiction: int) -> None:
        super().__init__(backbone)
        self.entailment, self.contradiction = entailment, contradiction

    def logits(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """float32 [rows, labels], entailment of each, and [rows, labels, 2], contradiction and entailment."""
        output, shape = self.folded(inputs)
        logits = output.logits.reshape(*shape, output.logits.shape[-1])
        return logits[:, :, self.entailment], logits[:, :, [self.contradiction, self.entailment]]

    def run(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """float32 [rows, labels] twice: of one label among all, and of each by itself."""
        logits, pairs = self.logits(inputs)
        among, alone = logits.softmax(-1), pairs.softmax(-1)[:, :, 1]
        # Among one label there is no choice: the pipeline then says how true it is.
        single = torch.ones_like(among).sum(-1, keepdim=True) == 1
        return torch.where(single, alone, among), alone


def _activated(logits: Tensor, activation: str) -> Tensor:
    if activation == "softmax":
        return logits.softmax(-1)
    return logits.sigmoid() if activation == "sigmoid" else logits
