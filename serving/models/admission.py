"""How many requests may wait for a network, decided by the step before it, before that does any work.

A request that finds the queue full is refused at once, so that those that were admitted are answered as fast
under any load. Triton's own `max_queue_size` cannot say so: in 2.51 a full queue inside an ensemble can leave
a request without an answer.

How many wait is what Triton's metric `nv_inference_pending_request_count` says of the network, and those that
were admitted since it was read. It is read only once that sum has reached the limit, in a thread of its own:
on a busy machine reading takes longer than a refusal may. Who finds the queue full waits for the next
reading, unless the last one, of a moment ago, has refused somebody already. Requests that the network runs
are not counted: it takes at most as many as waited.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from serving.models.backend_utils import pb_utils
from serving.probe import is_probe
from shoal.dialect import QUEUE_FULL
from shoal.names import ENCODER, ESTIMATOR, PARTS, part_name

# host:port of the metrics of the server that runs this; without it nobody is refused.
METRICS = "SHOAL_METRICS"
PARAMETER = "max_queue_size"
MAX_QUEUE_SIZE = 256  # requests, where a config says nothing
TRAVEL_SECONDS = 0.002  # until a request that was sent on is in the network's queue, about
GAP_SECONDS = 0.01  # between two readings, each of which takes some milliseconds of the CPUs
FRESH_SECONDS = 0.02  # in which nobody waits for another reading to be refused
SILENT_SECONDS = 1.0  # after the metrics could not be read
TIMEOUT_SECONDS = 0.25
_PENDING = "nv_inference_pending_request_count"


class QueueFull(Exception):
    """The request may succeed later.

    Args:
        waiting: requests that wait.
    """

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{QUEUE_FULL}{waiting} requests wait; try again later")


class Admission:
    """Admits requests of one model while its network's queue is not full. One thread asks.

    Args:
        most: requests that may wait for the network.
        pending: counts those that do, by the server; None: it cannot say.
        refused: is called for each that is refused.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        most: int,
        pending: Callable[[], int | None],
        refused: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._refused, self._clock = most, refused, clock
        self._admitted = 0
        self._sent: deque[tuple[float, int]] = deque()  # when how many had been admitted and sent on
        self._arrived = 0  # of them, those that the network's queue must know by now
        self._refusing = False
        self._reader = _Reader(pending, clock)

    @classmethod
    def of(cls, model_name: str, config: Mapping[str, Any]) -> Admission:
        """For the first step of an ensemble.

        Args:
            model_name: of the step; the network's name follows from it, see `shoal.names`.
            config: of the step, as a dict.

        Raises:
            ValueError: the parameter is no whole number, or below one.
        """
        given = config.get("parameters", {}).get(PARAMETER, {}).get("string_value", str(MAX_QUEUE_SIZE))
        if (most := int(given)) < 1:
            raise ValueError(f"{PARAMETER} is {most}, it must be at least 1")
        address, model = os.environ.get(METRICS, ""), model_of(model_name)
        networks = [part_name(model, part) for part in (ENCODER, ESTIMATOR)]
        pending = Pending(address, networks) if address else lambda: 0
        return cls(most, pending, refused_metric(model).count)

    def send(self) -> None:
        """The requests that were admitted until now are on their way to the network."""
        self._sent.append((self._clock(), self._admitted))

    def admit(self, request: Any) -> None:
        """Count one more.

        Args:
            request: Triton's; a probe of whoever started the server is always admitted.

        Raises:
            QueueFull: it is not admitted.
        """
        waiting, read = self._waiting()
        if waiting >= self._most:
            while self._sent and self._sent[0][0] <= self._clock() - TRAVEL_SECONDS:
                self._arrived = self._sent.popleft()[1]
            self._reader.read_soon(self._arrived, self._sent[-1][1] if self._sent else self._arrived)
            if not (self._refusing and self._clock() - read < FRESH_SECONDS):
                self._reader.wait(TIMEOUT_SECONDS)
                waiting, _ = self._waiting()
        self._refusing = waiting >= self._most and self._reader.found is not None
        if self._refusing and not is_probe(json.loads(request.parameters())):
            self._refused()
            raise QueueFull(self._most)
        self._admitted += 1

    def _waiting(self) -> tuple[int, float]:
        """How many wait, and when that was read."""
        found, arrived, sent, read = self._reader.last
        # Those that were on their way may have been counted by the server already, or not.
        return max(found or 0, sent - arrived) + self._admitted - sent, read


