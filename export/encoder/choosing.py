"""How a version runs on this machine's CPUs, chosen in seconds by asking its graph as callers will ask.

Sessions are opened, and rows are run together, as the served backend does both. Callers are threads that send
their next row once the last is answered. An instance that is free takes all rows that wait, as with Triton's
batcher. The rule that chooses stands in `export.encoder.setting`.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, groupby, islice

import onnxruntime
from google.protobuf import json_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.encoder.config import batch_size_of, buckets_of
from export.encoder.parts import parts_of
from export.encoder.prepare import Source
from export.encoder.setting import (
    MEASURED,
    ONE_CPU,
    RECIPE,
    Choice,
    Comparison,
    Figures,
    Setting,
    instance_counts,
)
from export.encoder.tasks.task import Feed, Row
from export.exported import Exported
from export.speed import Others, median_seconds
from serving.onnxruntime.batching import run_of
from serving.onnxruntime.options import Options
from serving.onnxruntime.sessions import open_session
from serving.parameters import IDS
from serving.placement import on_gpu
from serving.ragged import with_ragged_batches
from shoal import corpus, model_config
from shoal.machine import available_cpus, memory_bytes
from shoal.names import ENCODER, part_name
from shoal.progress import Silent

CALLERS = 32
# Of a text: median, and sigma of the logarithm; see `shoal.corpus.texts`.
WORDS = (20.0, 0.8)
TEXTS = 64
ROUNDS = 5
SINGLES = 8  # texts that are asked alone in each round: short ones need few CPUs, and long ones more
# Of all rounds of a comparison, where that is enough for each caller to ask once a round, and at most so many
# rows a round are asked.
SECONDS = 3.0
ROWS = 8 * CALLERS
# For small caches, and for many CPUs: there a run costs as much as many tokens.
RUNS = ((512, 16), (4096, 64))
Sessions = Sequence[onnxruntime.InferenceSession]


def choices(source: Source, graphs: Mapping[str, Exported], progress: Silent) -> dict[str, Choice]:
    """Choose how each graph runs that is for CPUs.

    Args:
        graphs: by precision.
    """
    given, cpus = source.recipe.setting, available_cpus()
    found = {}
    for precision, graph in graphs.items():
        if precision in source.recipe.ON_GPU or on_gpu(_served(source, graph, precision, Setting())):
            continue
        if given is not None or cpus == 1:
            found[precision] = Choice(given or Setting(), RECIPE if given else ONE_CPU, cpus)
        else:
            found[precision] = Choosing(source, graph, precision, cpus, progress).choice()
    return found


@dataclass(frozen=True)
class Choosing:
    """Compares settings of one graph."""

    source: Source
    graph: Exported
    precision: str
    cpus: int
    progress: Silent

    def choice(self) -> Choice:
        """Choose how many instances there are, then, where rows are grouped by length, how long runs are."""
        size = self.graph.path.stat().st_size
        counts = instance_counts(self.cpus, size, memory_bytes())
        compared: list[Comparison] = []
        setting = Setting()
        if len(counts) > 1:
            compared.append(self._compare("instances", [Setting(count) for count in counts]))
            setting = compared[-1].chosen
        if self._options(setting).row_padding is not None:
            others = [
                replace(setting, max_run_tokens=tokens, max_run_padding=padding) for tokens, padding in RUNS
            ]
            compared.append(self._compare("lengths of runs", [setting, *others]))
            setting = compared[-1].chosen
        return Choice(setting, MEASURED, self.cpus, CALLERS, tuple(compared))

    def _compare(self, what: str, settings: Sequence[Setting]) -> Comparison:
        feeds, singles = sample(self.source)
        options = {setting: self._options(setting) for setting in settings}
        opened: dict[int, Sessions] = {}  # shared by settings that differ in their runs
        for asked in options.values():
            if asked.instances not in opened:
                sessions = [open_session(self.graph.path, asked) for _ in range(asked.instances)]
                opened[asked.instances] = sessions
        batch = batch_size_of(self.source.recipe, self.source.task)
        networks = {
            setting: Network(self.graph, asked, opened[asked.instances], batch)
            for setting, asked in options.items()
        }
        default = networks[settings[0]]
        default.answer(feeds[:CALLERS])  # the first run of a shape takes longer
        began = time.perf_counter()
        default.answer(feeds[:CALLERS])
        each = (time.perf_counter() - began) / CALLERS
        rows = max(CALLERS, min(ROWS, int(SECONDS / ROUNDS / len(settings) / each)))
        sent = list(islice(cycle(feeds), rows))
        calls = {
            setting: {
                "many": (partial(network.answer, sent), 1),
                "one": (partial(network.alone, singles), 1),
            }
            for setting, network in networks.items()
        }
        what = f"Choose {what} for {self.precision}, {self.cpus} CPUs"
        others = Others(self.cpus)
        seconds = median_seconds(calls, ROUNDS, self.progress, what)
        taken_by_others = others.taken()
        figures = (
            Figures(setting, rows / taken["many"], 1e3 * taken["one"] / SINGLES)
            for setting, taken in seconds.items()
        )
        return Comparison(tuple(figures), self.cpus, taken_by_others)

    def _options(self, setting: Setting) -> Options:
        config = _served(self.source, self.graph, self.precision, setting)
        return Options.from_config(json_format.MessageToDict(config, preserving_proto_field_name=True))


class Network:
    """The instances of a network, without Triton.

    Args:
        asked: what its config asks.
        sessions: one an instance.
        batch: most requests that run together.
    """

    def __init__(self, graph: Exported, asked: Options, sessions: Sessions, batch: int) -> None:
        self._sessions, self._batch = sessions, batch
        self._inputs = [spec.name for spec in graph.inputs]
        self._outputs = [spec.name for spec in graph.outputs]
        self._run, self._ragged = run_of(asked), asked.row_padding is not None

    def alone(self, feeds: Sequence[Feed]) -> None:
        """Answer the requests of one caller, who sends one after the other."""
        for feed in feeds:
            self._run(self._sessions[0], self._outputs, [self._given(feed)])

    def answer(self, feeds: Sequence[Feed]) -> None:
        """Answer requests of `CALLERS` callers, each of whom sends one after the other.

        Raises:
            Exception: whatever ONNX Runtime raises.
        """
        waiting: _Queue = queue.SimpleQueue()

        def call(feed: Feed) -> None:
            request = _Request(self._given(feed))
            waiting.put(request)
            request.answered.result()

        instances = ThreadPoolExecutor(len(self._sessions))
        with instances, ThreadPoolExecutor(CALLERS) as callers:
            for session in self._sessions:
                instances.submit(self._serve, session, waiting)
            try:
                list(callers.map(call, feeds))
            finally:
                for _ in self._sessions:
                    waiting.put(None)

    def _serve(self, session: onnxruntime.InferenceSession, waiting: _Queue) -> None:
        """One instance, until it takes a None."""
        while (first := waiting.get()) is not None:
            taken = [first]
            while len(taken) < self._batch:
                try:
                    following = waiting.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    waiting.put(None)
                    break
                taken.append(following)
            # Triton joins what has equal shapes, where it is not told that the backend takes any.
            for _, together in groupby(taken, key=lambda request: self._ragged or request.shapes):
                self._finish(session, list(together))

    def _finish(self, session: onnxruntime.InferenceSession, requests: Sequence[_Request]) -> None:
        try:
            self._run(session, self._outputs, [request.feed for request in requests])
        except Exception as error:  # noqa: BLE001 - who waits for the answer raises it
            for request in requests:
                request.answered.set_exception(error)
        else:
            for request in requests:
                request.answered.set_result(None)

    def _given(self, feed: Feed) -> Feed:
        return {name: feed[name] for name in self._inputs}


@dataclass(frozen=True, eq=False)
class _Request:
    """A row that waits for its answer."""

    feed: Feed
    answered: Future[None] = field(default_factory=Future)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of all its inputs."""
        return tuple(array.shape for array in self.feed.values())


_Queue = queue.SimpleQueue[_Request | None]


def sample(source: Source) -> tuple[list[Feed], list[Feed]]:
    """Rows of different lengths as callers have them, and `SINGLES` of them from the shortest to the longest.
    The served tokenizer pads them so."""
    rows = [_feed(source, row) for row in source.subject.rows(corpus.texts(TEXTS, words=WORDS))]
    ordered = sorted(rows, key=lambda feed: sum(array.size for array in feed.values()))
    return rows, ordered[TEXTS // SINGLES // 2 :: TEXTS // SINGLES]


def _feed(source: Source, row: Row) -> Feed:
    feed = source.subject.feed([row])
    buckets = buckets_of(source.recipe, source.encode.max_length)
    fitting = (bucket for bucket in buckets if bucket >= feed[IDS].shape[-1])
    return source.subject.feed([row], pad_to=next(fitting)) if buckets else feed


def _served(source: Source, graph: Exported, precision: str, setting: Setting) -> ModelConfig:
    """The network's config as its backend is shown it."""
    parts = parts_of(graph, precision, source, setting)
    texts = {part.name: model_config.to_text(part.config(1)) for part in parts}
    return model_config.parse(with_ragged_batches(part_name(source.recipe.name, ENCODER), texts))
