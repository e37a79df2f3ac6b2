"""What a checkpoint is for, told by its files and by transformers' own register of classes.

transformers lists for each of its automatic classes which models it may load (`MODEL_FOR_..._MAPPING_NAMES`):
so no name is taken apart here, and a class is what transformers says it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import transformers
from transformers.models.auto import modeling_auto

from export.checkpoint.source import Checkpoint, read_json
from shoal import tasks
from shoal.errors import ExportError

# Which register tells of which task. Where two list one class, the first counts: T5 is also listed among the
# models that fill masks, and XLM's language model among those that generate.
_REGISTERS = (
    ("SEQUENCE_CLASSIFICATION", tasks.CLASSIFICATION),
    ("TOKEN_CLASSIFICATION", tasks.ENTITIES),
    ("QUESTION_ANSWERING", tasks.QUESTIONS),
    ("IMAGE_CLASSIFICATION", tasks.IMAGES),
    ("SEQ_TO_SEQ_CAUSAL_LM", tasks.REWRITING),
    ("MASKED_LM", tasks.MASKS),
    ("CAUSAL_LM", tasks.GENERATION),
)


@dataclass(frozen=True)
class Kind:
    """What a checkpoint is.

    Attributes:
        architecture: transformers' class, e.g. `BertForMaskedLM`; "": the files name none.
        task: what it is for, in Hugging Face's names; None: its files do not tell.
        other: what it is for where no task of ours is, in words; "": it is not known to be for anything else.
    """

    architecture: str
    task: str | None
    other: str = ""

    @property
    def headed(self) -> bool:
        """Whether the class has a head for one use: neither a bare transformer nor one for pre-training."""
        task = registered(self.architecture).task
        pretrains = self.architecture in _names("MODEL_FOR_PRETRAINING_MAPPING_NAMES")
        return task != tasks.EMBEDDING and not (pretrains and task is None)


def kind_of(checkpoint: Checkpoint) -> Kind:
    """What a checkpoint is for, by its own files.

    Raises:
        ExportError: a file cannot be read, or the model's code comes with the checkpoint.
    """
    config = checkpoint.config
    architecture = _architecture(config)
    _check_code(config, architecture)
    made_by = read_json(checkpoint.folder / "config_sentence_transformers.json", {}).get("model_type")
    if made_by == "SparseEncoder":
        return Kind(architecture, None, "sparse vectors")
    if made_by == "CrossEncoder" or _names_activation(config):
        return Kind(architecture, tasks.RANKING if _one_class(config, architecture) else tasks.CLASSIFICATION)
    if (checkpoint.folder / "modules.json").is_file():
        return Kind(architecture, tasks.EMBEDDING)
    return registered(architecture)


@cache
def registered(architecture: str) -> Kind:
    """What transformers registers a class for."""
    for register, task in _REGISTERS:
        if architecture in _names(f"MODEL_FOR_{register}_MAPPING_NAMES"):
            return Kind(architecture, task)
    if architecture in _names("MODEL_MAPPING_NAMES") | _names("MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES"):
        return Kind(architecture, tasks.EMBEDDING)  # whether it reads texts, sentence-transformers tells
    for name in dir(modeling_auto):
        if (match := re.fullmatch(r"MODEL_FOR_(\w+)_MAPPING_NAMES", name)) and architecture in _names(name):
            return Kind(architecture, None, match[1].lower().replace("_", " ").replace(" 2 ", " to "))
    return Kind(architecture, None)


def registered_for(automatic: str) -> set[str]:
    """The classes that one of transformers' automatic classes may load, e.g. `AutoModelForMaskedLM`."""
    named = re.sub(r"(?<!^)(?=[A-Z][a-z]|LM)", "_", automatic.removeprefix("AutoModel")).upper()
    return _names(f"MODEL_{named}_MAPPING_NAMES") if named else set()


def _names(register: str) -> set[str]:
    return set(_flat(getattr(modeling_auto, register, {}).values()))


def _flat(values: Any) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        else:  # one model with several classes
            yield from _flat(value)


def _architecture(config: dict[str, Any]) -> str:
    """The class that the config names, or transformers' bare class for its kind of model."""
    named = config.get("architectures")
    if isinstance(named, list) and named:
        return str(named[0])
    bare = modeling_auto.MODEL_MAPPING_NAMES.get(str(config.get("model_type")), "")
    return bare if isinstance(bare, str) else str(bare[0])


def _check_code(config: dict[str, Any], architecture: str) -> None:
    """Refuse a model whose code comes with it, and a kind of model that transformers does not know."""
    model_type = config.get("model_type")
    if model_type in transformers.CONFIG_MAPPING:
        return
    if "auto_map" in config:
        raise ExportError(
            f"the code of {architecture or model_type} comes with the checkpoint and is not run",
            hint="choose an architecture that transformers has itself",
        )
    raise ExportError(
        f"config.json has the model_type {model_type!r}, unknown to transformers {transformers.__version__}",
        hint="is it the config of a Hugging Face model? A newer one needs a newer transformers",
    )


def _names_activation(config: dict[str, Any]) -> bool:
    """Whether sentence-transformers saved it as a cross-encoder, in the ways of its versions before 5."""
    own = config.get("sentence_transformers")
    return "sbert_ce_default_activation_function" in config or (
        isinstance(own, dict) and "activation_fn" in own
    )


def _one_class(config: dict[str, Any], architecture: str) -> bool:
    """Whether a cross-encoder gives one number a pair, as a reranker does."""
    if registered(architecture).task == tasks.GENERATION:  # the odds of two tokens
        return True
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels")
    # A bare transformer becomes a cross-encoder of one class, as the library has it.
    return count == 1 or (count is None and registered(architecture).task != tasks.CLASSIFICATION)
