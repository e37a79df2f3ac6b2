"""Evidence for a decoder: the served graph, run as it is served, against transformers on the same text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from export.exported import Exported
from export.generation.checkpoint import LEAST_CONTEXT
from export.generation.evidence import GenerationEvidence
from export.generation.recipe import GenerationRecipe
from export.likeness import share_equal
from export.speed import Timed, median_seconds
from serving.generation.runner import mover_of
from serving.generation.runtime import Runner, open_runner, runtime_of
from serving.generation.sampling import negative_log_likelihood
from shoal import corpus
from shoal.errors import UsageError
from shoal.machine import available_cpus
from shoal.progress import Silent

WINDOW = LEAST_CONTEXT // 2  # tokens that are scored with what precedes them in the same window
WINDOWS = 10
PROMPTS = 4  # besides those of `export.generation.raw`, which are answered as text
PROMPT_TOKENS = 24
ANSWER_TOKENS = 20
SPEED_BATCHES = (1, 4, 16)
PREFILL = 0  # in the place of a batch size
SPEED_ROUNDS = 3
SPEED_CONTEXT = 64


@dataclass(frozen=True)
class Sample:
    """Tokens to measure on.

    Attributes:
        windows: int64 [windows, WINDOW].
        prompts: token ids of different lengths.
        text: what they are from.
    """

    windows: Any
    prompts: tuple[tuple[int, ...], ...]
    text: str


def sample(tokenizer: Tokenizer, eval_data: Path | None, progress: Silent) -> Sample:
    """From a text file, or from the text that every Python brings.

    Raises:
        UsageError: the file cannot be read, or is too short.
    """
    text, name = "\n\n".join(corpus.passages()[200:900]), "pydoc_data.topics"
    if eval_data is not None:
        try:
            text, name = eval_data.read_text(encoding="utf-8"), eval_data.name
        except (OSError, ValueError) as error:
            raise UsageError(f"evaluation data {eval_data} cannot be read: {error}") from error
    with progress.step("Tokenize the evaluation text"):
        ids = tokenizer.encode(text[: WINDOWS * WINDOW * 16], add_special_tokens=False).ids
    windows = len(ids) // WINDOW
    if windows < 2:
        raise UsageError(f"evaluation data {name} has {len(ids)} tokens, {2 * WINDOW} are needed")
    scored = np.array(ids[: min(windows, WINDOWS) * WINDOW], np.int64).reshape(-1, WINDOW)
    passages = [tokenizer.encode(text, add_special_tokens=False).ids for text in corpus.passages()[:200]]
    long = [passage for passage in passages if len(passage) > PROMPT_TOKENS + PROMPTS][:PROMPTS]
    prompts = tuple(tuple(passage[: PROMPT_TOKENS - index]) for index, passage in enumerate(long))
    return Sample(scored, prompts, name)


@dataclass(frozen=True)
class ExpectedText:
    """What the original says of a sample."""

    perplexity: float
    answers: tuple[tuple[int, ...], ...]


def measure_reference(model: PreTrainedModel, chosen: Sample, progress: Silent) -> ExpectedText:
    """Perplexity and greedy answers of the PyTorch original in fp32."""
    torch.set_num_threads(available_cpus())
    losses, answers = [], []
    with (
        progress.step("Measure the original", total=len(chosen.windows) + len(chosen.prompts)) as advance,
        torch.inference_mode(),
    ):
        for window in chosen.windows:
            ids = torch.from_numpy(window)[None]
            losses.append(float(model(input_ids=ids, labels=ids).loss))
            advance()
        for prompt in chosen.prompts:
            ids = torch.tensor([prompt])
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                repetition_penalty=1.0,  # plain logits are compared, whatever the checkpoint asks for
                max_new_tokens=ANSWER_TOKENS,
                eos_token_id=-1,  # none: the answers are compared beyond the end of the text
                pad_token_id=0,
            )
            answers.append(tuple(made[0, len(prompt) :].tolist()))
            advance()
    return ExpectedText(float(np.exp(np.mean(losses))), tuple(answers))


def measure(
    reference: ExpectedText,
    candidates: Mapping[str, Exported],
    chosen: Sample,
    *,
    progress: Silent,
) -> dict[str, GenerationEvidence]:
    """Measure every candidate; speeds are taken in turn, so that they compare.

    Args:
        candidates: precision -> exported graph.
    """
    runners = {
        name: open_runner(
            exported.path,
            rows=max(*SPEED_BATCHES, PROMPTS),
            max_length=LEAST_CONTEXT,
            gpu=0 if name in GenerationRecipe.ON_GPU else None,
        )
        for name, exported in candidates.items()
    }
    perplexities, answers, invariances = {}, {}, {}
    with progress.step("Measure perplexity", total=len(runners) * len(chosen.windows)) as advance:
        for name, runner in runners.items():
            perplexities[name] = perplexity(runner, chosen.windows, advance)
    with progress.step("Compare greedy answers, alone and in a batch", total=2 * len(runners)) as advance:
        for name, runner in runners.items():
            answers[name] = [greedy(runner, [prompt])[0] for prompt in chosen.prompts]
            advance()
            together = greedy(runner, chosen.prompts)
            invariances[name] = share_equal(answers[name], together)
            advance()
    speeds = _speeds(runners, progress)
    return {
        name: GenerationEvidence(
            precision=name,
            size_bytes=sum(part.stat().st_size for part in files_of(exported.path)),
            perplexity=perplexities[name],
            reference_perplexity=reference.perplexity,
            greedy_match=share_equal(answers[name], reference.answers),
            batch_invariance=invariances[name],
            decode_tokens_per_second=speeds[name][0],
            prefill_tokens_per_second=speeds[name][1],
            scored_tokens=int(chosen.windows.size),
            text=chosen.text,
            engine=runtime_of(exported.path),
        )
        for name, exported in candidates.items()
    }


def files_of(path: Path) -> list[Path]:
    """An ONNX file and, where there are such, its weights and what moves its cache on a GPU."""
    return [part for part in (path, path.with_name(f"{path.name}.data"), mover_of(path)) if part.exists()]


def perplexity(runner: Runner, windows: Any, advance: Callable[[], Any] = lambda: None) -> float:
    """exp of the mean negative log likelihood (natural) of each token given those before it in its window."""
    losses = []
    for window in windows:
        logits = runner.prefill(0, window, 0, range(len(window) - 1))
        losses.append(float(negative_log_likelihood(logits, window[1:]).mean()))
        advance()
    return float(np.exp(np.mean(losses)))


def greedy(runner: Runner, prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Greedy answers of ANSWER_TOKENS tokens, beyond any end of text, all prompts in one batch."""
    tokens = runner.prefill_together(0, prompts).argmax(axis=1).tolist()
    lengths = [len(prompt) for prompt in prompts]
    answers = [[token] for token in tokens]
    for _ in range(ANSWER_TOKENS - 1):
        tokens = runner.decode(tokens, lengths).argmax(axis=1).tolist()
        lengths = [length + 1 for length in lengths]
        for answer, token in zip(answers, tokens, strict=True):
            answer.append(token)
    return [tuple(answer) for answer in answers]


def _speeds(runners: Mapping[str, Runner], progress: Silent) -> dict[str, tuple[dict[int, float], float]]:
    """Decode tokens per second by batch size, and prefill tokens per second, runners taken in turn."""
    calls: dict[str, dict[int, Timed]] = {
        precision: {
            PREFILL: (partial(runner.prefill, 0, [1] * WINDOW, 0, [0]), 1),
            **{n: (partial(runner.decode, [1] * n, [SPEED_CONTEXT] * n), 4) for n in SPEED_BATCHES},
        }
        for precision, runner in runners.items()
    }
    seconds = median_seconds(calls, SPEED_ROUNDS, progress)
    return {
        precision: ({count: count / taken[count] for count in SPEED_BATCHES}, WINDOW / taken[PREFILL])
        for precision, taken in seconds.items()
    }
