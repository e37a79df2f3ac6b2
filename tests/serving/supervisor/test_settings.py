"""The parts of the supervisor: settings, keys, logs, and what it takes for dead."""

from __future__ import annotations

import io
import json
import os
import threading
import time
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

import pytest

from serving import probe
from serving.supervisor import metrics
from serving.supervisor.logs import entry
from serving.supervisor.metrics import Metrics
from serving.supervisor.readiness import Readiness
from serving.supervisor.rollout import Rollout
from serving.supervisor.settings import CLOSED, CONTROL_HEADER, SupervisorSettings, read_key
from shoal.errors import UsageError


def test_a_supervisor_that_hangs_says_so_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a disk that does not answer, say: nobody looks after the server then."""
    made = Metrics("127.0.0.1", 0)
    try:
        made.ready(None)
        assert made.problem is None
        now = time.monotonic()
        monkeypatch.setattr(metrics.time, "monotonic", lambda: now + 60)
        assert made.problem is not None and "has not looked at its server for 60 s" in made.problem
        made.ready("minilm did not answer")
        assert made.problem == "minilm did not answer"
    finally:
        made.close()


def test_settings_become_arguments(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").touch()
    settings = SupervisorSettings(
        tmp_path,
        certificate=tmp_path / "cert.pem",
        private_key=tmp_path / "cert.pem",
        cache_mb=64,
        traces="http://otel:4318/v1/traces",
    )
    made = settings.arguments("abc123", "own456")
    closed = ",".join(CLOSED)
    assert f"--http-restricted-api={closed}:shoal-admin-key=abc123" in made
    assert f"--grpc-restricted-protocol={closed}:shoal-admin-key=abc123" in made
    assert f"--http-restricted-api=model-repository:{CONTROL_HEADER}=own456" in made
    assert f"--grpc-restricted-protocol=model-repository:{CONTROL_HEADER}=own456" in made
    assert {"--model-control-mode=explicit", "--disable-auto-complete-config"} <= set(made)
    assert "--cache-config=local,size=67108864" in made
    assert "--trace-config=opentelemetry,url=http://otel:4318/v1/traces" in made
    plain = SupervisorSettings(tmp_path).arguments("", "own456")
    assert not [part for part in plain if "admin" in part or "cache" in part]
    assert f"--http-restricted-api=shared-memory,trace,logging:{CONTROL_HEADER}=own456" in plain
    assert f"--grpc-restricted-protocol=shared-memory,trace,logging:{CONTROL_HEADER}=own456" in plain
    assert len([part for part in plain if "restricted" in part]) == 4  # model control is never open


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"certificate": Path("a")}, "a certificate and its private key"),
        ({"client_authority": Path("a")}, "only over TLS"),
        ({"certificate": Path("/no"), "private_key": Path("/no")}, "/no cannot be read"),
        ({"cache_mb": -1}, "must be positive"),
        ({"trace_rate": 0}, "must be positive"),
    ],
)
def test_settings_that_cannot_work(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SupervisorSettings(Path(), **values)  # type: ignore[arg-type]


def test_the_admin_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key"
    key = read_key(path)
    assert len(key) == 64 and read_key(path) == key
    assert read_key(None) == ""
    path.write_text("two words")
    with pytest.raises(UsageError, match="letters and digits"):
        read_key(path)
    if os.geteuid():
        path.chmod(0)
        with pytest.raises(UsageError, match="neither read nor made"):
            read_key(path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            '2026-11-23T17:00:00Z I 71 server.cc:849] "ready"',
            {"time": "2026-11-23T17:00:00Z", "level": "info", "where": "server.cc:849", "message": "ready"},
        ),
        (
            '2026-11-23T17:00:00Z E 71 infer.cc:1] "[request id: r-17] too \\"long\\""',
            {
                "time": "2026-11-23T17:00:00Z",
                "level": "error",
                "where": "infer.cc:1",
                "message": 'too "long"',
                "request_id": "r-17",
            },
        ),
    ],
)
def test_lines_become_fields(line: str, expected: dict[str, str]) -> None:
    assert entry(line) == expected


def test_what_models_print_is_kept() -> None:
    made = entry("Traceback (most recent call last):")
    assert made["message"] == "Traceback (most recent call last):" and made["where"] == "model"


DEAD = "in ensemble 'a', Stub process 'a_0_0' is not healthy."


@pytest.mark.parametrize(
    ("answers", "dead"),
    [
        ([DEAD, DEAD], True),
        ([DEAD], False),
        ([DEAD, "Failed to increase the shared memory pool size", DEAD], False),
        (["Failed to increase the shared memory pool size"] * 9, False),
    ],
)
def test_what_triton_says_is_dead_is_dead(
    answers: list[str], dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once may be a request that met a version on its way out; whatever else it says, it may answer again."""
    left = iter(answers)
    asked = threading.Event()

    def send(request: urllib.request.Request, **_: object) -> bytes:
        if request.full_url.endswith("/stats"):
            return b'{"model_stats": []}'
        if (answer := next(left, None)) is None:
            asked.set()
            made.close()
            return b""
        body = io.BytesIO(json.dumps({"error": answer}).encode())
        raise urllib.error.HTTPError("http://here/v2/models/a/infer", 500, "", Message(), body)

    monkeypatch.setattr(probe, "send", send)
    monkeypatch.setattr("serving.supervisor.readiness.ASK_SECONDS", 0.01)
    made = Readiness({"a": probe.Question("a", "here/v2/models/a/infer", {}, {}, False)}, lambda *_: None)
    assert asked.wait(10)
    assert (made.dead is not None) is dead


def test_a_reason_is_one_line(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path / "state.json", time.monotonic)
    rollout.refuse(["m"], {}, "Triton stopped while starting:\n  one\n  " + "two " * 500)
    reason = rollout.reason("m")
    assert reason.startswith("Triton stopped while starting: one two") and "\n" not in reason
    assert len(reason) == 500 and reason.endswith("...")
