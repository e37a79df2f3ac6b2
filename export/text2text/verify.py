"""Evidence for an encoder-decoder: its graphs, searched as they are served, against `generate`."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from export.raw.evidence import RawEvidence
from export.text2text.labelled import Pair, chrf
from export.text2text.recipe import Text2TextRecipe
from export.text2text.to_onnx import Graphs
from serving.models.text2text import Answerer, Settings
from serving.text2text.runner import Runner, cross_names, padded
from serving.text2text.search import answer
from serving.text2text.settings import Search
from shoal import corpus
from shoal.machine import available_cpus
from shoal.progress import Silent

SAMPLES = 12
ANSWER_TOKENS = 24
EVAL_BATCH = 16
SPEED_BATCH = 8
SPEED_TOKENS = 16
SPEED_ROUNDS = 5
TIE = 1e-3  # two tokens whose logits are closer than this, relative to the largest, are equally right
METRIC = "chrF"
_ORIGINAL = "original"


@dataclass(frozen=True)
class Tolerance:
    """What a precision must reach against the original; see `Text2TextEvidence`.

    Attributes:
        max_loss: of the metric on labelled data.
    """

    max_abs_diff: float
    min_cosine: float
    agreement: float
    greedy: float
    answers: float
    invariance: float
    max_loss: float


# A beam search has many near ties: one answer of a dozen may turn on a last digit.
TOLERANCES = {
    "fp32": Tolerance(1e-3, 0.9999, 0.999, 1.0, 0.9, 0.9, 0.5),
    # One token that falls otherwise changes all that follow it in an answer: so what counts is each token,
    # given those of the original before it.
    "int8": Tolerance(0.15, 0.9, 0.97, 0.0, 0.0, 0.9, 1.0),
}


@dataclass(frozen=True)
class Text2TextEvidence:
    """The measured figures of one version.

    Attributes:
        precision: which tolerance applies.
        size_bytes: of both graphs and their weights.
        encoder_max_abs_diff, encoder_min_cosine: of what the decoder reads of the texts (keys and values of
            its cross-attention, a vector a token and head), in a padded batch; differences are relative to
            the original's largest where that is above 1.
        logits_max_abs_diff, logits_min_cosine: of the next token's logits, in the original's greedy answer.
        agreement: share of these logits whose largest is the original's, or as large as that within `TIE`.
        greedy_match: share of texts whose greedy answer is the original's, token by token; a token that is
            as likely as the original's within `TIE` ends the comparison.
        answer_match: share of texts whose answer, searched as it is served, is that of `generate`.
        batch_invariance: share of texts whose answer is the same alone and in a batch with all the others.
        latency_ms: median of one answer of 16 tokens to a text of 16, milliseconds, in process.
        tokens_per_second: generated, 8 such texts at once, in process.
        metric, score, reference_score: chrF between greedy answers and the targets of the user's labelled
            data, 0 to 100, of this version and of the original; None without such data.
        cases: [tokens of the text, tokens of the original's answer] of what was compared.
        cpus: threads the speed was measured with.
        raw: its answers to raw inputs; None: they were not compared.
    """

    precision: str
    size_bytes: int
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
    metric: str | None = None
    score: float | None = None
    reference_score: float | None = None
    cases: tuple[tuple[int, int], ...] = ()
    cpus: int = field(default_factory=available_cpus)
    task: str = Text2TextRecipe.TASK
    raw: RawEvidence | None = None

    @property
    def failures(self) -> list[str]:
        """What misses the tolerance, as figures; empty: proven. A NaN misses."""
        wanted = TOLERANCES[self.precision]
        small = [(f"{part} difference", f"{part}_max_abs_diff") for part in ("encoder", "logits")]
        large = [
            (f"{part} cosine", f"{part}_min_cosine", wanted.min_cosine) for part in ("encoder", "logits")
        ]
        shares = [
            ("tokens agree", "agreement", wanted.agreement),
            ("greedy answers agree", "greedy_match", wanted.greedy),
            ("answers agree", "answer_match", wanted.answers),
            ("alone and in a batch agree", "batch_invariance", wanted.invariance),
        ]
        found = [(name, getattr(self, key)) for name, key in small]
        misses = [f"{n} {v:.2g} > {wanted.max_abs_diff:g}" for n, v in found if not v <= wanted.max_abs_diff]
        for name, key, least in [*large, *shares]:
            if not getattr(self, key) >= least:
                misses.append(f"{name} {getattr(self, key):.5g} < {least:g}")
        if self.score is not None and self.reference_score is not None:
            loss = self.reference_score - self.score
            if not loss <= wanted.max_loss:
                misses.append(f"{self.metric} loses {loss:.2f} > {wanted.max_loss}")
        return [*(self.raw.failures if self.raw else ()), *misses]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, with the verdict."""
        return asdict(self) | {
            "cases": [list(case) for case in self.cases],
            "raw": self.raw.to_dict() if self.raw else None,
            "failures": self.failures,
            "proven": not self.failures,
        }


@dataclass(frozen=True)
class Reference:
    """What the original says of sample texts.

    Attributes:
        texts: token ids of each, of different lengths.
        cross: by name, what its decoder reads of them, [texts, heads, tokens, width].
        greedy: its greedy answers.
        logits: of each of their tokens, [tokens, vocabulary] of each text.
        answers: as its own generation settings have it.
    """

    texts: tuple[tuple[int, ...], ...]
    cross: Mapping[str, NDArray[np.float32]]
    greedy: tuple[tuple[int, ...], ...]
    logits: tuple[NDArray[np.float32], ...]
    answers: tuple[tuple[int, ...], ...]


def measure(
    original: PreTrainedModel,
    candidates: Mapping[str, Graphs],
    settings: Settings,
    *,
    labelled: Sequence[Pair] = (),
    progress: Silent,
) -> dict[str, Text2TextEvidence]:
    """Measure every candidate against the original; speeds are taken in turn, so that they compare.

    Args:
        original: in PyTorch.
        candidates: precision -> graphs, beside which their tokenizer lies.
        settings: how they are served.
        labelled: the user's texts and targets, for the metric.
    """
    search = settings.search
    answerers = {name: Answerer(graphs.path.parent, settings) for name, graphs in candidates.items()}
    reference = _measure_reference(original, search, _samples(next(iter(answerers.values()))), progress)
    found: dict[str, dict[str, Any]] = {}
    with progress.step("Compare with the PyTorch original", total=len(answerers)) as advance:
        for name, answerer in answerers.items():
            found[name] = _compare(answerer.runner, reference, search)
            advance()
    speeds = _speeds({name: answerer.runner for name, answerer in answerers.items()}, search, progress)
    scores = _scores(original, answerers, search, labelled, progress) if labelled else {}
    return {
        name: Text2TextEvidence(
            precision=name,
            size_bytes=sum(part.stat().st_size for part in graphs.files),
            **found[name],
            latency_ms=speeds[name][0],
            tokens_per_second=speeds[name][1],
            metric=METRIC if scores else None,
            score=scores.get(name),
            reference_score=scores.get(_ORIGINAL),
            cases=tuple(
                (len(text), len(made)) for text, made in zip(reference.texts, reference.answers, strict=True)
            ),
        )
        for name, graphs in candidates.items()
    }


def _samples(answerer: Answerer) -> tuple[tuple[int, ...], ...]:
    """Token ids of texts whose lengths are spread as real requests are."""
    return tuple(tuple(answerer.tokens(text)) for text in corpus.texts(SAMPLES, seed=7))


def _measure_reference(
    model: PreTrainedModel, search: Search, texts: Sequence[Sequence[int]], progress: Silent
) -> Reference:
    """Answers of the PyTorch original in fp32 to the texts as one padded batch, and its logits."""
    torch.set_num_threads(available_cpus())
    short = _short(search)
    ids, mask = (torch.from_numpy(array) for array in padded(texts, search.pad))
    with progress.step("Measure the original"), torch.inference_mode():
        greedy = _generated(model, replace(short, num_beams=1), texts)
        fed, _ = padded([[search.start, *tokens[:-1]] for tokens in greedy], search.pad)
        output = model(
            input_ids=ids, attention_mask=mask, decoder_input_ids=torch.from_numpy(fed), use_cache=True
        )
        logits = tuple(row[: len(tokens)].numpy() for row, tokens in zip(output.logits, greedy, strict=True))
        answers = _generated(model, short, texts)
    pairs = [value for layer in output.past_key_values.to_legacy_cache() for value in layer[2:4]]
    cross = {name: value.numpy() for name, value in zip(cross_names(len(pairs) // 2), pairs, strict=True)}
    return Reference(tuple(map(tuple, texts)), cross, greedy, logits, answers)


def _short(search: Search) -> Search:
    return replace(search, max_new_tokens=min(search.max_new_tokens, ANSWER_TOKENS))


def _generated(
    model: PreTrainedModel, search: Search, texts: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """transformers' answers, by the model's own generation config but for what a recipe may change."""
    ids, mask = (torch.from_numpy(array) for array in padded(texts, search.pad))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on a generation config of beams that is asked for one
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            num_beams=search.num_beams,
            early_stopping=search.early_stopping if search.num_beams > 1 else False,
            max_new_tokens=search.max_new_tokens,
        )
    answers = []
    for tokens in made[:, 1:].tolist():
        ends = [index for index, token in enumerate(tokens) if token in search.ends]
        answers.append(tuple(tokens[: ends[0] + 1] if ends else tokens))
    return tuple(answers)


def _compare(runner: Runner, reference: Reference, search: Search) -> dict[str, Any]:
    """The figures of `Text2TextEvidence` but for speeds and scores."""
    short, texts = _short(search), reference.texts
    encoder = _difference(*_vectors_of_texts(runner, reference, search.pad))
    found, expected = _next_tokens(runner, reference, search)
    logits = _difference(found, expected)
    greedy = [_answers(runner, replace(short, num_beams=1), [text])[0] for text in texts]
    alone = [_answers(runner, short, [text])[0] for text in texts]
    return {
        "encoder_max_abs_diff": encoder[0],
        "encoder_min_cosine": encoder[1],
        "logits_max_abs_diff": logits[0],
        "logits_min_cosine": logits[1],
        "agreement": _agreement(found, expected),
        "greedy_match": float(np.mean([_same_greedily(*row) for row in _rows(greedy, reference)])),
        "answer_match": _share(alone, reference.answers),
        "batch_invariance": _share(alone, _answers(runner, short, texts)),
    }


def _scores(
    original: PreTrainedModel,
    answerers: Mapping[str, Answerer],
    search: Search,
    labelled: Sequence[Pair],
    progress: Silent,
) -> dict[str, float]:
    """chrF of the greedy answers of the original and of each candidate."""
    greedy = replace(search, num_beams=1)
    tokenizer = next(iter(answerers.values()))  # they share it
    texts, targets = [tokenizer.tokens(text) for text, _ in labelled], [target for _, target in labelled]
    finders: dict[str, Callable[[Sequence[Sequence[int]]], Sequence[Sequence[int]]]] = {
        _ORIGINAL: partial(_generated, original, greedy)
    }
    finders |= {name: partial(_answers, answerer.runner, greedy) for name, answerer in answerers.items()}
    batches = range(0, len(texts), EVAL_BATCH)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    scores = {}
    with progress.step("Score the labelled data", total=len(finders) * len(batches)) as advance:
        for name, find in finders.items():
            answers = [""] * len(texts)
            for start in batches:
                part = order[start : start + EVAL_BATCH]
                for index, tokens in zip(part, find([texts[index] for index in part]), strict=True):
                    answers[index] = tokenizer.text(tokens)
                advance()
            scores[name] = chrf(answers, targets)
    return scores


def _answers(runner: Runner, search: Search, texts: Sequence[Sequence[int]]) -> list[list[int]]:
    return answer(runner.start(texts, search.pad), search, [search.max_new_tokens] * len(texts))


def _vectors_of_texts(runner: Runner, reference: Reference, pad: int) -> tuple[NDArray, NDArray]:
    """What the decoder reads of the texts, of the graph and of the original: [vectors, width], no padding."""
    cross = runner.start(reference.texts, pad).cross
    pairs = [
        (cross[name][row, :, : len(text)], original[row, :, : len(text)])
        for name, original in reference.cross.items()
        for row, text in enumerate(reference.texts)
    ]
    found, expected = zip(*pairs, strict=True)
    return _stacked(found), _stacked(expected)


def _stacked(arrays: Sequence[NDArray]) -> NDArray:
    return np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])


def _next_tokens(runner: Runner, reference: Reference, search: Search) -> tuple[NDArray, NDArray]:
    """Logits of the graph and of the original, the original's answers given: [tokens, vocabulary]."""
    found = []
    for text, tokens in zip(reference.texts, reference.greedy, strict=True):
        running = runner.start([text], search.pad)
        found += [running.step(np.array([token])) for token in (search.start, *tokens[:-1])]
    return np.concatenate(found), np.concatenate(reference.logits)


def _agreement(found: NDArray, expected: NDArray) -> float:
    """Share of rows whose largest component is the original's, or as large as that up to a tie."""
    chosen = np.take_along_axis(expected, found.argmax(axis=1)[:, None], axis=1)[:, 0]
    gaps = expected.max(axis=1) - chosen
    return float((gaps <= TIE * np.maximum(1.0, np.abs(expected).max(axis=1))).mean())


def _difference(found: NDArray, expected: NDArray) -> tuple[float, float]:
    """Largest difference of a component, relative to the largest above 1, and least cosine of a vector."""
    scale = max(1.0, float(np.abs(expected).max()))
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (found * expected).sum(axis=1) / np.maximum(lengths, 1e-12)
    return float(np.abs(found - expected).max()) / scale, float(cosines.min())


def _rows(greedy: Sequence[Sequence[int]], reference: Reference) -> list[tuple[Any, Any, Any]]:
    return list(zip(greedy, reference.greedy, reference.logits, strict=True))


def _same_greedily(found: Sequence[int], expected: Sequence[int], logits: NDArray[np.float32]) -> bool:
    """Whether two greedy answers are equal up to the first tie."""
    for place, (token, other) in enumerate(zip(found, expected, strict=False)):
        if token != other:
            gap = abs(float(logits[place, token] - logits[place, other]))
            return gap <= TIE * max(1.0, float(np.abs(logits[place]).max()))
    return len(found) == len(expected)


def _share(found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> float:
    return float(np.mean([tuple(a) == tuple(b) for a, b in zip(found, expected, strict=True)]))


def _speeds(
    runners: Mapping[str, Runner], search: Search, progress: Silent
) -> dict[str, tuple[float, float]]:
    """Milliseconds of one answer, and tokens per second of several; as served, but of one fixed length."""
    fixed = replace(search, ends=(), forced_eos=-1, min_new_tokens=0, max_new_tokens=SPEED_TOKENS)
    seconds: dict[str, dict[int, list[float]]] = {name: {1: [], SPEED_BATCH: []} for name in runners}
    with progress.step("Measure speed", total=SPEED_ROUNDS) as advance:
        for _ in range(SPEED_ROUNDS):
            for name, runner in runners.items():
                for count, taken in seconds[name].items():
                    texts = [[1] * SPEED_TOKENS] * count
                    taken.append(_seconds(partial(_answers, runner, fixed, texts)))
            advance()
    medians = {
        name: [statistics.median(taken) for taken in by_count.values()] for name, by_count in seconds.items()
    }
    return {
        name: (1e3 * alone, SPEED_BATCH * SPEED_TOKENS / together)
        for name, (alone, together) in medians.items()
    }


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
