"""A canary on disk, from its first request to its end; `make test-canary` has a real one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.canary import rollout as canaries
from deploy.canary.guards import Answered, Guard, Judge
from deploy.canary.rollout import Rollout
from deploy.canary.split import Folder, Split
from shoal.errors import ShoalError, UsageError


@pytest.mark.parametrize(
    ("share", "key"), [(0.0, ""), (0.51, ""), (math.nan, ""), (0.1, "a b"), (0.1, 'x"'), (0.1, "x\n")]
)
def test_what_cannot_be_split_is_refused(share: float, key: str) -> None:
    with pytest.raises(UsageError):
        Split("a", "m", share, key)


def line(**more: Any) -> str:
    entry = {
        "of": "a new",
        "path": "/v2/models/m/infer",
        "host": "127.0.0.1:8010",
        "status": 200,
        "grpc": None,
    }
    return json.dumps({**entry, "us": 5000, "flags": "-", **more})


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, Answered(True, False, 0.005)),
        ({"of": "a old", "host": "10.0.0.1:8000"}, Answered(False, False, 0.005)),
        ({"host": "10.0.0.1:8000"}, Answered(True, True, 0.005)),  # another one had to answer
        ({"status": 500}, Answered(True, True, 0.005)),
        ({"status": 400}, Answered(True, True, 0.005)),
        ({"status": 0, "flags": "DC"}, Answered(True, True, 0.005)),
        ({"path": "/inference.GRPCInferenceService/ModelInfer", "grpc": 0}, Answered(True, False, 0.005)),
        ({"path": "/inference.GRPCInferenceService/ModelInfer", "grpc": 13}, Answered(True, True, 0.005)),
        # Cut off after an answer has begun.
        ({"flags": "UC"}, Answered(True, True, 0.005)),
        ({"flags": "DC"}, Answered(True, True, 0.005)),
        ({"flags": "X,DR"}, Answered(True, True, 0.005)),
        ({"path": "/inference.GRPCInferenceService/ModelInfer"}, Answered(True, True, 0.005)),
        # A stream has its errors inside, so it says nothing unless it broke.
        ({"path": "/inference.GRPCInferenceService/ModelStreamInfer", "grpc": 0}, None),
        (
            {"path": "/inference.GRPCInferenceService/ModelStreamInfer", "grpc": 14},
            Answered(True, True, None),
        ),
        ({"path": "/v2/models/m/generate_stream?x=1"}, None),
        ({"path": "/v2/models/m/generate_stream", "flags": "UC"}, Answered(True, True, None)),
        ({"path": "/v2/models/m/generate"}, Answered(True, False, 0.005)),
        ({"path": "/v2/models/m/versions/3/infer"}, None),  # which is not split
        ({"us": None}, Answered(True, False, None)),
        ({"path": "/v2/models/other/infer"}, None),
        ({"path": "/v2/models/m"}, None),
        ({"path": "/inference.GRPCInferenceService/ModelMetadata", "grpc": 0}, None),
        ({"of": "b new"}, None),
        ({"of": "a newer"}, None),
    ],
)
def test_a_line_of_envoys_log(tmp_path: Path, entry: dict[str, Any], expected: Answered | None) -> None:
    folder = Folder(tmp_path)
    folder.log.write_text(line(**entry) + "\n")
    found, _ = folder.answered("a", "m", 0)
    assert found == ([] if expected is None else [expected])


def test_a_line_that_is_half_written_is_read_later_and_garbage_is_not(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.answered("a", "m", 0) == ([], 0)
    folder.log.write_bytes(f"{line()}\n\xff\n[]\n{{\n".encode("latin-1") + line().encode()[:20])
    found, position = folder.answered("a", "m", 0)
    assert len(found) == 1
    with folder.log.open("ab") as log:
        log.write(line().encode()[20:] + b"\n")
    found, position = folder.answered("a", "m", position)
    assert len(found) == 1
    assert folder.answered("a", "m", position) == ([], position)


def new(tmp_path: Path, seconds: float = 60.0) -> tuple[Folder, Rollout]:
    folder = Folder(tmp_path / "canary")
    canaries.create_folder(folder)
    judge = Judge([Guard.parse("errors")])
    return folder, Rollout(Split("a", "m", 0.5), "m", 3, 2, seconds, judge)


def ran(folder: Folder, rollout: Rollout, **more: Any) -> Rollout:
    given: dict[str, Any] = {"problem": lambda: None, "promote": lambda: None} | more
    with canaries.watching(folder):
        return canaries.run(folder, rollout, **given)


def routes(folder: Folder) -> str:
    return folder.routes("grpc").read_text() + folder.routes("http").read_text()


def test_a_canary_without_requests_is_inconclusive_and_gets_none(tmp_path: Path) -> None:
    folder, rollout = new(tmp_path, seconds=0.6)
    ended = ran(folder, rollout)
    assert ended.phase == "inconclusive"
    assert "canary-grpc" not in routes(folder)
    known = canaries.read(folder)
    assert known is not None
    assert known.phase == "inconclusive"


def test_a_version_that_cannot_be_promoted_is_taken_back(tmp_path: Path) -> None:
    folder, rollout = new(tmp_path)
    promoted: list[str] = []

    def refuse() -> None:
        promoted.append(routes(folder))
        raise ShoalError("it does not load")

    canaries.wish(folder, "promote")
    ended = ran(folder, rollout, promote=refuse, tell=lambda now: canaries.wish(folder, "promote"))
    assert ended.phase == "rolled back"
    assert "it does not load" in ended.reason
    assert "canary-grpc" in promoted[0]  # it had its share until it was served to all
    assert "canary-grpc" not in routes(folder)


def test_a_promotion_is_known_before_it_is_made(tmp_path: Path) -> None:
    """Whoever is killed meanwhile must know that the version may be served."""
    folder, rollout = new(tmp_path)

    def killed() -> None:
        known = canaries.read(folder)
        assert known is not None and (known.phase, known.reason) == ("promoting", "shoal rollout promote")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ran(folder, rollout, promote=killed, tell=lambda now: canaries.wish(folder, "promote"))
    known = canaries.read(folder)
    assert known is not None and known.phase == "promoting" and not known.ended


def test_an_abort_stays_one_and_a_paused_canary_is_not_promoted(tmp_path: Path) -> None:
    folder, rollout = new(tmp_path, seconds=2.0)
    canaries.wish(folder, "abort")
    canaries.wish(folder, "pause")
    assert canaries.wished(folder) == "abort"
    assert canaries.wished(folder) is None
    rollout.judge.guards = [Guard.parse("agreement>=0.9")]
    for _ in range(500):
        rollout.judge.compare(agree=True)
    assert rollout.judge.verdict == "good"
    paused: list[str] = []

    def tell(now: Rollout) -> None:
        paused.append(now.phase)
        if len(paused) == 4:
            canaries.wish(folder, "abort")

    assert ran(folder, replace(rollout, phase="paused"), tell=tell).phase == "rolled back"
    assert set(paused[:-1]) == {"paused"}


def test_on_a_full_disk_no_request_stays_with_the_canary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = new(tmp_path)
    folder.send(Split("a", "m", 0.5))
    assert "canary-grpc" in routes(folder)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deploy.canary.split.write_atomic", full)
    for _ in range(2):
        folder.send(None)
        assert "canary-grpc" not in routes(folder)
    assert sorted(path.name for path in folder.routes("grpc").parent.iterdir()) == ["grpc.yaml", "http.yaml"]
    with pytest.raises(OSError, match="No space"):
        folder.send(Split("a", "m", 0.5))


def test_what_was_wished_of_an_earlier_canary_does_not_count(tmp_path: Path) -> None:
    folder, rollout = new(tmp_path, seconds=0.6)
    canaries.wish(folder, "promote")
    assert ran(folder, rollout).phase == "inconclusive"


def test_a_paused_canary_gets_nothing_and_its_time_stands_still(tmp_path: Path) -> None:
    folder, rollout = new(tmp_path, seconds=0.9)
    seen: list[tuple[str, bool, float]] = []

    def tell(now: Rollout) -> None:
        seen.append((now.phase, "canary-grpc" in routes(folder), now.spent))
        if len(seen) == 1:
            canaries.wish(folder, "pause")
        if len(seen) == 5:
            canaries.wish(folder, "resume")

    assert ran(folder, rollout, tell=tell).phase == "inconclusive"
    paused = [each for each in seen if each[0] == "paused"]
    assert len(paused) == 4
    assert not any(split for _, split, _ in paused)
    assert len({spent for _, _, spent in paused}) == 1


def test_a_dead_server_ends_it(tmp_path: Path) -> None:
    folder, rollout = new(tmp_path)
    assert ran(folder, rollout, problem=lambda: "it has ended").reason == "it has ended"


def test_an_error_leaves_no_request_with_the_canary(tmp_path: Path) -> None:
    folder, rollout = new(tmp_path)

    def fail(now: Rollout) -> None:
        assert "canary-grpc" in routes(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ran(folder, rollout, tell=fail)
    assert "canary-grpc" not in routes(folder)
    known = canaries.read(folder)
    assert known is not None
    assert known.phase == "running"


def test_two_do_not_decide_over_one_canary(tmp_path: Path) -> None:
    folder, _ = new(tmp_path)
    assert not canaries.is_watched(folder)
    with canaries.watching(folder):
        assert canaries.is_watched(folder)
        with pytest.raises(UsageError, match="runs already"), canaries.watching(folder):
            pass


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"split": 1}'])
def test_a_state_that_cannot_be_understood_is_named(tmp_path: Path, text: str) -> None:
    folder, _ = new(tmp_path)
    (folder.folder / canaries.STATE).write_text(text)
    with pytest.raises(ShoalError, match="cannot be understood"):
        canaries.read(folder)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder of a canary"):
        canaries.open_folder(tmp_path)
