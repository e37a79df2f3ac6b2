"""A request that finds its network's queue full is refused at once; those that were admitted are answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from google.protobuf import text_format
from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2 as triton
from tritonclient.utils import InferenceServerException

from clients import GrpcClient, HttpClient, Overloaded
from export.text2text import publish
from export.text2text.recipe import Text2TextRecipe
from export.triton_config import set_batching
from serving import probe
from serving.embedded import Server, running
from serving.models.admission import Admission, Pending, QueueFull, model_of
from serving.models.text2text import Text2TextSettings
from serving.supervisor.readiness import Readiness
from serving.text2text.settings import Search
from tests import tiny
from tests.serving.generation.metrics import page_of
from tests.serving.models.test_limits import PARAMETERS

MOST = 3
KEY = "3f9a"
SLOW_SECONDS = 0.1
# In place of the network: one request after the other.
ENCODER = f"""
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        time.sleep({SLOW_SECONDS})
        made = np.zeros((1, 2), np.float32)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("embedding", made)]) for _ in requests]
"""
# In place of an encoder-decoder, behind its queue.
WRITER = f"""
import time
import numpy as np
import triton_python_backend_utils as pb_utils
from serving.models.queue import Queue

class TritonPythonModel:
    def initialize(self, args):
        self.queue = Queue(self.answers, lambda request: 1, most_rows=1, most={MOST}, model="writer")

    def answers(self, requests):
        text = pb_utils.get_input_tensor_by_name(requests[0], "text").as_numpy()[0, 0]
        if text == b"raise":
            raise RuntimeError("of the model")
        time.sleep({SLOW_SECONDS})
        made = np.array([[b"slow"]], object)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("generated_text", made)]) for _ in requests]

    def execute(self, requests):
        for request in requests:
            self.queue.add(request)
        return [None] * len(requests)

    def finalize(self):
        self.queue.close()
