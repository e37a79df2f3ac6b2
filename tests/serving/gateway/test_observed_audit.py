"""The audit log as a file: on a full disk, moved away by logrotate, and slower than the requests."""

from __future__ import annotations

import json
import logging
import os
import stat
import threading
from collections import Counter
from pathlib import Path

import pytest

from serving.gateway import audit
from serving.gateway.audit import Audit, line_of
from serving.gateway.errors import ApiError
from serving.gateway.record import MOST_TEXT, Record, Texts, begun
from shoal.errors import UsageError

LOST: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _nothing_lost() -> None:
    LOST.clear()


def lose(reason: str) -> None:
    LOST[reason] += 1


def lines(path: Path) -> list[str]:
    return [json.loads(line)["request_id"] for line in path.read_text().splitlines()]


def test_a_file_is_written_on_and_belongs_to_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"request_id": "before"}\n')
    path.chmod(0o644)
    made = Audit(str(path), lose)
    made.end(Record("one"))
    made.close()
    assert lines(path) == ["before", "one"] and not LOST
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_was_moved_is_made_anew(tmp_path: Path) -> None:
    path, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    written = threading.Event()
    made = Audit(str(path), lose)
    write, made._write = made._write, lambda line: (write(line), written.set())  # type: ignore[method-assign]
    made.end(Record("one"))
    assert written.wait(10)
    path.rename(old)
    made.end(Record("two"))
    made.close()
    assert (lines(old), lines(path)) == (["one"], ["two"]) and not LOST
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_full_disk_is_told_once_and_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = Audit("/dev/full", lose)
        for number in range(5):
            made.end(Record(str(number)))
        made.close()
    assert LOST == {"unwritable": 5}
    assert [record.getMessage() for record in caplog.records] == [
        "lines of the audit log /dev/full are lost: No space left on device"
    ]


def test_a_line_that_was_cut_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    real, calls = os.write, Counter[str]()

    def write(descriptor: int, content: bytes) -> int:
        calls["write"] += 1
        if calls["write"] == 1:
            return real(descriptor, content[:10])
        if calls["write"] == 2:
            raise OSError(28, "No space left on device")
        return real(descriptor, content)

    monkeypatch.setattr(audit.os, "write", write)
    made = Audit(str(path), lose)
    for name in ("one", "two", "three"):
        made.end(Record(name))
    made.close()
    cut, *whole = path.read_text().splitlines()
    assert len(cut) == 10 and [json.loads(line)["request_id"] for line in whole] == ["two", "three"]
    assert LOST == {"unwritable": 1}


def test_what_comes_too_fast_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MOST_WAITING", 2)
    path = tmp_path / "audit.jsonl"
    begins, goes_on = threading.Event(), threading.Event()
    made = Audit(str(path), lose)
    write = made._write

    def slow(line: bytes) -> None:
        begins.set()
        assert goes_on.wait(10)
        write(line)

    made._write = slow  # type: ignore[method-assign]
    made.end(Record("0"))
    assert begins.wait(10)
    for number in range(1, 6):
        made.end(Record(str(number)))
    assert LOST == {"full": 3}
    goes_on.set()
    made.close()
    assert lines(path) == ["0", "1", "2"]


def test_a_file_that_cannot_be_opened_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file or directory"):
        Audit(str(tmp_path / "none" / "audit.jsonl"), lose)


def test_texts_are_redacted_and_bounded() -> None:
    record = Record(texts=Texts())
    record.took(b'{"messages": [{"content": "my card is 4111 1111 1111 1111"}], "at": "j\\u0040x.example"}')
    # An address that is split over the parts of a stream is one in the answer.
    for part in ("write to jane", "@exa", "mple.org", " soon"):
        record.part(0, part, 1, "")
    record.part(1, "x" * (MOST_TEXT + 1), 1, "length")
    line = line_of(record)
    assert line["request"] == {"messages": [{"content": "my card is [card]"}], "at": "[e-mail]"}
    assert line["answer"] == ["write to [e-mail] soon", None]
    long = Record(texts=Texts())
    long.took(b'"' + b"x" * MOST_TEXT + b'"')
    assert line_of(long)["request"] is None and line_of(long)["bytes_in"] == MOST_TEXT + 2
    long.took(b"[" * 5000)
    assert line_of(long)["request"] is None
    assert not {"request", "answer"} & line_of(Record()).keys()


def test_a_failure_in_a_stream_is_the_status() -> None:
    record = begun("id", "POST", "/v1/chat/completions", {"x-stainless-retry-count": "x"}, texts=False)
    record.sent({"type": "http.response.start", "status": 200})
    record.sent({"type": "http.response.body", "body": b"12345"})
    record.failed(ApiError(504, "late", code="timeout"))
    record.sent({"type": "http.response.body", "body": b"12"})
    line = line_of(record)
    assert (line["status"], line["error"], line["bytes_out"], record.retries) == (504, "timeout", 7, 0)
