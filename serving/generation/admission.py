"""Gives requests their structures in a thread of its own, and then to the engine.

Where Triton hands requests over, a definition that takes long would keep all those behind it waiting.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from serving.generation.deliveries import described
from serving.generation.engine import QueueFull
from serving.generation.sequence import Failure, Request
from shoal.dialect import QUEUE_FULL

STACK = 64 * 2**20  # bytes; several times what a definition may take in its trial
JOIN_SECONDS = 10.0
_log = logging.getLogger(__name__)

Refuse = Callable[[Exception], None]


class Compiles(Protocol):
    """What is needed of `structure.Structures`."""

    def matcher(self, kind: str, definition: Any) -> Any: ...
    def close(self) -> None: ...


class Admission:
    """A queue before the engine's, of requests whose structures are not compiled yet.

    Args:
        structures: see there.
        submit: `engine.Engine.submit`.
        most: requests that may wait.
        clock: the engine's.
    """

    def __init__(
        self,
        structures: Compiles,
        submit: Callable[[Request], None],
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._structures, self._submit, self._clock = structures, submit, clock
        self._waiting: queue.Queue[tuple[Request, Refuse]] = queue.Queue(most)
        self._ending, self._closing = threading.Event(), threading.Event()
        before = threading.stack_size(STACK)
        self._thread = threading.Thread(target=self._work, name="structures", daemon=True)
        self._thread.start()
        threading.stack_size(before)

    def add(self, request: Request, refuse: Refuse) -> None:
        """Queue a request with a structure.

        Args:
            refuse: called with what `Structures.matcher` or `submit` raises; then nothing is delivered.

        Raises:
            QueueFull: it was not queued.
        """
        try:
            self._waiting.put_nowait((request, refuse))
        except queue.Full:
            raise QueueFull(
                f"{QUEUE_FULL}{self._waiting.maxsize} structures wait to be compiled; try again later"
            ) from None

    def end(self) -> None:
        """Submit no more: whoever waits, and whoever comes, is told that the server is stopping."""
        if not self._ending.is_set():
            self._ending.set()
            self._structures.close()

    def close(self) -> None:
        """`end`, and wait until everyone has been told."""
        self.end()
        self._closing.set()
        self._thread.join(JOIN_SECONDS)

    def _work(self) -> None:
        while not self._closing.is_set() or not self._waiting.empty():
            try:
                request, refuse = self._waiting.get(timeout=0.1)
            except queue.Empty:
                continue
            try:
                self._admit(request, refuse)
            except Exception as error:  # noqa: BLE001 - without this thread all others would wait for ever
                _log.warning("a caller could not be told how a request ended: %s", described(error))

    def _admit(self, request: Request, refuse: Refuse) -> None:
        """Submit a request, or end it: once, whatever happens."""
        refused: Exception | None = None
        failed = self._failure(request)
        if failed is None:
            try:
                assert request.params.structured_outputs is not None  # noqa: S101
                matcher = self._structures.matcher(*request.params.structured_outputs)
                failed = self._failure(request)
                if failed is None:
                    self._submit(replace(request, matcher=matcher))
                    return
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller must hear of it
                refused, failed = error, self._failure(request)
        if failed is not None:
            request.deliver(failed)
        elif refused is not None:
            refuse(refused)

    def _failure(self, request: Request) -> tuple[Failure, str] | None:
        """Why a request cannot be answered any more, whatever becomes of its structure."""
        if self._ending.is_set():
            return Failure.STOPPING, "the server is stopping"
        if request.deadline is not None and self._clock() >= request.deadline:
            return Failure.DEADLINE, "its structure was not compiled in time"
        try:
            left = request.is_cancelled()
        except Exception as error:  # noqa: BLE001 - the others go on
            return Failure.INTERNAL, described(error)
        return (Failure.CANCELLED, "the caller has left") if left else None
