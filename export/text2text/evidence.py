"""The measured figures of an encoder-decoder's version, and what they must reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from export.evidence import Check, Column, Scored, figure
from export.text2text.recipe import Text2TextRecipe

_PARTS = ("encoder", "logits")


def _apart(difference: float, cosine: float) -> dict[str, float]:
    return {f"{part}_max_abs_diff": difference for part in _PARTS} | {
        f"{part}_min_cosine": cosine for part in _PARTS
    }


# What a precision must reach against the original; see `Text2TextEvidence.CHECKS`. A beam search has many
# near ties: one answer of a dozen may turn on a last digit.
LIMITS = {
    "fp32": _apart(1e-3, 0.9999)
    | {"agreement": 0.999, "greedy_match": 1.0, "answer_match": 0.9, "batch_invariance": 0.9, "loss": 0.5},
    # One token that falls otherwise changes all that follow it in an answer: so what counts is each token,
    # given those of the original before it.
    "int8": _apart(0.15, 0.9) | {"agreement": 0.97, "batch_invariance": 0.9, "loss": 1.0},
}


@dataclass(frozen=True, kw_only=True)
class Text2TextEvidence(Scored):
    """The measured figures of one version of an encoder-decoder; see also `export.evidence.Scored`.

    Attributes:
        encoder_max_abs_diff, encoder_min_cosine: of what the decoder reads of the texts (keys and values of
            its cross-attention, a vector a token and head), in a padded batch; differences are relative to
            the original's largest where that is above 1.
        logits_max_abs_diff, logits_min_cosine: of the next token's logits, in the original's greedy answer.
        agreement: share of these logits whose largest is the original's, or as large as that within
            `export.likeness.TIE`.
        greedy_match: share of texts whose greedy answer is the original's, token by token; a token that is
            as likely as the original's within `export.likeness.TIE` ends the comparison.
        answer_match: share of texts whose answer, searched as it is served, is that of `generate`.
        batch_invariance: share of texts whose answer is the same alone and in a batch with all the others.
        latency_ms: median of one answer of 16 tokens to a text of 16, milliseconds, in process.
        tokens_per_second: generated, 8 such texts at once, in process.
        metric, score, reference_score: chrF between greedy answers and the targets of the user's labelled
            data, 0 to 100, of this version and of the original; None without such data.
        cases: [tokens of the text, tokens of the original's answer] of what was compared.
    """

    CHECKS: ClassVar[tuple[Check, ...]] = (
        *(Check(f"{part}_max_abs_diff", f"{part} difference", ".2g", most=True) for part in _PARTS),
        *(Check(f"{part}_min_cosine", f"{part} cosine", ".5g") for part in _PARTS),
        Check("agreement", "tokens agree", ".5g"),
        Check("greedy_match", "greedy answers agree", ".5g"),
        Check("answer_match", "answers agree", ".5g"),
        Check("batch_invariance", "alone and in a batch agree", ".5g"),
        Check("loss", "{0.metric} loses", ".2f", most=True),
    )

    encoder_max_abs_diff: float
    encoder_min_cosine: float
    logits_max_abs_diff: float
    logits_min_cosine: float
    agreement: float
    greedy_match: float
    answer_match: float
    batch_invariance: float
    latency_ms: float
    tokens_per_second: float
    cases: tuple[tuple[int, int], ...] = ()
    task: str = Text2TextRecipe.TASK

    @property
    def limits(self) -> Mapping[str, float]:
        """See `Measured`."""
        return LIMITS[self.precision]

    @classmethod
    def columns(cls, entries: Sequence[Text2TextEvidence]) -> list[Column]:
        """Logits against the original's, and the tokens they choose; answers that are the same alone and in a
        batch; one answer's milliseconds and the tokens per second of eight at once."""
        score = cls.score_columns(entries)
        return [
            figure("#MB", "size_bytes", ".1f", 1e6),
            *([] if score else [figure("#max |Δ|", "logits_max_abs_diff", ".1e")]),
            figure("#tokens", "agreement", ".1%"),
            figure("#batch", "batch_invariance", ".0%"),
            figure("#ms ×1", "latency_ms", ".1f"),
            figure("#×8/s", "tokens_per_second", ".0f"),
            *score,
        ]
