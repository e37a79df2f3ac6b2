"""What the model thinks of a prompt: log probabilities of its tokens, and its perplexity."""

from __future__ import annotations

import logging
import math

from serving.generation.deliveries import described
from serving.generation.model import Logits
from serving.generation.sampling import negative_log_likelihood, top_logprobs
from serving.generation.sequence import Sequence

_log = logging.getLogger(__name__)


def judge(sequence: Sequence, logits: Logits, start: int) -> None:
    """Compare the logits at places of a prompt, from `start` on, with the tokens that follow."""
    following = sequence.request.prompt[start + 1 : start + 1 + len(logits)]
    if (count := sequence.request.params.prompt_logprobs) is not None:
        sequence.prompt_logprobs += [
            top_logprobs(row, token, count) for row, token in zip(logits, following, strict=True)
        ]
    scored = max(0, sequence.scored_positions - start)
    if scored:
        sequence.surprise += float(
            negative_log_likelihood(logits[:scored], following[: len(logits[:scored])]).sum()
        )


def tell_score(sequence: Sequence) -> None:
    """Tell whoever wants to know the perplexity of a prompt."""
    if sequence.request.scored and sequence.scored_positions:
        try:
            sequence.request.scored(math.exp(sequence.surprise / sequence.scored_positions))
        except Exception as error:  # noqa: BLE001 - the answer does not depend on it
            _log.warning("the perplexity of a prompt was not taken: %s", described(error))