"""


USERS = SimpleNamespace(parameters=lambda: "{}")


class Queue:
    """What the server would say, and when it was asked."""

    def __init__(self) -> None:
        self.waits: int | None = 0
        self.asked = 0
        self.now = 0.0

    def __call__(self) -> int | None:
        self.asked += 1
        return self.waits

    def clock(self) -> float:
        return self.now


def _admitted(admission: Admission, count: int) -> int:
    """How many of so many requests are admitted."""
    found = 0
    for _ in range(count):
        try:
            admission.admit(USERS)
            found += 1
        except QueueFull:
            pass
    admission.send()
    return found


def test_no_more_are_admitted_than_may_wait_whatever_ends_meanwhile() -> None:
    queue, refused = Queue(), list[int]()
    admission = Admission(4, queue, lambda: refused.append(1), queue.clock)
    assert _admitted(admission, 10) == 4 and len(refused) == 6
    queue.waits, queue.now = 4, 1.0
    assert _admitted(admission, 10) == 0
    queue.waits, queue.now = 1, 2.0
    assert _admitted(admission, 10) == 3  # those in hand count though the server does not know them yet
    queue.waits, queue.now = 0, 3.0
    assert _admitted(admission, 3) == 3
    assert _admitted(admission, 10) == 1  # the three may not have come to the network's queue yet
    queue.now = 4.0
    assert _admitted(admission, 10) == 4  # now they have, and the server knows of none


def test_a_slow_server_holds_up_nobody_who_is_refused() -> None:
    queue, waits = Queue(), list[float]()
    admission = Admission(1, queue, clock=queue.clock)
    assert _admitted(admission, 2) == 1  # the second one was refused by what the server said
    admission._reader.wait = waits.append  # type: ignore[method-assign]
    assert _admitted(admission, 100) == 0 and not waits
    queue.now = 1.0  # what was read is too old to refuse somebody by
    assert _admitted(admission, 1) == 0 and len(waits) == 1


def test_a_reading_that_fails_refuses_nobody_and_is_tried_again() -> None:
    queue = Queue()

    def failing() -> int:
        if queue() == 0:
            raise RuntimeError("of the server")
        return 1

    admission = Admission(1, failing, clock=queue.clock)
    assert _admitted(admission, 5) == 5
    queue.now, queue.waits = 2.0, 1
    assert _admitted(admission, 5) == 0


def test_a_light_load_asks_nothing_and_a_silent_server_refuses_nobody() -> None:
    queue = Queue()
    admission = Admission(256, queue, clock=queue.clock)
    assert _admitted(admission, 256) == 256 and queue.asked == 0
    queue.waits = None
    assert _admitted(admission, 1000) == 1000 and queue.asked == 1
    queue.waits, queue.now = 256, 1.0
    with pytest.raises(QueueFull, match="^the queue is full: 256 requests wait; try again later$"):
        admission.admit(USERS)


def test_metrics_that_cannot_be_read_say_nothing() -> None:
    assert Pending("127.0.0.1:1", ["a_encoder"])() is None


def test_the_model_is_found_by_the_name_of_its_part() -> None:
    assert model_of("a_rows") == "a"
    assert model_of("a_b_tokenizer") == "a_b"
    assert model_of("a_b") == "a_b"


@pytest.mark.parametrize("given", ["0", "-3", "many", "1.5"])
def test_a_limit_that_is_none_keeps_the_model_from_loading(given: str) -> None:
    with pytest.raises(ValueError, match=r"max_queue_size is|invalid literal"):
        Admission.of("a_tokenizer", {"parameters": {"max_queue_size": {"string_value": given}}})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> Iterator[Server]:
    """A tokenizer of ours before a network that takes its time, and an encoder-decoder that does."""
    models = tmp_path_factory.mktemp("admission")
    for name in ("slow_tokenizer", "slow_encoder", "slow", "writer"):
        (models / name / "1").mkdir(parents=True)
    Tokenizer.from_str(tiny.wordpiece()).save(str(models / "slow_tokenizer" / "1" / "tokenizer.json"))
    (models / "slow_tokenizer" / "1" / "model.py").write_text(
        "from serving.models.tokenizer import TritonPythonModel  # noqa: F401\n"
    )
    (models / "slow_encoder" / "1" / "model.py").write_text(ENCODER)
    (models / "writer" / "1" / "model.py").write_text(WRITER)
    (models / "slow_tokenizer" / "config.pbtxt").write_text(_tokenizer())
    (models / "slow_encoder" / "config.pbtxt").write_text(
        """backend: "python" max_batch_size: 1
        dynamic_batching { }
        instance_group { count: 1 kind: KIND_CPU }
        input { name: "input_ids" data_type: TYPE_INT64 dims: -1 }
        output { name: "embedding" data_type: TYPE_FP32 dims: 2 }"""
    )
    (models / "slow" / "config.pbtxt").write_text(
        """platform: "ensemble" max_batch_size: 1
        input { name: "text" data_type: TYPE_STRING dims: 1 }
        output { name: "embedding" data_type: TYPE_FP32 dims: 2 }
        parameters { key: "task" value { string_value: "sentence-similarity" } }
        ensemble_scheduling {
          step { model_name: "slow_tokenizer" model_version: -1
            input_map { key: "text" value: "text" } output_map { key: "input_ids" value: "input_ids" } }
          step { model_name: "slow_encoder" model_version: -1
            input_map { key: "input_ids" value: "input_ids" }
            output_map { key: "embedding" value: "embedding" } } }"""
    )
    (models / "writer" / "config.pbtxt").write_text(_writer())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(probe.PROBE_KEY, KEY)
        with running(models) as started:
            yield started


def _tokenizer() -> str:
    values = PARAMETERS | {"max_queue_size": str(MOST)}
    config = triton.ModelConfig(backend="python", max_batch_size=1)
    set_batching(config)
    config.input.add(name="text", data_type=triton.DataType.TYPE_STRING, dims=[1])
    config.output.add(name="input_ids", data_type=triton.DataType.TYPE_INT64, dims=[-1])
    for key, value in values.items():
        config.parameters[key].string_value = value
    return str(text_format.MessageToString(config))


def _writer() -> str:
    """As it is exported, without the output that `WRITER` does not make."""
    recipe = Text2TextRecipe("t5", max_batch_size=1, max_queue_size=MOST)
    search = Search.from_json('{"start": 0, "ends": [1], "pad": 0, "max_new_tokens": 4}')
    settings = Text2TextSettings(search, 64, 1000, max_queue_size=MOST)
    config = publish.config_of(recipe, settings, version=1)
    config.name = "writer"
    del config.output[1]
    return str(text_format.MessageToString(config))


def _text(module: Any, text: bytes) -> Any:
    tensor = module.InferInput("text", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text]], object))
    return tensor


@pytest.mark.parametrize("model", ["slow", "writer"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_burst_is_answered_or_refused_each_once(server: Server, model: str, protocol: str) -> None:
    """Asked by NVIDIA's clients: thirty at once, of which few find a place."""
    module = {"grpc": tritonclient.grpc, "http": tritonclient.http}[protocol]
    began = time.monotonic()

    def ask(number: int) -> tuple[str, float]:
        client = module.InferenceServerClient(getattr(server, protocol))
        try:
            client.infer(model, [_text(module, f"fish {number}".encode())])
            return "answered", time.monotonic() - began
        except InferenceServerException as error:
            return str(error.message()), time.monotonic() - began

    with ThreadPoolExecutor(30) as pool:
        found = list(pool.map(ask, range(30)))
    answered = [seconds for said, seconds in found if said == "answered"]
    refused = [(said, seconds) for said, seconds in found if said != "answered"]
    assert len(answered) + len(refused) == 30
    # As many as may wait, those that run, and those whose places became free before the last one came.
    came = max(seconds for _, seconds in refused)
    assert MOST <= len(answered) <= 2 * MOST + 2 + came / SLOW_SECONDS, found
    assert all("the queue is full: 3 requests wait; try again later" in text for text, _ in refused)
    # Refused first, the slowest answered last: an order, not a time.
    assert sorted(seconds for _, seconds in refused)[len(refused) // 2] < max(answered)


@pytest.mark.parametrize("kind", [GrpcClient, HttpClient])
def test_our_clients_say_that_it_is_overloaded(server: Server, kind: type[GrpcClient | HttpClient]) -> None:
    address = server.grpc if kind is GrpcClient else server.http

    def ask(number: int) -> str:
        with kind(address, timeout=300) as client:
            try:
                client.infer("slow", {"text": np.array([[f"{number}".encode()]], object)})
            except Overloaded as error:
                return str(error)
            return ""

    with ThreadPoolExecutor(20) as pool:
        said = [text for text in pool.map(ask, range(20)) if text]
    assert said and all("the queue is full: 3 requests wait; try again later" in text for text in said)


@pytest.mark.parametrize("model", ["slow", "writer"])
def test_a_health_check_is_answered_while_users_are_refused(
    server: Server, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that keeps its queue itself answers it before those that were admitted earlier."""
    monkeypatch.setenv(probe.PROBE_KEY, KEY)
    question = probe.smallest(server.http, model, 10, {})
    client = tritonclient.grpc.InferenceServerClient(server.grpc)
    answered = list[float]()

    def ask(_: int) -> bool:
        try:
            client.infer(model, [_text(tritonclient.grpc, b"fish")])
            answered.append(time.monotonic())
            return True
        except InferenceServerException:
            return False

    with ThreadPoolExecutor(20) as pool:
        users = [pool.submit(ask, number) for number in range(20)]
        while all(not user.done() for user in users):
            time.sleep(0.005)
        probe.send(question.request(), timeout=10)
        at = time.monotonic()
        found = [user.result() for user in users]
    assert not all(found)  # the queue was full
    if model == "writer":
        assert sum(other > at for other in answered) >= 2


def test_a_model_that_answers_users_is_ready_however_long_the_question_waits(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question may wait half as long as an answer takes here, so that none ever comes in time."""
    monkeypatch.setattr("serving.supervisor.readiness.ASK_SECONDS", 2.5 * SLOW_SECONDS)
    monkeypatch.setattr("serving.supervisor.readiness.ANSWER_SECONDS", 0.5 * SLOW_SECONDS)
    client = tritonclient.grpc.InferenceServerClient(server.grpc)
    told: list[str | None] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            with suppress(InferenceServerException):
                client.infer("slow", [_text(tritonclient.grpc, b"fish")])

    users = [threading.Thread(target=ask) for _ in range(2)]
    for user in users:
        user.start()
    readiness = Readiness(
        {"slow": probe.smallest(server.http, "slow", 10, {})}, lambda *_: told.append(readiness.problem)
    )
    while len(told) < 4:
        time.sleep(0.01)
    over.set()
    for user in users:
        user.join()
    assert told[:4] == [None] * 4
    del told[:]
    while len(told) < 4:
        time.sleep(0.01)
    readiness.close()
    assert told[-1] == "slow did not answer: timed out"


@pytest.mark.parametrize("model", ["slow", "writer"])
def test_a_request_that_comes_while_the_model_runs_is_next(server: Server, model: str) -> None:
    """Where Triton's queue has a policy or priorities it waits for half a second, or for another request."""
    client = tritonclient.grpc.InferenceServerClient(server.grpc)

    def ask(after: float) -> float:
        time.sleep(after)
        began = time.monotonic()
        client.infer(model, [_text(tritonclient.grpc, b"fish")])
        return time.monotonic() - began

    with ThreadPoolExecutor(2) as pool:
        found = [list(pool.map(ask, [0, SLOW_SECONDS / 2])) for _ in range(6)]
    ratios = sorted(second / first for first, second in found)
    assert ratios[2] < 3, found  # about 1.5; 5 with such a policy


def test_an_error_of_the_model_ends_its_request_and_the_next_is_answered(server: Server) -> None:
    client = tritonclient.grpc.InferenceServerClient(server.grpc)
    with pytest.raises(InferenceServerException, match="of the model"):
        client.infer("writer", [_text(tritonclient.grpc, b"raise")])
    made = client.infer("writer", [_text(tritonclient.grpc, b"fish")])
    assert made.as_numpy("generated_text").tolist() == [[b"slow"]]


def test_a_key_that_is_wrong_opens_no_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not probe.is_probe({"shoal_probe": ""})
    monkeypatch.setenv(probe.PROBE_KEY, KEY)
    assert probe.is_probe({"shoal_probe": KEY})
    for wrong in ({}, {"shoal_probe": ""}, {"shoal_probe": 7}, {"shoal_probe": KEY[:3]}):
        assert not probe.is_probe(wrong)


@pytest.mark.parametrize("model", ["slow", "writer"])
def test_those_that_were_refused_are_counted(server: Server, model: str) -> None:
    def refused() -> float:
        beginning = f'shoal_queue_refused_total{{model="{model}"'
        found = [line for line in page_of(server).splitlines() if line.startswith(beginning)]
        return sum(float(line.split()[-1]) for line in found)

    before, client = refused(), tritonclient.grpc.InferenceServerClient(server.grpc)

    def ask(number: int) -> bool:
        try:
            client.infer(model, [_text(tritonclient.grpc, b"fish")])
            return False
        except InferenceServerException:
            return True

    with ThreadPoolExecutor(20) as pool:
        count = sum(pool.map(ask, range(20)))
    assert count and refused() - before == count
