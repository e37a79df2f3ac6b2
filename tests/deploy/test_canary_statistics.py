"""What guards make of simulated requests; `make test-canary` has more of them, and real ones."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
from scipy import stats

from deploy.canary.guards import ALPHA, Answered, Guard, Judge
from deploy.canary.statistics import Blocks, Times, WorseRate, rate_interval
from shoal.errors import UsageError

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
