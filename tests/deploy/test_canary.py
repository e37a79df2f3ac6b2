"""What decides over a canary, on simulated requests; `make test-canary` has real ones."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from deploy.canary import rollout as canaries
from deploy.canary.guards import ALPHA, Answered, Guard, Judge
from deploy.canary.rollout import Rollout
from deploy.canary.split import Folder, Split
from deploy.canary.statistics import Blocks, Times, WorseRate, rate_interval
from shoal.errors import ShoalError, UsageError

ROLLOUTS = int(os.environ.get("SHOAL_ROLLOUTS", "40"))  # make test-canary has 1,000
REQUESTS = int(os.environ.get("SHOAL_REQUESTS", "2000"))
GUARDS = ["errors<=1%", "p99<=1.25x"]


def judged(
    seed: int, share: float, requests: int, *, failing: tuple[float, float], slower: float = 1.0
) -> tuple[Judge, int | None]:
    """A judge who saw requests, and after how many of the canary's he called it worse."""
    random = np.random.default_rng(seed)
    judge = Judge([Guard.parse(each) for each in GUARDS])
    new = random.random(requests) < share
    failed = random.random(requests) < np.where(new, failing[1], failing[0])
    seconds = random.lognormal(-3.0, 0.5, requests) * np.where(new, slower, 1.0)
    needed = math.log(len(GUARDS) / ALPHA)
    for each in zip(new.tolist(), failed.tolist(), seconds.tolist(), strict=True):
        judge.add(Answered(*each))
        if each[0] and max(test.evidence for test in judge.tests) >= needed and judge.verdict == "worse":
            return judge, judge.new.number
    return judge, None


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_of_versions_that_are_alike_at_most_one_percent_are_taken_back(share: float) -> None:
    found = [judged(seed, share, REQUESTS, failing=(0.01, 0.01))[1] for seed in range(ROLLOUTS)]
    assert sum(each is not None for each in found) <= max(1, ROLLOUTS // 100)


@pytest.mark.parametrize(("share", "of_twenty"), [(0.05, 20), (0.2, 20), (0.5, 17)])
def test_5_percent_of_errors_are_found_within_400_requests(share: float, of_twenty: int) -> None:
    found = [judged(seed, share, int(400 / share), failing=(0.001, 0.05))[1] for seed in range(20)]
    assert sum(each is not None for each in found) >= of_twenty


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_version_that_takes_twice_as_long_is_found_within_1000_requests(share: float) -> None:
    for seed in range(10):
        _, found = judged(seed, share, int(1000 / share), failing=(0.0, 0.0), slower=2.0)
        assert found is not None


def test_a_version_that_is_alike_is_good_after_some_thousand_requests() -> None:
    judge, _ = judged(1, 0.5, 1000, failing=(0.0, 0.0))
    assert judge.verdict == "open"
    judge, _ = judged(1, 0.5, 20_000, failing=(0.0, 0.0))
    assert judge.verdict == "good"


def test_a_version_within_what_is_allowed_is_not_called_worse() -> None:
    for seed in range(10):
        assert judged(seed, 0.5, 6000, failing=(0.0, 0.0), slower=1.2)[1] is None


def test_without_requests_or_with_few_nothing_is_good() -> None:
    judge = Judge([Guard.parse(each) for each in GUARDS])
    assert judge.verdict == "open"
    for _ in range(10):
        judge.add(Answered(True, False, 0.01))
    assert judge.verdict == "open"


def test_where_every_request_fails_it_is_worse_without_a_single_time() -> None:
    judge = Judge([Guard.parse(each) for each in GUARDS])
    for _ in range(40):
        judge.add(Answered(False, False, 0.01))
        judge.add(Answered(True, True, None))
    assert judge.verdict == "worse"


def test_the_evidence_of_a_block_by_hand() -> None:
    test = WorseRate()
    test.add(True, 0, 1)
    # What is usual is 0.05 before anything is known, and the new version may be worse by each of five steps.
    expected = 0.0
    for more in (0.01, 0.03, 0.1, 0.3, 0.8):
        worse = 0.05 + 0.95 * more
        alike = (0.05 + worse) / 2
        expected += worse / alike * 0.95 / (1.0 - alike) / 5
    # Half of the weight is on products that begin later, which are 1 until then.
    assert test.evidence == pytest.approx(math.log(expected / 2 + 0.5))


def test_the_e_value_is_one_on_average_where_versions_are_alike() -> None:
    random = np.random.default_rng(3)
    values = []
    for _ in range(4000):
        test, blocks = WorseRate(), Blocks()
        for new in (random.random(20) < 0.25).tolist():
            for value, old in blocks.add(float(random.random() < 0.3), new=new):
                test.add(value > 0, sum(each > 0 for each in old), len(old))
        values.append(math.exp(test.evidence))
    assert np.mean(values) <= 1.0 + 3 * np.std(values) / math.sqrt(len(values))


def test_blocks_are_of_requests_that_come_together() -> None:
    blocks = Blocks()
    assert blocks.add(1.0, new=False) == blocks.add(2.0, new=False) == []
    assert blocks.add(3.0, new=True) == [(3.0, [1.0, 2.0])]
    assert blocks.add(4.0, new=True) == blocks.add(5.0, new=True) == []
    assert blocks.add(6.0, new=False) == [(4.0, [6.0])]
    assert blocks.add(7.0, new=False) == [(5.0, [7.0])]
    for number in range(100):
        assert blocks.add(number, new=True) == []
    assert blocks.waiting_new[0] == 80.0  # older ones would be compared with what comes much later
    for number in range(5000):
        blocks.add(number, new=False)
    assert len(blocks.waiting_old) == 2000 and not blocks.waiting_new


@pytest.mark.parametrize("share", [0.02, 0.3, 0.4])
def test_a_fault_of_callers_after_an_hour_is_in_both_shares(share: float) -> None:
    """Requests of both versions begin to fail alike: nothing was learned from the time before."""
    taken_back = 0
    for seed in range(10):
        random = np.random.default_rng(seed)
        judge = Judge([Guard.parse("errors")])
        new = random.random(6000) < share
        failed = (random.random(6000) < 0.2) & (np.arange(6000) >= 3000)
        for each in zip(new.tolist(), failed.tolist(), strict=True):
            judge.add(Answered(*each, None))
        taken_back += judge.verdict == "worse"
    assert taken_back <= 1


@pytest.mark.parametrize("share", [0.3, 0.4, 0.5])
def test_a_version_that_begins_to_fail_late_is_found_soon(share: float) -> None:
    random = np.random.default_rng(2)
    judge = Judge([Guard.parse("errors")])
    late = 0
    for number in range(42_000):
        new, begun = bool(random.random() < share), number >= 40_000
        judge.add(Answered(new, new and begun, None))
        late += new and begun
        if begun and judge.verdict == "worse":
            break
    assert judge.verdict == "worse"
    assert late < 100  # after ten thousand or more that went well


def test_a_slow_mode_within_what_is_allowed_is_not_called_worse() -> None:
    """Times with two modes, whose p99 is in one of them before it is in the other."""
    called = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        judge = Judge([Guard.parse("p99<=1.25x")])
        new = random.random(4000) < 0.5
        slow = random.random(4000) < np.where(new, 0.05, 0.02)
        seconds = np.where(slow, np.where(new, 0.11, 0.1), 0.01) * random.lognormal(0.0, 0.02, 4000)
        for is_new, took in zip(new.tolist(), seconds.tolist(), strict=True):
            judge.add(Answered(is_new, False, took))
            if is_new and judge.verdict == "worse":
                called += 1
                break
    assert called <= 2


def test_a_version_within_what_is_allowed_of_errors_is_not_called_worse() -> None:
    random = np.random.default_rng(1)
    judge = Judge([Guard.parse("errors<=5%")])
    for _ in range(6000):
        new = bool(random.random() < 0.5)
        judge.add(Answered(new, bool(random.random() < (0.03 if new else 0.01)), None))
    assert judge.verdict == "good"


def test_a_worse_version_is_not_called_good() -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        judge = Judge([Guard.parse("errors"), Guard.parse("p50<=1.25x")])
        for number in range(3000):
            new = bool(random.random() < 0.5)
            failed = bool(random.random() < (0.03 if new else 0.01))
            judge.add(Answered(new, failed, float(random.lognormal(-3.0, 0.5))))
            assert number % 50 or judge.verdict != "good"


def test_intervals_hold_at_all_times_at_once() -> None:
    random = np.random.default_rng(5)
    missed_rate = missed_quantile = 0
    quantile = stats.lognorm(0.5).ppf(0.9)
    for _ in range(100):
        times, bad, rate_held, quantile_held = Times(), 0, True, True
        for number, (value, wrong) in enumerate(
            zip(random.lognormal(0.0, 0.5, 800), random.random(800) < 0.1, strict=True), 1
        ):
            bad += bool(wrong)
            times.add(float(value))
            if number % 20 == 0:
                low, high = rate_interval(bad, number, 0.05)
                rate_held &= low <= 0.1 <= high
                low, high = times.interval(0.9, 0.05)
                quantile_held &= low / 1.01 <= quantile <= high * 1.01
        missed_rate += not rate_held
        missed_quantile += not quantile_held
    # One in twenty at most; sixteen or more of a hundred would be a matter of one in 100,000.
    assert missed_rate <= 15
    assert missed_quantile <= 15


def test_an_interval_of_a_rate_becomes_that_of_a_fixed_sample_but_wider() -> None:
    low, high = rate_interval(50, 1000, 0.05)
    exact = stats.binomtest(50, 1000).proportion_ci(0.95)
    assert low < exact.low < 0.05 < exact.high < high
    assert high - low < 2.2 * (exact.high - exact.low)
    assert rate_interval(0, 0, 0.05) == (0.0, 1.0)
    assert rate_interval(0, 100, 0.05)[0] == 0.0
    assert rate_interval(100, 100, 0.05)[1] == 1.0


def test_times_are_those_of_numpy_to_one_percent() -> None:
    values = np.random.default_rng(0).lognormal(-3, 1, 5000)
    times = Times()
    for value in values:
        times.add(float(value))
    for share in (0.5, 0.9, 0.99):
        assert times.quantile(share) == pytest.approx(np.quantile(values, share), rel=0.02)


@pytest.mark.parametrize(
    ("given", "guard"),
    [
        ("errors", Guard(None, 0.01)),
        ("errors<=0.5%", Guard(None, 0.005)),
        ("p99", Guard(0.99, 1.25, "time")),
        ("p99.9<=2x", Guard(0.999, 2.0, "time")),
        ("p99.99<=100x", Guard(0.9999, 100.0, "time")),
        ("errors<=0.01%", Guard(None, 0.0001)),
    ],
)
def test_a_guard_is_read_and_written(given: str, guard: Guard) -> None:
    read = Guard.parse(given)
    assert (read.share, read.most) == (pytest.approx(guard.share), pytest.approx(guard.most))
    assert Guard.parse(str(read)) == read


@pytest.mark.parametrize(
    "given",
    [
        *("", "error", "errors<=0%", "errors<=100%", "errors<=0.00001%", "errors<=99%"),
        *("p0", "p100", "p-1", "p99.999", "p99<80ms", "p99<=1x", "p99<=0.5x", "p99<=1000000x"),
    ],
)
def test_what_is_no_guard_is_refused(given: str) -> None:
    with pytest.raises(UsageError):
        Guard.parse(given)


@pytest.mark.parametrize(
    ("share", "key"), [(0.0, ""), (0.51, ""), (math.nan, ""), (0.1, "a b"), (0.1, 'x"'), (0.1, "x\n")]
)
def test_what_cannot_be_split_is_refused(share: float, key: str) -> None:
    with pytest.raises(UsageError):
        Split("a", "m", share, key)


def test_a_judge_goes_on_after_a_kill() -> None:
    judge, _ = judged(4, 0.2, 3000, failing=(0.01, 0.01))
    again = Judge.from_dict(json.loads(json.dumps(judge.to_dict())))
    assert again.rows() == judge.rows()
    for each in (judge, again):
        for _ in range(200):
            each.add(Answered(True, True, None))
            for _ in range(4):
                each.add(Answered(False, False, 0.05))
    assert again.rows() == judge.rows()
    assert again.verdict == "worse"


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