class _Reader:
    """Reads how many requests wait, in a thread, when it is told to.

    Args:
        pending: see `Admission`.
        clock: seconds that only rise.

    Attributes:
        last: what was read; how many requests had arrived and how many had been sent on before that; and when
            it was read.
    """

    def __init__(self, pending: Callable[[], int | None], clock: Callable[[], float]) -> None:
        self._pending, self._clock = pending, clock
        self.last: tuple[int | None, int, int, float] = (0, 0, 0, float("-inf"))
        self._wanted: tuple[int, int] | None = None
        self._reading, self._next = False, float("-inf")
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def found(self) -> int | None:
        """What was read last; None: it could not be."""
        return self.last[0]

    def read_soon(self, arrived: int, sent: int) -> None:
        """Read once more, beginning after this moment.

        Args:
            arrived: requests that the network's queue has had until now.
            sent: the same, and those that are on their way there.
        """
        with self._changed:
            if self.found is None and self._clock() - self.last[3] < SILENT_SECONDS:
                return
            self._wanted = arrived, sent
            if self._thread is None:  # most models never need it
                self._thread = threading.Thread(target=self._read, name="admission", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Until what is read, or to be read, has been read."""
        with self._changed:
            self._changed.wait_for(lambda: self._wanted is None and not self._reading, seconds)

    def _read(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted is not None)
            time.sleep(max(0.0, self._next - self._clock()))
            self._next = self._clock() + GAP_SECONDS
            with self._changed:
                assert self._wanted is not None  # noqa: S101 - nobody else takes it
                before, self._wanted, self._reading = self._wanted, None, True
            found = self._read_once()
            with self._changed:
                self.last, self._reading = (found, *before, self._clock()), False
                self._changed.notify_all()

    def _read_once(self) -> int | None:
        try:
            return self._pending()
        except Exception as error:  # noqa: BLE001 - without this thread each request would wait for it
            pb_utils.Logger.log_error(f"no request is refused for a full queue: {error}")
            return None


def model_of(part: str) -> str:
    """What users call, of which this is a part."""
    ends = [part_name("", one) for one in PARTS]
    return next((part.removesuffix(end) for end in ends if part.endswith(end)), part)


class Pending:
    """Requests that wait for some models, as Triton's metrics say.

    Args:
        address: host:port of the metrics.
        models: whose requests are counted, all versions.
    """

    def __init__(self, address: str, models: list[str]) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=TIMEOUT_SECONDS)
        names = "|".join(map(re.escape, models))
        self._counts = re.compile(rf'^{_PENDING}\{{model="(?:{names})",[^}}]*\}} (\S+)$', re.MULTILINE)

    def __call__(self) -> int | None:
        """None: the metrics cannot be read."""
        try:
            self._connection.request("GET", "/metrics")
            page = self._connection.getresponse().read().decode()
            return sum(int(float(found[1])) for found in self._counts.finditer(page))
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection.close()
            pb_utils.Logger.log_warn(f"no request is refused for a full queue: metrics: {error}")
            return None


class Metric:
    """A metric of one model among Triton's own.

    Args:
        kind: `COUNTER` or `GAUGE`.
        name, text: what Prometheus shows.
        model: that users call.
    """

    def __init__(self, kind: str, name: str, text: str, model: str) -> None:
        families = pb_utils.MetricFamily
        # Triton wants the family to outlive its metric.
        self._family = families(name=name, description=text, kind=getattr(families, kind))
        self._metric = self._family.Metric(labels={"model": model})

    def set(self, value: float) -> None:
        """A gauge's value from now on."""
        self._metric.set(value)

    def count(self) -> None:
        """One more of a counter."""
        self._metric.increment(1)


def refused_metric(model: str) -> Metric:
    """Counts the requests that find a queue full."""
    text = "Requests that were refused since the queue was full"
    return Metric("COUNTER", "shoal_queue_refused_total", text, model)
