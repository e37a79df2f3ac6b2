"""A sentence-embedding checkpoint to one ONNX graph: token ids in, a unit vector a text out.

Pooling and normalization are part of the graph: 384 floats a text cross the wire, not 384 a token.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch
from optimum.exporters.onnx import export as optimum_export
from optimum.exporters.tasks import TasksManager
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from export.exported import Exported
from export.source import Checkpoint, SentenceSettings
from shoal.errors import ExportError

OPSET = 17
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "embedding"


class SentenceEmbedder(torch.nn.Module):
    """A transformer, then pooling and L2 normalization as sentence-transformers does them.

    Args:
        backbone: gives `last_hidden_state` of shape [batch, tokens, hidden].
        settings: pooling and whether to normalize.
    """

    def __init__(self, backbone: PreTrainedModel, settings: SentenceSettings) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = backbone.config
        self.settings = settings

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """int64 [batch, tokens] twice -> float32 [batch, hidden]."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.settings.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        if self.settings.normalize:
            pooled = torch.nn.functional.normalize(pooled, p=2.0, dim=1)
        return {OUTPUT: pooled}


def load_embedder(checkpoint: Checkpoint, settings: SentenceSettings) -> SentenceEmbedder:
    """The PyTorch original in fp32, in evaluation mode: what every version is compared with.

    Raises:
        ExportError: transformers cannot load it.
    """
    transformers_logging.set_verbosity_error()
    try:
        backbone = AutoModel.from_pretrained(
            checkpoint.folder, use_safetensors=True, trust_remote_code=False, torch_dtype=torch.float32
        )
    except Exception as error:  # transformers and safetensors raise what they like
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"transformers cannot load {checkpoint.id}: {reason}") from error
    return SentenceEmbedder(backbone, settings).eval()


def to_onnx(embedder: SentenceEmbedder, path: Path) -> Exported:
    """Export through optimum, with the input and output names and free dimensions of the model's own config.

    Raises:
        ExportError: optimum has no exporter for this architecture.
    """
    config = embedder.config
    try:
        make_config = TasksManager.get_exporter_config_constructor(
            "onnx", model=embedder.backbone, task="feature-extraction", library_name="transformers"
        )
    except (KeyError, ValueError) as error:
        raise ExportError(f"optimum has no ONNX exporter for the architecture {config.model_type}") from error
    base = type(make_config(config))

    class EmbedderConfig(base):  # type: ignore[misc, valid-type]
        """The architecture's own config, for a text alone: no segment ids, one pooled output."""

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            return {name: axes for name, axes in super().inputs.items() if name in INPUTS}

        @property
        def outputs(self) -> dict[str, dict[int, str]]:
            return {OUTPUT: {0: "batch_size"}}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's remarks on transformers' own code
        logging.getLogger("optimum").setLevel(logging.ERROR)
        optimum_export(embedder, EmbedderConfig(config, task="feature-extraction"), path, opset=OPSET)
    _state_width(path, config.hidden_size)
    return Exported.read(path)


def _state_width(path: Path, width: int) -> None:
    """Write the embedding's width into the graph: the tracer leaves it free after a reduction."""
    model = onnx.load(path)
    axis = model.graph.output[0].type.tensor_type.shape.dim[1]
    axis.ClearField("dim_param")
    axis.dim_value = width
    onnx.save(model, path)
