"""Receives rows from taps, keeps which bins they fell into, and exports their distance to the reference.

Of a row nothing stays but one small number a feature. To know what the network makes of the rows, the monitor
asks it itself, seldom: about 1 row a second at most.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from serving import probe
from serving.drift.statistics import ReferenceStatistics, Value, Vocabulary, answer_features, distance
from shoal.errors import RepositoryError, ServerError
from shoal.manifest import Manifest, served_manifests

# Outputs of a network, [1, ...] each, from its inputs, int64 [1, tokens] each.
Ask = Callable[[str, Mapping[str, NDArray[np.int64]]], Mapping[str, NDArray]]

WINDOW_ROWS = 1000
WINDOW_SECONDS = 900.0
LEAST_ROWS = 100
ASK_SECONDS = 1.0
# Rows of the longest kind fit, some of them at once; what does not fit is dropped by its sender.
_MESSAGE_BYTES = 1 << 16
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Window:
    """The bins of the last rows: at most so many, and of at most so many seconds.

    Args:
        bins: how many there are.
        clock: seconds, rising.
    """

    def __init__(
        self,
        bins: int,
        *,
        rows: int = WINDOW_ROWS,
        seconds: float = WINDOW_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bins, self._seconds, self._clock = bins, seconds, clock
        self._rows: deque[tuple[float, int]] = deque(maxlen=rows)

    def add(self, number: int) -> None:
        """One more row, in the bin of this number."""
        self._rows.append((self._clock(), number))

    def counts(self) -> NDArray[np.int64]:
        """Rows in each bin, int64 [bins]."""
        oldest = self._clock() - self._seconds
        while self._rows and self._rows[0][0] < oldest:
            self._rows.popleft()
        return np.bincount([number for _, number in self._rows], minlength=self._bins)


@dataclass
class Watched:
    """A model that is compared with its reference.

    Attributes:
        name: what users call.
        network: what is asked.
        inputs: of the network.
        windows: feature -> its last rows.
        asked: when the network was asked last, in seconds of the monitor's clock.
    """

    name: str
    network: str
    inputs: tuple[str, ...]
    reference: ReferenceStatistics
    vocabulary: Vocabulary
    windows: dict[str, Window] = field(default_factory=dict)
    asked: float = float("-inf")

    @property
    def answers(self) -> bool:
        """Whether there are statistics of its answers, and it can be asked for them by tokens alone."""
        return not {"similarity", "label", "confidence"}.isdisjoint(self.reference.features) and set(
            self.inputs
        ) <= set(_INPUTS)


class Monitor(Collector):
    """Rows in, gauges out. Thread-safe.

    Args:
        watched: by name and version of the model whose traffic is sampled.
        ask: a network for its outputs; None: only inputs are compared.
        least: rows below which a feature is not exported.
        ask_seconds: between two questions to one network, at least.
        clock: seconds, rising.
    """

    def __init__(
        self,
        watched: Mapping[tuple[str, int], Watched],
        ask: Ask | None = None,
        *,
        least: int = LEAST_ROWS,
        ask_seconds: float = ASK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._least = ask, least
        self._ask_seconds, self._clock = ask_seconds, clock
        self._lock = threading.Lock()
        self._silent = False
        self.watch(watched)

    def watch(self, watched: Mapping[tuple[str, int], Watched]) -> None:
        """Compare these from now on, each from its first row on."""
        for model in watched.values():
            for name, histogram in model.reference.features.items():
                model.windows[name] = Window(len(histogram.counts), clock=self._clock)
        with self._lock:
            self._watched = dict(watched)

    def receive(self, message: bytes) -> None:
        """Take one row from a sampler; what is not one, or of a model that is not watched, is passed over."""
        try:
            row = json.loads(message)
            model = self._watched[row["model"], row["version"]]
            features = model.vocabulary.features(row["input_ids"], row["length"])
            if "perplexity" in row:
                features["perplexity"] = float(row["perplexity"])
        except (ValueError, KeyError, TypeError, IndexError):
            return
        whole = row["length"] == len(row["input_ids"])
        due = self._clock() - model.asked >= self._ask_seconds
        if self._ask is not None and whole and model.answers and due:
            model.asked = self._clock()
            features |= self._answer(model, row)
        with self._lock:
            for name, value in features.items():
                if name in model.windows:
                    model.windows[name].add(model.reference.features[name].bin(value))

    def _answer(self, model: Watched, row: Mapping[str, Any]) -> dict[str, Value]:
        """Features of the network's answer; none where it gives none."""
        assert self._ask is not None  # noqa: S101 - its caller looked
        given = {"attention_mask": [1] * len(row["input_ids"])} | dict(row)
        try:
            feed = {name: np.array([given[name]], np.int64) for name in model.inputs}
            (features,) = answer_features(self._ask(model.network, feed), model.reference.centroid)
        except Exception as error:  # noqa: BLE001 - a server that is away for a while must not end its monitor
            if not self._silent:
                logging.getLogger(__name__).warning("%s does not answer: %s", model.network, error)
            self._silent = True
            return {}
        self._silent = False
        return features

    def drift(self) -> dict[str, dict[str, float]]:
        """Model -> feature -> distance to its reference, of features that have enough rows."""
        with self._lock:
            counted = [
                (model, name, window.counts())
                for model in self._watched.values()
                for name, window in model.windows.items()
            ]
        found: dict[str, dict[str, float]] = {model.name: {} for model in self._watched.values()}
        for model, name, counts in counted:
            if counts.sum() >= self._least:
                found[model.name][name] = distance(counts, model.reference.features[name].counts)
        return found

    def samples(self) -> dict[str, int]:
        """Model -> rows in its window."""
        with self._lock:
            return {
                model.name: int(model.windows["length"].counts().sum()) for model in self._watched.values()
            }

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Metrics for Prometheus, computed when it asks."""
        drift = GaugeMetricFamily(
            "shoal_drift",
            "Jensen-Shannon distance, 0 to 1, of the last rows to those of the export",
            labels=["model", "feature"],
        )
        for model, features in self.drift().items():
            for feature, value in features.items():
                drift.add_metric([model, feature], value)
        yield drift
        samples = GaugeMetricFamily("shoal_drift_samples", "Rows in the window", labels=["model"])
        for model, count in self.samples().items():
            samples.add_metric([model], count)
        yield samples

    def listen(self, receiver: socket.socket, stop: threading.Event) -> None:
        """Receive until `stop` is set; looked at twice a second."""
        receiver.settimeout(0.5)
        while not stop.is_set():
            with suppress(TimeoutError):
                self.receive(receiver.recv(_MESSAGE_BYTES))


def watched_in(repository: Path) -> dict[tuple[str, int], Watched]:
    """The served versions of a repository that have a reference.

    Raises:
        RepositoryError: there is none, or a manifest or a tokenizer cannot be read.
    """
    found: dict[tuple[str, int], Watched] = {}
    for manifest in served_manifests(repository):
        if manifest.reference is None:
            continue
        tokenizer = next(Path(name) for name in manifest.files if Path(name).name == "tokenizer.json")
        model, version, _ = tokenizer.parts
        found[model, int(version)] = _watch(manifest, repository / tokenizer)
    if not found:
        raise RepositoryError(
            f"{repository} serves no version with reference statistics", hint="export the model again"
        )
    return found


def _watch(manifest: Manifest, tokenizer: Path) -> Watched:
    try:
        reference = ReferenceStatistics.from_dict(manifest.reference or {})
        vocabulary = Vocabulary.read(tokenizer)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RepositoryError(
            f"the reference of {manifest.model} cannot be read: {error!r}", hint="export the model again"
        ) from error
    inputs = tuple(spec["name"] for spec in manifest.onnx["inputs"])
    return Watched(manifest.model, manifest.network, inputs, reference, vocabulary)


@contextmanager
def bound(path: Path) -> Iterator[socket.socket]:
    """The socket at which taps are received, readable and writable by this user alone; gone afterwards.

    Raises:
        ServerError: another monitor listens there, or the path cannot be had.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        try:
            if path.is_socket():
                _remove_abandoned(path)
            receiver.bind(str(path))
            path.chmod(0o600)
        except OSError as error:
            raise ServerError(f"{path} cannot be listened at: {error}", hint="another --socket") from error
        try:
            yield receiver
        finally:
            path.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Remove the socket of a monitor that was killed; that of one that lives is left alone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


def asks(address: str, *, timeout: float = 2.0) -> Ask:
    """A function that asks the networks of a Triton, over HTTP: also where gRPC takes a client's certificate.

    Args:
        address: host:port of HTTP.
        timeout: seconds for an answer.
    """

    def ask(network: str, feed: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray]:
        answer = probe.infer(address, network, [_tensor(*item) for item in feed.items()], timeout=timeout)
        return {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in answer}

    return ask


def _tensor(name: str, array: NDArray[np.int64]) -> dict[str, Any]:
    return {"name": name, "datatype": "INT64", "shape": list(array.shape), "data": array.ravel().tolist()}
