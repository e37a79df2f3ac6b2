"""The monitor and the tap before it: what they take, what they pass over, and that they hold nobody up."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from serving.drift.monitor import Monitor, Watched, Window, bound
from serving.drift.sampler import MOST_TOKENS, TrafficSampler
from serving.drift.statistics import Histogram, ReferenceStatistics, Vocabulary
from shoal import corpus
from shoal.errors import ServerError
from tests.serving.drift.watching import ENGLISH


def message(vocabulary: Tokenizer, text: str, **changes: Any) -> bytes:
    ids = vocabulary.encode(text).ids
    row = {"model": "minilm_tokenizer", "version": 1, "length": len(ids), "input_ids": ids}
    return json.dumps(row | changes).encode()


# The window and the monitor.


def test_a_window_forgets_by_number_and_by_time() -> None:
    now = [0.0]
    window = Window(3, rows=4, seconds=10.0, clock=lambda: now[0])
    for number in (0, 0, 1, 2, 2):
        window.add(number)
    assert window.counts().tolist() == [1, 1, 2]
    now[0] = 9.0
    window.add(0)
    now[0] = 11.0
    assert window.counts().tolist() == [1, 0, 0]


def watch(
    tokenizer_file: Path, tokenizer: Tokenizer, **features: Histogram
) -> dict[tuple[str, int], Watched]:
    vocabulary = Vocabulary.read(tokenizer_file)
    rows = [vocabulary.features(tokenizer.encode(text).ids) for text in corpus.texts(512, seed=4)]
    reference = ReferenceStatistics.of("sample", rows)
    reference.features.update(features)
    model = Watched("minilm", "minilm_encoder", ("input_ids", "attention_mask"), reference, vocabulary)
    return {("minilm_tokenizer", 1): model}


def test_nothing_is_said_of_few_rows(tokenizer_file: Path, tokenizer: Tokenizer) -> None:
    monitor = Monitor(watch(tokenizer_file, tokenizer), least=100)
    for text in ENGLISH[:99]:
        monitor.receive(message(tokenizer, text))
    assert monitor.drift() == {"minilm": {}}
    assert monitor.samples() == {"minilm": 99}
    monitor.receive(message(tokenizer, ENGLISH[99]))
    drift = monitor.drift()["minilm"]
    assert drift.keys() == {"length", "pieces", "unknown"}
    assert max(drift.values()) < 0.25


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"model": "minilm_tokenizer", "version": 1, "length": 1, "input_ids": [99999999]}',
        b'{"model": "minilm_tokenizer", "version": 1, "length": 1, "input_ids": ["a"]}',
        b'{"model": "minilm_tokenizer", "version": 1, "length": "a", "input_ids": [1]}',
        b'{"model": "minilm_tokenizer", "version": 1, "length": 1, "input_ids": [[1, 2]]}',
        b'{"model": [], "version": 1, "length": 1, "input_ids": [1]}',
        b'{"model": "another", "version": 1, "length": 1, "input_ids": [1]}',
    ],
)
def test_what_is_no_row_is_passed_over(tokenizer_file: Path, tokenizer: Tokenizer, given: bytes) -> None:
    monitor = Monitor(watch(tokenizer_file, tokenizer))
    monitor.receive(given)
    assert monitor.samples() == {"minilm": 0}


def test_the_network_is_asked_seldom_and_may_be_away(tokenizer_file: Path, tokenizer: Tokenizer) -> None:
    now, asked = [0.0], []

    def ask(network: str, feed: Any) -> dict[str, Any]:
        asked.append((network, {name: array.shape for name, array in feed.items()}))
        if len(asked) == 2:
            raise ConnectionError("away")
        return {"score": np.array([[0.5]], np.float32)}

    confidence = Histogram((1, 1), edges=(0.9,))
    models = watch(tokenizer_file, tokenizer, confidence=confidence)
    monitor = Monitor(models, ask, least=1, ask_seconds=1.0, clock=lambda: now[0])
    for seconds in (0.0, 0.5, 1.0, 2.5, 2.6):
        now[0] = seconds
        monitor.receive(message(tokenizer, "a fish"))
    assert asked == [("minilm_encoder", {"input_ids": (1, 4), "attention_mask": (1, 4)})] * 3
    assert models["minilm_tokenizer", 1].windows["confidence"].counts().tolist() == [2, 0]
    assert monitor.samples() == {"minilm": 5}
    now[0] = 9.0
    monitor.receive(message(tokenizer, "a fish", length=5000))  # the rest of it was not sent
    assert len(asked) == 3


# The tap.


def test_a_tap_is_off_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    assert not any(TrafficSampler("m", "1", {}).wants for _ in range(100))
    assert not TrafficSampler("m", "1", {"SHOAL_MONITOR": "/nowhere", "SHOAL_MONITOR_SHARE": "much"}).wants
    assert "SHOAL_MONITOR_SHARE is 'much'" in caplog.text
    assert 0 < sum(TrafficSampler("m", "1", {"SHOAL_MONITOR": "/nowhere"}).wants for _ in range(1000)) < 200


def test_a_tap_never_waits_and_never_fails(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    tap = TrafficSampler("m", "1", {"SHOAL_MONITOR": str(path), "SHOAL_MONITOR_SHARE": "1"})
    tap.send(range(MOST_TOKENS))  # nobody is there
    with bound(path):  # and here nobody reads
        started = time.perf_counter()
        for _ in range(2000):
            tap.send(range(MOST_TOKENS))
        assert time.perf_counter() - started < 5.0
    tap.send(range(MOST_TOKENS))
    TrafficSampler("m", "1", {"SHOAL_MONITOR": "x" * 500, "SHOAL_MONITOR_SHARE": "1"}).send([1])


def test_a_long_row_is_cut_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with bound(path) as receiver:
        TrafficSampler("m", "3", {"SHOAL_MONITOR": str(path)}).send([30_000] * 9000, [0] * 9000)
        sent = receiver.recv(1 << 16)
    row = json.loads(sent)
    assert (row["model"], row["version"], row["length"]) == ("m", 3, 9000)
    assert len(row["input_ids"]) == len(row["token_type_ids"]) == MOST_TOKENS
    assert len(sent) < 10_000


def test_a_socket_is_ours_alone_and_taken_over_from_the_dead(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    dead.bind(str(path))
    dead.close()
    with bound(path):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(ServerError, match="cannot be listened at"), bound(path):
            pass
    assert not path.exists()
    path.write_text("a file of somebody's")
    with pytest.raises(ServerError), bound(path):
        pass
    assert path.read_text() == "a file of somebody's"
