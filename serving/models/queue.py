"""A queue of a Python model's own: it answers from a thread, and not from `execute`, which returns at once.

Triton's queue before such a model is empty, so that a request is taken up when it comes: it is refused where
too many wait already, and a probe of whoever started the server is answered before all others. Triton's own
`max_queue_size` would refuse, too, and make requests wait: see `export.triton_config.set_batching`.
"""

from __future__ import annotations

import gc
import json
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from serving import heartbeat
from serving.models.admission import Metric, QueueFull, refused_metric
from serving.models.backend_utils import pb_utils
from serving.models.responses import failed
from serving.probe import is_probe

STOP_SECONDS = 10.0
STOPPING = "stopping: the server is stopping"
_LOOK_SECONDS = 0.1


@dataclass
class _Entry:
    """A request, which is ended once.

    Attributes:
        rows: that it has; 0 as long as nobody has looked.
    """

    request: Any
    sender: Any
    rows: int = 0
    ended: bool = False

    def end(self, response: Any) -> None:
        """Send the only response; nothing where one was sent already."""
        if self.ended:
            return
        self.ended = True
        try:
            self.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as error:  # noqa: BLE001 - nobody is left to receive it; the others must go on
            pb_utils.Logger.log_warn(f"a response could not be sent: {error}")


class Queue:
    """Requests that wait for a model, and the thread that answers them.

    Args:
        answers: one response for each request, in order, to several requests at once.
        rows: of a request.
        most_rows: that are answered at once; a request that has more by itself is answered by itself.
        most: requests that may wait, besides those that are being answered.
        model: its name, for the metrics.
    """

    def __init__(
        self,
        answers: Callable[[Sequence[Any]], Sequence[Any]],
        rows: Callable[[Any], int],
        *,
        most_rows: int,
        most: int,
        model: str,
    ) -> None:
        self._answers, self._rows = answers, rows
        self._most_rows, self._most = most_rows, most
        self._refused = refused_metric(model)
        text = "Requests that wait in the queue that a model keeps itself"
        self._shown = Metric("GAUGE", "shoal_queue_waiting", text, model)
        text = "Batches that a model took from the queue that it keeps itself"
        self._batches = Metric("COUNTER", "shoal_queue_batches_total", text, model)
        self._page = heartbeat.start()
        self._users, self._probes = deque[_Entry](), deque[_Entry]()
        self._changed, self._stopping = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="queue", daemon=True)
        self._thread.start()

    def add(self, request: Any) -> None:
        """Have a request answered, once; it may be refused at once."""
        entry = _Entry(request, request.get_response_sender())
        try:
            entry.rows = self._rows(request)
            probe = is_probe(json.loads(request.parameters()))
        except Exception as error:  # noqa: BLE001 - the requests beside this one must not fail with it
            entry.end(failed(error))
            return
        with self._changed:
            waiting = len(self._users)
            if full := waiting >= self._most and not probe:
                self._refused.count()
            else:
                (self._probes if probe else self._users).append(entry)
                self._changed.notify()
        if full:
            entry.end(failed(QueueFull(waiting)))

    def close(self) -> None:
        """Answer what runs, and end what waits with an error."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._end()
        self._thread.join(STOP_SECONDS)
        # The stub crashes, and the server waits for it, where Triton's objects outlive this call.
        del self._refused, self._shown, self._batches, self._answers
        gc.collect()

    def _work(self) -> None:
        while not self._stopping:
            if self._page is not None and self._page.ending:
                self._end()
            entries = self._next()
            try:
                self._turn(entries)
            except Exception as error:  # noqa: BLE001 - without this thread every request would hang
                pb_utils.Logger.log_error(f"queue: {traceback.format_exc()}")
                for entry in entries:
                    entry.end(failed(error))
        self._end()

    def _turn(self, entries: Sequence[_Entry]) -> None:
        wanted = []
        for entry in entries:
            if entry.sender.is_cancelled():
                entry.end(_error("cancelled: the caller left", pb_utils.TritonError.CANCELLED))
            else:
                wanted.append(entry)
        if wanted:
            self._batches.count()
            responses = self._answers([entry.request for entry in wanted])
            for entry, response in zip(wanted, responses, strict=True):
                entry.end(response)

    def _next(self) -> list[_Entry]:
        """Requests that are answered together: the first, and as many after it as fit."""
        with self._changed:
            if not (self._probes or self._users or self._stopping):
                self._changed.wait(_LOOK_SECONDS)
            found: list[_Entry] = []
            queue, rows = self._probes or self._users, 0
            while queue and (not found or rows + queue[0].rows <= self._most_rows):
                found.append(queue.popleft())
                rows += found[-1].rows
            self._shown.set(len(self._users))
            return found

    def _end(self) -> None:
        with self._changed:
            left = [*self._probes, *self._users]
            self._probes.clear()
            self._users.clear()
        for entry in left:
            entry.end(_error(STOPPING, pb_utils.TritonError.UNAVAILABLE))


def _error(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
