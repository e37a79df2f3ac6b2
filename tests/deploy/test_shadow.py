"""Copies of requests that both versions answer; `make test-canary` has real servers and a real Envoy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from deploy.canary.agreement import agree
from deploy.canary.guards import AGREEMENT, Answered, Guard, Judge
from deploy.canary.mirror import MOST_AT_ONCE, Mirror
from deploy.canary.rollout import Rollout
from deploy.canary.split import Split
from deploy.templates import render
from shoal.errors import UsageError
from tests.reliability.world import free_ports


def answer(**outputs: NDArray[Any]) -> service_pb2.ModelInferResponse:
    made = service_pb2.ModelInferResponse(model_name="m")
    for name, values in outputs.items():
        made.outputs.add(name=name, datatype=np_to_triton_dtype(values.dtype), shape=values.shape)
        text = serialize_byte_tensor(values).item() if values.dtype == object else values.tobytes()
        made.raw_output_contents.append(text)
    return made


def texts(*rows: list[bytes]) -> NDArray[Any]:
    return np.array(rows, dtype=object)


def floats(*rows: list[float]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


VECTOR = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
TURNED = VECTOR + np.random.default_rng(1).normal(size=(2, 16)).astype(np.float32)
COUNT = np.array([[5]], np.int32)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"x": floats([1.0])}, {"x": floats([1.009])}, True),
        ({"x": floats([1.0])}, {"x": floats([1.02])}, False),
        ({"x": floats([0.0])}, {"x": floats([0.0009])}, True),
        ({"x": floats([np.nan])}, {"x": floats([np.nan])}, True),
        ({"x": floats([np.nan])}, {"x": floats([1.0])}, False),
        ({"x": floats([1.0])}, {"y": floats([1.0])}, False),
        ({"x": floats([1.0])}, {"x": floats([1.0], [1.0])}, False),
        ({"x": floats([1.0])}, {"x": np.array([[1.0]])}, False),  # FP64
        ({"x": floats()}, {"x": floats()}, True),
        ({"e": VECTOR}, {"e": VECTOR * 2}, True),  # its direction
        ({"e": VECTOR}, {"e": VECTOR + np.float32(0.01)}, True),
        ({"e": VECTOR}, {"e": TURNED}, False),
        ({"e": VECTOR}, {"e": np.concatenate([VECTOR[:1], TURNED[1:]])}, False),  # one row of two
        ({"e": VECTOR * 0}, {"e": VECTOR * 0}, True),
        ({"e": VECTOR * 0}, {"e": VECTOR}, False),
        ({"e": VECTOR, "n": COUNT}, {"e": VECTOR, "n": COUNT + 1}, False),
        # The choice is the first label; scores do not count beside labels.
        (
            {"label": texts([b"a", b"b", b"c"]), "score": floats([0.7, 0.2, 0.1])},
            {"label": texts([b"a", b"c", b"b"]), "score": floats([0.6, 0.3, 0.1])},
            True,
        ),
        ({"label": texts([b"a", b"b"])}, {"label": texts([b"b", b"a"])}, False),
        ({"label": texts([b"a"], [b"b"])}, {"label": texts([b"a"], [b"c"])}, False),
        ({"label": COUNT, "score": floats([0.7])}, {"label": COUNT, "score": floats([0.1])}, True),
        ({"label": COUNT, "score": floats([0.7])}, {"label": COUNT + 1, "score": floats([0.7])}, False),
    ],
)
def test_when_answers_agree(old: dict[str, Any], new: dict[str, Any], expected: bool) -> None:
    assert agree(answer(**old), answer(**new)) is expected
    assert agree(answer(**new), answer(**old)) is expected


def test_a_guard_of_agreement() -> None:
    guard = Guard.parse("agreement>=0.99")
    assert (guard.kind, guard.most, str(guard)) == (AGREEMENT, pytest.approx(0.01), "agreement>=0.99")
    assert str(Guard.parse("agreement")) == "agreement>=0.995"
    for given in ("agreement>=1", "agreement>=0", "agreement<=0.5", "agreement>=1.5", "agreement>=0.99999"):
        with pytest.raises(UsageError):
            Guard.parse(given)


def test_agreement_is_open_until_it_is_known() -> None:
    judge = Judge([Guard.parse("agreement>=0.95")])
    assert judge.verdict == "open"
    judge.add(Answered(True, False, 0.1))  # an answer that nothing is compared with
    assert judge.verdict == "open"
    for _ in range(30):
        judge.compare(agree=True)
    assert judge.verdict == "open"
    for _ in range(300):
        judge.compare(agree=True)
    assert judge.verdict == "good"
    assert Judge.from_dict(judge.to_dict()).rows() == judge.rows()
    worse = Judge([Guard.parse("agreement>=0.95")])
    for number in range(100):
        worse.compare(agree=number % 4 > 0)
    assert worse.verdict == "worse"
    assert worse.rows()[0]["evidence"] == 1.0


def test_versions_that_agree_as_much_as_they_must_are_seldom_called_worse() -> None:
    """At most one in a hundred; five or more of a hundred would be a matter of one in 300."""
    random, called = np.random.default_rng(7), 0
    for _ in range(100):
        judge = Judge([Guard.parse("agreement>=0.9")])
        for number, same in enumerate((random.random(600) < 0.9).tolist()):
            judge.compare(agree=same)
            if number % 10 == 0 and judge.verdict == "worse":
                called += 1
                break
    assert called <= 4


def test_only_requests_of_grpc_are_copied_and_only_where_they_are_asked_for() -> None:
    for split, copied in (
        (Split("a", "m", 0.1), False),
        (Split("a", "m", 0.1, "", 0.1), True),
        (Split("a", "m", 0.0, "", 0.2), True),
    ):
        assert ("cluster: mirror" in render("split.yaml.j2", name="grpc", split=split)) is copied
        assert "mirror" not in render("split.yaml.j2", name="http", split=split)
    assert "numerator: 2000" in render("split.yaml.j2", name="grpc", split=Split("a", "m", 0.0, "", 0.2))
    assert Rollout(Split("a", "m", 0.0, "", 0.2), "m", 2, 1, 60.0, Judge([])).shadow


class _Version(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, says: Callable[[Any, Any], Any]) -> None:
        self.says = says

    def ModelInfer(self, request: Any, context: Any) -> Any:
        return self.says(request, context)


@contextmanager
def version(says: Callable[[Any, Any], Any]) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(16))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Version(says), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


FULL = grpc.StatusCode.UNAVAILABLE  # as Triton refuses where a queue is full


def fails(code: grpc.StatusCode) -> Callable[[Any, Any], Any]:
    return lambda request, context: context.abort(code, "no")


def says(value: float) -> Callable[[Any, Any], Any]:
    return lambda request, context: answer(x=floats([value]))


def copied(port: int, model: str = "m", times: int = 1) -> None:
    """As Envoy sends copies; what comes back is nothing."""
    given = InferInput("x", [1, 1], "FP32")
    given.set_data_from_numpy(floats([1.0]))
    with InferenceServerClient(f"127.0.0.1:{port}") as client:
        for _ in range(times):
            assert client.infer(model, [given], model_version="7").get_response().ByteSize() == 0


def taken(mirror: Mirror, number: int) -> list[Any]:
    found, deadline = [], time.monotonic() + 20
    while len(found) < number and time.monotonic() < deadline:
        found += mirror.taken()
        time.sleep(0.01)
    return found


@pytest.mark.parametrize(
    ("old", "new", "failed", "same"),
    [
        (says(1.0), says(1.0), (False, False), True),
        (says(1.0), says(2.0), (False, False), False),
        (says(1.0), fails(grpc.StatusCode.INTERNAL), (False, True), None),
        (says(1.0), fails(grpc.StatusCode.DEADLINE_EXCEEDED), (False, True), None),
        (fails(grpc.StatusCode.INVALID_ARGUMENT), says(1.0), (True, False), None),
        (fails(grpc.StatusCode.INVALID_ARGUMENT), fails(grpc.StatusCode.INTERNAL), (True, True), None),
    ],
)
def test_a_copy_is_answered_by_both(old: Any, new: Any, failed: Any, same: bool | None) -> None:
    [port] = free_ports(1)
    with version(old) as before, version(new) as after, Mirror(port, [before], after, "m") as mirror:
        copied(port)
        [found] = taken(mirror, 1)
        assert (found.failed, found.agree) == (failed, same)
        assert min(found.seconds) > 0


def test_copies_that_say_nothing_of_the_new_version_do_not_count() -> None:
    """Of another model; that nothing can read; and where no server of the old version answers."""
    [port] = free_ports(1)
    asked: list[str] = []

    def note(request: Any, context: Any) -> Any:
        asked.append(request.model_version)
        return answer(x=floats([1.0]))

    with version(says(1.0)) as before, version(note) as after, version(fails(FULL)) as full:
        for old, new in ((before, full), (full, after)):
            with Mirror(port, [old], new, "m") as mirror:
                copied(port)
                time.sleep(0.5)
                assert mirror.taken() == []
        asked.clear()
        with Mirror(port, [before], after, "m") as mirror:
            copied(port, "another")
            channel = grpc.insecure_channel(f"127.0.0.1:{port}")
            assert channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff\xff") == b""
            channel.close()
            assert not asked
            copied(port)
            assert len(taken(mirror, 1)) == 1
            assert asked == [""]  # not version 7, which the new version's server does not have
        [gone] = free_ports(1)
        with Mirror(port, [f"127.0.0.1:{gone}"], after, "m") as mirror:
            copied(port)
            time.sleep(1)
            assert mirror.taken() == []
        with Mirror(port, [f"127.0.0.1:{gone}", before], after, "m") as mirror:
            for _ in range(8):  # another server of the old version has it
                copied(port)
                [found] = taken(mirror, 1)
                assert found.agree


def test_no_more_copies_are_under_way_than_may_be() -> None:
    [port] = free_ports(1)
    go, most, now = threading.Event(), 0, 0
    lock = threading.Lock()

    def slow(request: Any, context: Any) -> Any:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        go.wait(20)
        with lock:
            now -= 1
        return answer(x=floats([1.0]))

    with version(slow) as before, version(slow) as after, Mirror(port, [before], after, "m") as mirror:
        copied(port, times=5 * MOST_AT_ONCE)
        go.set()
        assert len(taken(mirror, MOST_AT_ONCE)) == MOST_AT_ONCE
        time.sleep(0.3)
        assert mirror.taken() == []  # the others were dropped
        assert most <= MOST_AT_ONCE
        copied(port)
        assert len(taken(mirror, 1)) == 1


def test_a_port_that_is_taken_is_named() -> None:
    with version(says(1.0)) as taken_by:
        port = int(taken_by.rpartition(":")[2])
        with pytest.raises(UsageError, match=f"port {port}"), Mirror(port, [taken_by], taken_by, "m"):
            pass
