"""How many requests may wait for a network, decided by the step before it, before that does any work.

A request that finds the queue full is refused at once, so that those that were admitted are answered as fast
under any load. Triton's own `max_queue_size` cannot say so: in 2.51 a full queue inside an ensemble can leave
a request without an answer.

How many wait is what Triton's metric `nv_inference_pending_request_count` says of the network, and those that
were admitted since it was read. It is read only once that sum has reached the limit, and at most every 5 ms.
Requests that the network runs are not counted: it takes at most as many as waited.
"""

from __future__ import annotations

import http.client
import json
import os
import time
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
LOOK_SECONDS = 0.005
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
    """Admits requests of one model while its network's queue is not full.

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
        self._most, self._pending, self._refused, self._clock = most, pending, refused, clock
        self._waiting = self._in_hand = 0
        self._known, self._next = True, float("-inf")

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

    def begin(self) -> None:
        """The requests that were admitted before are on their way to the network."""
        self._in_hand = 0

    def admit(self, request: Any) -> None:
        """Count one more.

        Args:
            request: Triton's; a probe of whoever started the server is always admitted.

        Raises:
            QueueFull: it is not admitted.
        """
        if self._waiting >= self._most:
            self._look()
        if self._waiting >= self._most and self._known and not is_probe(json.loads(request.parameters())):
            self._refused()
            raise QueueFull(self._waiting)
        self._waiting += 1
        self._in_hand += 1

    def _look(self) -> None:
        now = self._clock()
        if now < self._next:
            return
        found = self._pending()
        self._known = found is not None
        self._next = now + (LOOK_SECONDS if self._known else SILENT_SECONDS)
        self._waiting = (found or 0) + self._in_hand


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
        self._beginnings = tuple(f'{_PENDING}{{model="{model}",' for model in models)

    def __call__(self) -> int | None:
        """None: the metrics cannot be read."""
        try:
            self._connection.request("GET", "/metrics")
            lines = self._connection.getresponse().read().decode().splitlines()
            return sum(int(float(line.split()[-1])) for line in lines if line.startswith(self._beginnings))
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
