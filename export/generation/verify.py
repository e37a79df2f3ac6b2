"""Evidence for a decoder: the served graph, run as it is served, against transformers on the same text."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from export.exported import Exported
from export.generation.checkpoint import LEAST_CONTEXT
from export.generation.recipe import GenerationRecipe
from export.raw.evidence import RawEvidence
from serving.generation.runner import Runner, mover_of
from serving.generation.sampling import surprise
from shoal import corpus
from shoal.errors import UsageError
from shoal.machine import available_cpus
from shoal.progress import Silent

WINDOW = LEAST_CONTEXT // 2  # tokens that are scored with what precedes them in the same window
WINDOWS = 10
PROMPTS = 4  # besides those of `export.raw.decoder`, which are answered as text
PROMPT_TOKENS = 24
ANSWER_TOKENS = 20
SPEED_BATCHES = (1, 4, 16)
SPEED_ROUNDS = 3
SPEED_CONTEXT = 64


@dataclass(frozen=True)
class Tolerance:
    """What a precision must reach against the original.

    Attributes:
        perplexity: most that it may rise, as a fraction.
        greedy: least share of prompts whose greedy answer is the original's, token by token.
        invariance: least share of prompts whose greedy answer is the same alone and in a batch.
    """

    perplexity: float
    greedy: float
    invariance: float


TOLERANCES = {
    "fp32": Tolerance(0.001, 1.0, 1.0),
    "int8": Tolerance(0.02, 0.0, 0.99),
    "int4": Tolerance(0.08, 0.0, 1.0),
    # A GPU's libraries choose another kernel for another batch, so that sums differ in their last digits.
    "fp16": Tolerance(0.01, 0.0, 0.0),
    "int4-fp16": Tolerance(0.08, 0.0, 0.0),
}


@dataclass(frozen=True)
class GenerationEvidence:
    """The measured figures of one version.

    Attributes:
        precision: which tolerance applies.
        size_bytes: of the ONNX file and its weights.
        perplexity, reference_perplexity: of this version and of the original in fp32, on the same tokens.
        greedy_match: share of prompts whose greedy answer is the original's, token by token.
        batch_invariance: share of prompts whose greedy answer is the same alone and in a batch.
        decode_tokens_per_second: by batch size, at a context of 64 tokens, in process.
        prefill_tokens_per_second: one prompt of 256 tokens, in process.
        scored_tokens: how many tokens the perplexity is of.
        text: what was scored.
        cpus: threads the speed was measured with.
        raw: its answers to raw inputs; None: they were not compared.
    """

    precision: str
    size_bytes: int
    perplexity: float
    reference_perplexity: float
    greedy_match: float
    batch_invariance: float
    decode_tokens_per_second: dict[int, float]
    prefill_tokens_per_second: float
    scored_tokens: int
    text: str
    cpus: int = field(default_factory=available_cpus)
    raw: RawEvidence | None = None

    @property
    def perplexity_rise(self) -> float:
        """As a fraction of the original's."""
        return self.perplexity / self.reference_perplexity - 1

    @property
    def failures(self) -> list[str]:
        """What misses the tolerance, as figures; empty: proven. A NaN misses."""
        tolerance = TOLERANCES[self.precision]
        checks = [
            (
                self.perplexity_rise <= tolerance.perplexity,
                f"perplexity rises {self.perplexity_rise:.1%} > {tolerance.perplexity:.1%}",
            ),
            (
                self.greedy_match >= tolerance.greedy,
                f"greedy answers agree {self.greedy_match:.0%} < {tolerance.greedy:.0%}",
            ),
            (
                self.batch_invariance >= tolerance.invariance,
                f"alone and in a batch agree {self.batch_invariance:.0%} < {tolerance.invariance:.0%}",
            ),
        ]
        return [*(self.raw.failures if self.raw else ()), *(text for passed, text in checks if not passed)]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, with the verdict."""
        return asdict(self) | {
            "perplexity_rise": self.perplexity_rise,
            "raw": self.raw.to_dict() if self.raw else None,
            "failures": self.failures,
            "proven": not self.failures,
        }


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
class Reference:
    """What the original says of a sample."""

    perplexity: float
    answers: tuple[tuple[int, ...], ...]


def measure_reference(model: PreTrainedModel, chosen: Sample, progress: Silent) -> Reference:
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
    return Reference(float(np.exp(np.mean(losses))), tuple(answers))


def measure(
    reference: Reference,
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
        name: Runner(
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
            invariances[name] = _share(answers[name], together)
            advance()
    speeds = _speeds(runners, progress)
    return {
        name: GenerationEvidence(
            precision=name,
            size_bytes=sum(part.stat().st_size for part in files_of(exported.path)),
            perplexity=perplexities[name],
            reference_perplexity=reference.perplexity,
            greedy_match=_share(answers[name], reference.answers),
            batch_invariance=invariances[name],
            decode_tokens_per_second=speeds[name][0],
            prefill_tokens_per_second=speeds[name][1],
            scored_tokens=int(chosen.windows.size),
            text=chosen.text,
        )
        for name, exported in candidates.items()
    }


def files_of(path: Path) -> list[Path]:
    """An ONNX file and, where there are such, its weights and what moves its cache on a GPU."""
    return [part for part in (path, path.with_name(f"{path.name}.data"), mover_of(path)) if part.exists()]


def perplexity(runner: Runner, windows: Any, advance: Callable[[], Any]) -> float:
    """exp of the mean negative log likelihood (natural) of each token given those before it in its window."""
    losses = []
    for window in windows:
        logits = runner.prefill(0, window, 0, range(len(window) - 1))
        losses.append(float(surprise(logits, window[1:]).mean()))
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


def _share(found: Sequence[Any], expected: Sequence[Any]) -> float:
    return float(np.mean([tuple(a) == tuple(b) for a, b in zip(found, expected, strict=True)]))


def _speeds(runners: Mapping[str, Runner], progress: Silent) -> dict[str, tuple[dict[int, float], float]]:
    """Decode tokens per second by batch size, and prefill tokens per second, runners taken in turn."""
    decode: dict[str, dict[int, list[float]]] = {p: {n: [] for n in SPEED_BATCHES} for p in runners}
    prefill: dict[str, list[float]] = {p: [] for p in runners}
    with progress.step("Measure speed", total=SPEED_ROUNDS) as advance:
        for _ in range(SPEED_ROUNDS):
            for precision, runner in runners.items():
                prompt = [1] * WINDOW
                prefill[precision].append(_seconds(partial(runner.prefill, 0, prompt, 0, [0])))
                for count in SPEED_BATCHES:
                    arguments = ([1] * count, [SPEED_CONTEXT] * count)
                    for _ in range(4):
                        seconds = _seconds(partial(runner.decode, *arguments))
                        decode[precision][count].append(seconds)
            advance()
    return {
        precision: (
            {count: count / statistics.median(taken) for count, taken in decode[precision].items()},
            WINDOW / statistics.median(prefill[precision]),
        )
        for precision in runners
    }


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
