"""What sentence-transformers does behind a transformer, read from the modules that it has opened."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from export.checkpoint.opened import Opened
from shoal.errors import ExportError

# Modules that map one vector a text to another: they become part of the graph as they are.
_TAIL = ("Dense", "Normalize", "LayerNorm", "Dropout")
_WAY_OUT = "a transformer, Pooling, Dense, LayerNorm and Normalize can be exported"
_TEMPLATE = (
    'model[0].modality_config.pop("message"); model.save(NEW) makes a copy that reads plain texts, which can'
    " be exported: see docs/tasks.md, Language models that embed and rank"
)


@dataclass(frozen=True)
class Sentence:
    """From token vectors to one vector a text.

    Attributes:
        transformer: transformers' class of the first module.
        method: of it, e.g. `forward`.
        output: where its result is found in what the method gives, e.g. `("last_hidden_state",)`.
        pooling: modes of sentence-transformers' `Pooling`, their vectors one behind the other; empty: the
            result is one vector a text already.
        include_prompt: whether the tokens of a prompt count in the pooling.
        tail: the modules behind, in their order.
        truncate_dim: components that are kept; None: all.
    """

    transformer: str
    method: str
    output: tuple[str, ...]
    pooling: tuple[str, ...]
    include_prompt: bool
    tail: tuple[nn.Module, ...]
    truncate_dim: int | None

    @classmethod
    def of(cls, opened: Opened) -> Sentence:
        """Of an opened SentenceTransformer.

        Raises:
            ExportError: it has a module that cannot be exported, or puts texts into a chat template.
        """
        first, *others = list(opened.library)
        if type(first).__name__ != "Transformer":
            raise _refused(opened, first)
        if "message" in first.modality_config:
            raise ExportError(
                f"{opened.checkpoint.id} puts each text into a chat template, which is not supported",
                hint=_TEMPLATE,
            )
        read = first.modality_config["text"]
        output = read["method_output_name"]
        pooling: tuple[str, ...] = ()
        include_prompt = True
        if others and type(others[0]).__name__ == "Pooling":
            pool, *others = others
            pooling = (pool.pooling_mode,) if isinstance(pool.pooling_mode, str) else pool.pooling_mode
            include_prompt = bool(pool.include_prompt)
        for module in others:
            takes = getattr(module, "module_input_name", "sentence_embedding")
            if type(module).__name__ not in _TAIL or takes != "sentence_embedding":
                raise _refused(opened, module)
        if not pooling and first.module_output_name != "sentence_embedding":
            raise ExportError(f"{opened.checkpoint.id} has no Pooling behind its transformer", hint=_WAY_OUT)
        return cls(
            type(first.model).__name__,
            read["method"],
            (output,) if isinstance(output, str) else tuple(output or ()),
            pooling,
            include_prompt,
            tuple(copy.deepcopy(module) for module in others),  # the library's own stay as they are
            opened.library.truncate_dim,
        )


def _refused(opened: Opened, module: Any) -> ExportError:
    name = f"{type(module).__module__}.{type(module).__name__}"
    return ExportError(
        f"{opened.checkpoint.id} uses the module {name}, which is not supported", hint=_WAY_OUT
    )


def score_activation(opened: Opened) -> nn.Module:
    """What an opened CrossEncoder does to a score.

    Raises:
        ExportError: it is no module of PyTorch, or more stands behind the transformer.
    """
    first, *others = list(opened.library)
    if type(first).__name__ != "Transformer" or others:
        raise _refused(opened, others[0] if others else first)
    if "text" not in first.modality_config or "message" in first.modality_config:
        raise ExportError(
            f"{opened.checkpoint.id} puts pairs into a chat template, which is not supported", hint=_TEMPLATE
        )
    activation = opened.library.activation_fn
    if not isinstance(activation, nn.Module):
        raise ExportError(f"{opened.checkpoint.id} scores with {activation}, which is no module of PyTorch")
    return activation
