"""Receives copies of requests from Envoy, and asks both versions. Callers never see what comes of it.

Envoy sends a copy and does not wait for its answer. So many copies as may be under way are asked, the others
are dropped; a copy is in memory alone, and goes nowhere but to the two versions.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from deploy.canary.agreement import agree
from serving.ports import LOOPBACK
from shoal.errors import UsageError

MOST_AT_ONCE = 4  # copies under way
METHOD = "/inference.GRPCInferenceService/ModelInfer"
_DEADLINE_SECONDS = 30.0
_ANY_SIZE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass(frozen=True)
class Compared:
    """What became of a copy.

    Attributes:
        failed: whether the old and the new version failed.
        seconds: that each took.
        agree: whether they answered alike; None: one of them failed.
    """

    failed: tuple[bool, bool]
    seconds: tuple[float, float]
    agree: bool | None


class Mirror:
    """To be entered, and left.

    Args:
        port: on loopback, where Envoy sends copies.
        old: host:port of each server of the version that is served.
        new: host:port of the new version's server.
        model: copies for another one are left alone.
    """

    def __init__(self, port: int, old: Sequence[str], new: str, model: str) -> None:
        self._port, self._model = port, model
        self._old = [grpc.insecure_channel(each, options=_ANY_SIZE) for each in old]
        self._new = grpc.insecure_channel(new, options=_ANY_SIZE)
        self._slots, self._lock = threading.BoundedSemaphore(MOST_AT_ONCE), threading.Lock()
        self._found: list[Compared] = []
        self._pool = ThreadPoolExecutor(MOST_AT_ONCE)
        alone = [*_ANY_SIZE, ("grpc.so_reuseport", 0)]  # else two would share the port, and its copies
        self._server = grpc.server(ThreadPoolExecutor(MOST_AT_ONCE), [_Handler(self._copy)], options=alone)

    def __enter__(self) -> Mirror:
        try:
            self._server.add_insecure_port(f"{LOOPBACK}:{self._port}")
        except RuntimeError as error:
            raise UsageError(
                f"port {self._port}, to which Envoy sends copies, is taken", hint="see --canary-ports"
            ) from error
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.stop(None)
        for channel in (*self._old, self._new):
            channel.close()  # what is under way ends with it
        self._pool.shutdown()

    def taken(self) -> list[Compared]:
        """What has become of copies since the last call."""
        with self._lock:
            found, self._found = self._found, []
        return found

    def _copy(self, request: bytes, context: Any) -> bytes:
        if self._slots.acquire(blocking=False):
            self._pool.submit(self._compare, request)
        return b""

    def _compare(self, request: bytes) -> None:
        try:
            try:
                asked = service_pb2.ModelInferRequest.FromString(request)
            except DecodeError:  # no version can read it
                return
            if asked.model_name != self._model:
                return
            asked.model_version = ""  # the new version's server has no other
            text = asked.SerializeToString()
            sides: list[Callable[[], tuple[Any, float]]] = [
                lambda: self._ask_old(text),
                lambda: _ask(self._new, text),
            ]
            order = [0, 1] if random.random() < 0.5 else [1, 0]  # noqa: S311 - the second one may be faster
            found = {side: sides[side]() for side in order}
            if grpc.StatusCode.UNAVAILABLE in (found[0][0], found[1][0]):
                return  # a full queue, or no server: that says nothing of the version
            answers, seconds = zip(found[0], found[1], strict=True)
            failed = tuple(isinstance(each, grpc.StatusCode) for each in answers)
            try:
                same = None if any(failed) else agree(*answers)
            except ValueError:  # its content is in shared memory
                return
            with self._lock:
                self._found.append(Compared(failed, seconds, same))  # type: ignore[arg-type]
        finally:
            self._slots.release()

    def _ask_old(self, text: bytes) -> tuple[Any, float]:
        for channel in random.sample(self._old, len(self._old)):
            found = _ask(channel, text)
            if found[0] is not grpc.StatusCode.UNAVAILABLE:
                break
        return found


def _ask(channel: grpc.Channel, text: bytes) -> tuple[Any, float]:
    """An answer, or the code of an error, and the seconds that it took."""
    call = channel.unary_unary(METHOD, response_deserializer=service_pb2.ModelInferResponse.FromString)
    begun = time.perf_counter()
    try:
        answer: Any = call(text, timeout=_DEADLINE_SECONDS)
    except grpc.RpcError as error:
        answer = error.code()
    return answer, time.perf_counter() - begun


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, copy: Callable[[bytes, Any], bytes]) -> None:
        self._copy = copy

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if handler_call_details.method != METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(self._copy)
