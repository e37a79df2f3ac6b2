"""Where the encoder families of transformers keep their layers, heads and feed-forward columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from shoal.errors import ExportError


@dataclass(frozen=True)
class Family:
    """Paths of submodules, and the names of the config that follow from their sizes.

    Attributes:
        layers: the list of layers, below the base model.
        attention: below a layer; remembers in `pruned_heads` which heads are gone.
        context: the linear map that reads the heads side by side.
        up, down: the linear maps into and out of the feed-forward columns.
        width: the config's name for the number of those columns.
        shared_bias: all layers add one position bias a head, so that none may lose a head of its own.
    """

    layers: str = "encoder.layer"
    attention: str = "attention"
    context: str = "attention.output.dense"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    width: str = "intermediate_size"
    shared_bias: bool = False


_BERT = Family()
FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "mpnet": Family(context="attention.attn.o", shared_bias=True),
    "distilbert": Family(
        layers="transformer.layer",
        context="attention.out_lin",
        up="ffn.lin1",
        down="ffn.lin2",
        width="hidden_dim",
    ),
}


class TransformerEncoder:
    """A backbone's parts by their role, whatever its family calls them.

    Raises:
        ExportError: the architecture is not one of `FAMILIES`.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        kind = backbone.config.model_type
        if kind not in FAMILIES:
            raise ExportError(
                f"the architecture {kind} cannot be made smaller", hint=f"known are {', '.join(FAMILIES)}"
            )
        self.family = FAMILIES[kind]
        self.config: Any = backbone.config
        self.backbone = backbone
        self._base = backbone.base_model

    @property
    def layers(self) -> list[torch.nn.Module]:
        """The transformer layers, first to last."""
        return list(self._base.get_submodule(self.family.layers))

    @layers.setter
    def layers(self, layers: list[torch.nn.Module]) -> None:
        self._base.set_submodule(self.family.layers, torch.nn.ModuleList(layers))

    @property
    def embeddings(self) -> torch.nn.Module:
        """The tables that turn ids into vectors."""
        return self._base.embeddings

    def heads(self, layer: torch.nn.Module) -> list[int]:
        """The heads a layer still has, numbered as before any pruning."""
        gone = layer.get_submodule(self.family.attention).pruned_heads
        return [head for head in range(self.config.num_attention_heads) if head not in gone]

    def context(self, layer: torch.nn.Module) -> torch.nn.Linear:
        """[hidden, heads x head size]."""
        return layer.get_submodule(self.family.context)

    def down(self, layer: torch.nn.Module) -> torch.nn.Linear:
        """[hidden, columns]."""
        return layer.get_submodule(self.family.down)

    def keep_columns(self, columns: list[list[int]]) -> None:
        """Shrink each layer's feed-forward block to these columns: as many in every layer."""
        for layer, kept in zip(self.layers, columns, strict=True):
            index = torch.tensor(kept)
            for path, axis in ((self.family.up, 0), (self.family.down, 1)):
                layer.set_submodule(path, _shrunk(layer.get_submodule(path), index, axis))
        setattr(self.config, self.family.width, len(columns[0]))


def _shrunk(linear: torch.nn.Linear, index: torch.Tensor, axis: int) -> torch.nn.Linear:
    """A map with some rows (axis 0, bias too) or columns (axis 1) of the weight, which is [out, in]."""
    weight = linear.weight.detach().index_select(axis, index).clone()
    small = torch.nn.Linear(
        weight.shape[1],
        weight.shape[0],
        bias=linear.bias is not None,
        dtype=weight.dtype,
        device=weight.device,
    )
    with torch.no_grad():
        small.weight.copy_(weight)
        if linear.bias is not None:
            small.bias.copy_(linear.bias.index_select(0, index) if axis == 0 else linear.bias)
    return small
