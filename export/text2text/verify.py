"""Evidence for an encoder-decoder: its graphs, searched as they are served, against `generate`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from export.likeness import TIE, cosines, difference, same_choice, share_equal
from export.speed import median_seconds
from export.text2text.evidence import Text2TextEvidence
from export.text2text.labelled import Pair, chrf
from export.text2text.to_onnx import Graphs
from serving.models.text2text import Text2TextSettings, TextGenerator
from serving.text2text.runner import EncoderDecoderRunner, cross_names, padded
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
METRIC = "chrF"
_ORIGINAL = "original"


@dataclass(frozen=True)
class ExpectedAnswers:
    """What the original says of sample texts.

    Attributes:
        texts: token ids of each, of different lengths.
        cross: by name, what its decoder reads of them, [texts, heads, tokens, width].
        greedy: its greedy answers.
        logits: of each of their tokens, [tokens, vocabulary] of each text.
        answers: as its own generation settings have it.
    """

    texts: Sequence[tuple[int, ...]]
    cross: Mapping[str, NDArray[np.float32]]
    greedy: tuple[tuple[int, ...], ...]
    logits: tuple[NDArray[np.float32], ...]
    answers: tuple[tuple[int, ...], ...]


def measure(
    original: PreTrainedModel,
    candidates: Mapping[str, Graphs],
    settings: Text2TextSettings,
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
    answerers = {name: TextGenerator(graphs.path.parent, settings) for name, graphs in candidates.items()}
    tokenizer = next(iter(answerers.values()))  # they share it
    # Their lengths are spread as those of real requests are.
    texts = [tuple(tokenizer.tokens(text)) for text in corpus.texts(SAMPLES, seed=7)]
    reference = _measure_reference(original, search, texts, progress)
    found = {
        name: _compare(answerer.runner, reference, search)
        for name, answerer in progress.each("Compare with the PyTorch original", answerers.items())
    }
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


def _measure_reference(
    model: PreTrainedModel, search: Search, texts: Sequence[tuple[int, ...]], progress: Silent
) -> ExpectedAnswers:
    """Answers of the PyTorch original in fp32 to the texts as one padded batch, and its logits."""
    torch.set_num_threads(available_cpus())
    short = _short(search)
    ids, mask = (torch.from_numpy(array) for array in padded(texts, search.pad))
    with progress.step("Measure the original"), torch.inference_mode():
        greedy = _generated(model, msgspec.structs.replace(short, num_beams=1), texts)
        fed, _ = padded([[search.start, *tokens[:-1]] for tokens in greedy], search.pad)
        output = model(
            input_ids=ids, attention_mask=mask, decoder_input_ids=torch.from_numpy(fed), use_cache=True
        )
        logits = tuple(row[: len(tokens)].numpy() for row, tokens in zip(output.logits, greedy, strict=True))
        answers = _generated(model, short, texts)
    pairs = [value for layer in output.past_key_values.to_legacy_cache() for value in layer[2:4]]
    cross = {name: value.numpy() for name, value in zip(cross_names(len(pairs) // 2), pairs, strict=True)}
    return ExpectedAnswers(texts, cross, greedy, logits, answers)


def _short(search: Search) -> Search:
    return msgspec.structs.replace(search, max_new_tokens=min(search.max_new_tokens, ANSWER_TOKENS))


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


def _compare(runner: EncoderDecoderRunner, reference: ExpectedAnswers, search: Search) -> dict[str, Any]:
    """The figures of `Text2TextEvidence` but for speeds and scores."""
    short, texts = _short(search), reference.texts
    read, expected_read = _vectors_of_texts(runner, reference, search.pad)
    found, expected = _next_tokens(runner, reference, search)
    greedy = [_answers(runner, msgspec.structs.replace(short, num_beams=1), [text])[0] for text in texts]
    rows = zip(greedy, reference.greedy, reference.logits, strict=True)
    alone = [_answers(runner, short, [text])[0] for text in texts]
    return {
        "encoder_max_abs_diff": difference(read, expected_read),
        "encoder_min_cosine": float(cosines(read, expected_read).min()),
        "logits_max_abs_diff": difference(found, expected),
        "logits_min_cosine": float(cosines(found, expected).min()),
        "agreement": float(same_choice(found, expected, relative=True).mean()),
        "greedy_match": float(np.mean([_same_greedily(*row) for row in rows])),
        "answer_match": share_equal(alone, reference.answers),
        "batch_invariance": share_equal(alone, _answers(runner, short, texts)),
    }


def _scores(
    original: PreTrainedModel,
    answerers: Mapping[str, TextGenerator],
    search: Search,
    labelled: Sequence[Pair],
    progress: Silent,
) -> dict[str, float]:
    """chrF of the greedy answers of the original and of each candidate."""
    greedy = msgspec.structs.replace(search, num_beams=1)
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


def _answers(runner: EncoderDecoderRunner, search: Search, texts: Sequence[Sequence[int]]) -> list[list[int]]:
    return answer(runner.start(texts, search.pad), search, [search.max_new_tokens] * len(texts))


def _vectors_of_texts(
    runner: EncoderDecoderRunner, reference: ExpectedAnswers, pad: int
) -> tuple[NDArray, NDArray]:
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


def _next_tokens(
    runner: EncoderDecoderRunner, reference: ExpectedAnswers, search: Search
) -> tuple[NDArray, NDArray]:
    """Logits of the graph and of the original, the original's answers given: [tokens, vocabulary]."""
    found = []
    for text, tokens in zip(reference.texts, reference.greedy, strict=True):
        running = runner.start([text], search.pad)
        found += [running.step(np.array([token])) for token in (search.start, *tokens[:-1])]
    return np.concatenate(found), np.concatenate(reference.logits)


def _same_greedily(found: Sequence[int], expected: Sequence[int], logits: NDArray[np.float32]) -> bool:
    """Whether two greedy answers are equal up to the first tie."""
    for place, (token, other) in enumerate(zip(found, expected, strict=False)):
        if token != other:
            gap = abs(float(logits[place, token] - logits[place, other]))
            return gap <= TIE * max(1.0, float(np.abs(logits[place]).max()))
    return len(found) == len(expected)


def _speeds(
    runners: Mapping[str, EncoderDecoderRunner], search: Search, progress: Silent
) -> dict[str, tuple[float, float]]:
    """Milliseconds of one answer, and tokens per second of several; as served, but of one fixed length."""
    fixed = msgspec.structs.replace(
        search, ends=(), forced_eos=-1, min_new_tokens=0, max_new_tokens=SPEED_TOKENS
    )
    calls = {
        name: {n: (partial(_answers, runner, fixed, [[1] * SPEED_TOKENS] * n), 1) for n in (1, SPEED_BATCH)}
        for name, runner in runners.items()
    }
    seconds = median_seconds(calls, SPEED_ROUNDS, progress)
    return {
        name: (1e3 * taken[1], SPEED_BATCH * SPEED_TOKENS / taken[SPEED_BATCH])
        for name, taken in seconds.items()
    }
