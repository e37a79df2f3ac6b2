"""Gives requests their structures in a thread of its own, and then to the engine.

Where Triton hands requests over, a definition that takes long would keep all those behind it waiting.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from serving.generation.engine import QueueFull
from serving.generation.sequence import Failure, Request

STACK = 64 * 2**20  # bytes; several times what a definition may take in its trial
JOIN_SECONDS = 10.0

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
        self._closing = threading.Event()
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
                f"the queue is full: {self._waiting.maxsize} structures wait to be compiled; try again later"
            ) from None

    def close(self) -> None:
        """Submit no more; whoever waits is told that the server is stopping."""
        self._closing.set()
        self._structures.close()
        self._thread.join(JOIN_SECONDS)

    def _work(self) -> None:
        while not self._closing.is_set() or not self._waiting.empty():
            try:
                request, refuse = self._waiting.get(timeout=0.1)
            except queue.Empty:
                continue
            try:
                self._admit(request)
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller must hear of it
                if not self._ended(request):
                    refuse(error)

    def _admit(self, request: Request) -> None:
        if not self._ended(request):
            assert request.params.structured_outputs is not None  # noqa: S101
            matcher = self._structures.matcher(*request.params.structured_outputs)
            if not self._ended(request):
                self._submit(replace(request, matcher=matcher))

    def _ended(self, request: Request) -> bool:
        """Whether a request cannot be answered any more, and its caller has been told."""
        failed: tuple[Failure, str] | None = None
        if self._closing.is_set():
            failed = Failure.STOPPING, "the server is stopping"
        elif request.deadline is not None and self._clock() >= request.deadline:
            failed = Failure.DEADLINE, "its structure was not compiled in time"
        elif request.gone():
            failed = Failure.CANCELLED, "the caller has left"
        if failed is not None:
            request.deliver(failed)
        return failed is not None
