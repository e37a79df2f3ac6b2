"""An encoder-decoder checkpoint to two ONNX graphs, through optimum, with no weight in both but embeddings.

- The encoder ends in what the decoder reads of a text: the keys and values of each layer's cross-attention,
  computed once a text.
- The decoder adds one token to each row. It is optimum's "decoder with past", which serves the first token as
  well: there the past holds no token. So there is no second decoder for the first token, and no merged one
  with both inside.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor
from transformers import PreTrainedModel

from export.encoder.to_onnx import OPSET
from export.exported import Exported
from export.generation.to_onnx import save
from export.generation.verify import files_of
from export.text2text.recipe import Text2TextRecipe
from serving.text2text.runner import ATTENTION_MASK, DECODER, ENCODER, INPUT_IDS, cross_names
from shoal.errors import ExportError, first_line, install_hint

# Where architectures keep a decoder layer's cross-attention, and the names of its two projections.
_CROSS = {"EncDecAttention": ("k", "v"), "encoder_attn": ("k_proj", "v_proj")}


@dataclass(frozen=True)
class Graphs(Exported):
    """Both graphs of a model; as an `Exported`, its decoder.

    Attributes:
        encoder: the other graph.
    """

    encoder: Exported

    @classmethod
    def read_both(cls, folder: Path) -> Graphs:
        """`encoder.onnx` and `decoder.onnx` of a folder.

        Raises:
            ValueError: see `Exported.read`.
        """
        return cls(**vars(Exported.read(folder / DECODER)), encoder=Exported.read(folder / ENCODER))

    @property
    def files(self) -> list[Path]:
        """Both files, and their weights where those lie beside them."""
        return [part for graph in (self.encoder, self) for part in files_of(graph.path)]

    def describe(self) -> dict[str, Any]:
        """Describe it for the manifest, as plain JSON types."""
        return super().describe() | {"encoder": self.encoder.describe()}


class Encoder(torch.nn.Module):
    """A model's encoder, and behind it the cross-attention's projections of the decoder.

    Args:
        model: the whole model.

    Raises:
        ExportError: its decoder has no cross-attention of a known kind.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.encoder, self.config = model.get_encoder(), model.config
        found = [
            (getattr(module, keys), getattr(module, values))
            for name, module in model.named_modules()
            for keys, values in [_CROSS.get(name.rpartition(".")[2], ("", ""))]
            if keys
        ]
        if not found:
            raise ExportError(f"{type(model).__name__} has no cross-attention of a known kind")
        self.keys = torch.nn.ModuleList([keys for keys, _ in found])
        self.values = torch.nn.ModuleList([values for _, values in found])
        config = self.config
        self.heads = getattr(config, "decoder_attention_heads", None) or config.num_attention_heads

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """int64 [rows, tokens] twice, to float32 [rows, heads, tokens, width] by `cross_names`."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        made = (
            projection(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in zip(self.keys, self.values, strict=True)
            for projection in layer
        )
        return dict(zip(cross_names(len(self.keys)), made, strict=True))


def require_optimum() -> None:
    """Raise where encoder-decoders cannot be exported.

    Raises:
        ExportError: optimum is not installed, as beside transformers 5.
    """
    if find_spec("optimum") is None:
        raise ExportError(
            f"{Text2TextRecipe.TASK} is exported through optimum, which needs transformers 4",
            hint=install_hint("export"),
        )


def to_onnx(model: PreTrainedModel, folder: Path) -> Graphs:
    """Export both graphs, `encoder.onnx` and `decoder.onnx`, into a folder that exists.

    Raises:
        ExportError: optimum has no exporter for this architecture, or it failed.
    """
    # Registers what optimum knows; not to be had with transformers 5.
    from optimum.exporters.onnx import model_configs  # noqa: PLC0415, F401
    from optimum.exporters.tasks import TasksManager  # noqa: PLC0415

    config = model.config
    try:
        make_config = TasksManager.get_exporter_config_constructor(
            "onnx", model=model, task="text2text-generation", library_name="transformers"
        )
    except (KeyError, ValueError) as error:
        raise ExportError(f"optimum has no ONNX exporter for the architecture {config.model_type}") from error
    plain = make_config(config, task="text2text-generation", use_past=True)
    with_past = plain.with_behavior("decoder", use_past=True, use_past_in_inputs=True)
    wrapped = Encoder(model).eval()
    with _configs_kept(model):
        _export(wrapped, _encoder_config(plain, wrapped), folder / ENCODER)
        _export(model, with_past, folder / DECODER)
    return Graphs.read_both(folder)


@contextmanager
def _configs_kept(model: PreTrainedModel) -> Iterator[None]:
    """Optimum leaves its own `use_cache` in every config: T5's encoder then refuses to run."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = {key: config.use_cache for key, config in configs.items() if hasattr(config, "use_cache")}
    try:
        yield
    finally:
        for key, value in before.items():
            configs[key].use_cache = value


def _encoder_config(plain: Any, wrapped: Encoder) -> Any:
    """The architecture's own config, with the outputs of `Encoder`."""
    free = {0: "batch_size", 2: "encoder_sequence_length"}
    outputs = {name: free for name in cross_names(len(wrapped.keys))}
    text = {0: "batch_size", 1: "encoder_sequence_length"}

    class EncoderConfig(type(plain)):  # type: ignore[misc]
        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            return {INPUT_IDS: text, ATTENTION_MASK: text}

        @property
        def outputs(self) -> dict[str, dict[int, str]]:
            return outputs

        def generate_dummy_inputs(self, *_: Any, **__: Any) -> Mapping[str, Tensor]:
            ids = torch.ones(2, 16, dtype=torch.int64)
            return {INPUT_IDS: ids, ATTENTION_MASK: ids}

    return EncoderConfig(plain._config, task="text2text-generation").with_behavior("encoder")


def _export(module: torch.nn.Module, config: Any, path: Path) -> None:
    from optimum.exporters.onnx import export  # noqa: PLC0415 - not with transformers 5

    made = path.with_name(f"raw-{path.name}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's remarks on transformers' own code
            logging.getLogger("optimum").setLevel(logging.ERROR)
            export(module, config, made, opset=OPSET)
    except Exception as error:  # the tracer and optimum raise what they like
        reason = first_line(error)
        kind = module.config.model_type
        raise ExportError(f"the architecture {kind} cannot be exported: {reason}") from error
    save(onnx.load(made), path)  # weights beyond what one file holds lie beside it, under a name of ours
    for part in made.parent.glob(f"{made.name}*"):
        part.unlink()
