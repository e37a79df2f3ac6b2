"""What each task of an encoder takes and gives: one contract, read by exporters, served models and clients.

To add a task, add its contract here; what stands behind the transformer is a class of `export.encoder.tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """What one row has of a tensor.

    Attributes:
        dtype: as Triton names it without `TYPE_`, e.g. `FP32`.
        dims: -1 is any number.
    """

    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Contract:
    """One task on the wire.

    Attributes:
        inputs: what users send, BYTES each: by name, how many a row has; -1 is any number.
        outputs: what users get, in the order in which clients return it.
        layout: how texts become tokens, a key of `serving.models.layouts.LAYOUTS`; None: pictures.
        features: what the tokenizer tells the model behind the network.
    """

    inputs: Mapping[str, int]
    outputs: Mapping[str, Tensor]
    layout: str | None
    features: tuple[str, ...] = ()


# What the tokenizer makes of a sequence of tokens, whose number is free.
FEATURES = {
    "input_ids": Tensor("INT64", (-1,)),
    "attention_mask": Tensor("INT64", (-1,)),
    "token_type_ids": Tensor("INT64", (-1,)),
    "pooling_mask": Tensor("INT64", (-1,)),
    "offsets": Tensor("INT32", (-1, 2)),
    "word_offsets": Tensor("INT32", (-1, 2)),
    "special_tokens_mask": Tensor("BOOL", (-1,)),
    "context_mask": Tensor("BOOL", (-1,)),
    "subword": Tensor("BOOL", (-1,)),
}

_LABELS = {"label": Tensor("STRING", (-1,)), "score": Tensor("FP32", (-1,))}
_PLACES = {"start": Tensor("INT32", (-1,)), "end": Tensor("INT32", (-1,))}

EMBEDDING = "sentence-similarity"
CLASSIFICATION = "text-classification"
RANKING = "text-ranking"
ZERO_SHOT = "zero-shot-classification"
ENTITIES = "token-classification"
QUESTIONS = "question-answering"
MASKS = "fill-mask"
IMAGES = "image-classification"
# These have no contract here: their words are in `shoal.dialect`.
GENERATION, REWRITING = "text-generation", "text2text-generation"

CONTRACTS = {
    EMBEDDING: Contract({"text": 1}, {"embedding": Tensor("FP32", (-1,))}, "text"),
    CLASSIFICATION: Contract({"text": -1}, _LABELS, "text"),
    RANKING: Contract({"query": 1, "text": 1}, {"score": Tensor("FP32", (1,))}, "query"),
    ZERO_SHOT: Contract(
        {"text": 1, "candidate_labels": -1},
        {**_LABELS, "independent_score": Tensor("FP32", (-1,))},
        "hypotheses",
    ),
    ENTITIES: Contract(
        {"text": 1},
        {**_LABELS, "word": Tensor("STRING", (-1,)), **_PLACES},
        "located",
        ("offsets", "special_tokens_mask", "subword"),
    ),
    QUESTIONS: Contract(
        {"question": 1, "context": 1},
        {
            "answer": Tensor("STRING", (1,)),
            "score": Tensor("FP32", (1,)),
            "start": Tensor("INT32", (1,)),
            "end": Tensor("INT32", (1,)),
            "no_answer_score": Tensor("FP32", (1,)),
        },
        "windows",
        ("context_mask", "word_offsets"),
    ),
    MASKS: Contract({"text": 1}, _LABELS, "masked"),
    IMAGES: Contract({"image": 1}, _LABELS, None),
}


def outputs_of(task: str) -> tuple[str, ...]:
    """Names of what users get, in the order in which clients return it."""
    return tuple(CONTRACTS[task].outputs)


def inputs_of(layout: str) -> tuple[str, ...]:
    """Names of the texts that a layout reads."""
    return next(tuple(contract.inputs) for contract in CONTRACTS.values() if contract.layout == layout)
