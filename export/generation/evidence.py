"""The measured figures of a decoder's version, and what they must reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from export.evidence import Check, Column, Measured, figure

# What a precision must reach against the original; see `GenerationEvidence.CHECKS`.
LIMITS = {
    "fp32": {"perplexity_rise": 0.001, "greedy_match": 1.0, "batch_invariance": 1.0},
    "int8": {"perplexity_rise": 0.02, "batch_invariance": 0.99},
    "int4": {"perplexity_rise": 0.08, "batch_invariance": 1.0},
    # A GPU's libraries choose another kernel for another batch, so that sums differ in their last digits.
    "fp16": {"perplexity_rise": 0.01},
    "int4-fp16": {"perplexity_rise": 0.08},
}


@dataclass(frozen=True, kw_only=True)
class GenerationEvidence(Measured):
    """The measured figures of one version of a decoder; see also `export.evidence.Measured`.

    Attributes:
        perplexity, reference_perplexity: of this version and of the original in fp32, on the same tokens.
        greedy_match: share of prompts whose greedy answer is the original's, token by token.
        batch_invariance: share of prompts whose greedy answer is the same alone and in a batch.
        decode_tokens_per_second: by batch size, at a context of 64 tokens, in process.
        prefill_tokens_per_second: one prompt of 256 tokens, in process.
        scored_tokens: how many tokens the perplexity is of.
        text: what was scored.
        engine: what runs it, `onnxruntime` or `openvino`.
        serving: what that was chosen by, `export.generation.choosing.Comparison` as plain types; None:
            nothing was compared.
    """

    CHECKS: ClassVar[tuple[Check, ...]] = (
        Check("perplexity_rise", "perplexity rises", ".1%", most=True),
        Check("greedy_match", "greedy answers agree", ".0%"),
        Check("batch_invariance", "alone and in a batch agree", ".0%"),
    )

    perplexity: float
    reference_perplexity: float
    greedy_match: float
    batch_invariance: float
    decode_tokens_per_second: Mapping[int, float]
    prefill_tokens_per_second: float
    scored_tokens: int
    text: str
    engine: str = "onnxruntime"
    serving: Mapping[str, Any] | None = None

    @property
    def perplexity_rise(self) -> float:
        """How much higher than the original's it is, as a fraction of that."""
        return self.perplexity / self.reference_perplexity - 1

    @property
    def limits(self) -> Mapping[str, float]:
        """See `Measured`."""
        return LIMITS[self.precision]

    @classmethod
    def columns(cls, entries: Sequence[GenerationEvidence]) -> list[Column]:
        """Perplexity and its rise; greedy answers that are the same alone and in a batch;
        tokens per second of prefill, and of decoding by batch size."""

        def decoding(batch: int) -> Column:
            return f"#×{batch}", lambda entry: f"{entry.decode_tokens_per_second[batch]:.0f}"

        return [
            figure("#MB", "size_bytes", ".0f", 1e6),
            figure("#ppl", "perplexity", ".2f"),
            figure("#rise", "perplexity_rise", "+.1%"),
            figure("#batch", "batch_invariance", ".0%"),
            figure("#prefill", "prefill_tokens_per_second", ".0f"),
            *map(decoding, entries[0].decode_tokens_per_second),
        ]

    def to_dict(self) -> dict[str, Any]:
        """See `Measured`."""
        return super().to_dict() | {"perplexity_rise": self.perplexity_rise}
