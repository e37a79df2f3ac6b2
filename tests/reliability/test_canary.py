"""`shoal canary` behind a real Envoy, with real servers and NVIDIA's client: `make test-canary`.

`SHOAL_ROUNDS` is how often a version that is no worse is tried.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.reliability import canaries, report
from tests.reliability.canaries import ALIKE, FAILING, MODEL, SAME, SLOW, Callers, Scene

pytestmark = pytest.mark.faults
ROUNDS = int(os.environ.get("SHOAL_ROUNDS", "20"))
HALF = ("--share", "50%", "--max", "5m")
OPEN = "errors<=0.01%"  # what takes some 100,000 requests to be known
FAULT = "a fault of this version"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("canary")
    with canaries.scene(folder, canaries.make(folder)) as made:
        yield made


@pytest.fixture
def callers(scene: Scene) -> Iterator[Callers]:
    made = Callers(scene.grpc)
    yield made
    made.close()


def served(scene: Scene) -> str:
    return (scene.repository / MODEL / "config.pbtxt").read_text()


def test_a_version_with_5_percent_errors_is_taken_back_within_400_requests(
    scene: Scene, callers: Callers
) -> None:
    code, told = scene.canary(FAILING, *HALF, "--guard", "errors", "--guard", "p99")
    callers.close()
    report.write("canary-errors", told)
    assert (code, told["phase"]) == (1, "rolled back")
    assert told["reason"] == "worse: errors<=1%"
    assert told["requests"]["new"]["number"] <= 400
    assert "versions: 1 " in served(scene)
    # Its own faults reached callers, and nothing else did, while it was taken back, too.
    assert set(callers.failures) <= {FAULT}
    assert callers.answers[1]


def test_a_version_that_takes_twice_as_long_is_taken_back_within_1000_requests(
    scene: Scene, callers: Callers
) -> None:
    code, told = scene.canary(SLOW, *HALF)
    callers.close()
    report.write("canary-slow", told)
    assert (code, told["phase"]) == (1, "rolled back")
    assert told["reason"] == "worse: p99<=1.25x"
    assert told["requests"]["new"]["number"] <= 1000
    assert not callers.failures


def test_one_user_gets_one_version(scene: Scene, callers: Callers) -> None:
    process = scene.begin(ALIKE, *HALF, "--key", "x-user", "--guard", OPEN)
    scene.wait(200)
    callers.of_user.clear()
    seen = scene.wait(scene.status()["requests"]["new"]["number"] + 400)
    versions = {user: set(answered) for user, answered in callers.of_user.items()}
    assert scene.rollout("abort").returncode == 0
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert '"rolled back"' in text
    assert all(len(answered) == 1 for answered in versions.values()), versions
    assert {1} in versions.values()
    assert {ALIKE} in versions.values()
    assert seen["phase"] == "running"
    assert not callers.failures


def test_a_shadow_is_asked_for_copies_and_no_caller_gets_its_answers(scene: Scene, callers: Callers) -> None:
    guards = ("--guard", "errors<=5%", "--guard", "agreement>=0.95")
    code, told = scene.canary(SAME, "--share", "20%", "--max", "5m", *guards, kind="shadow")
    report.write("shadow-same", told)
    assert (code, told["phase"], told["reason"]) == (0, "good", "every guard is met")
    assert told["copies"]["differed"] == 0 < told["copies"]["compared"]
    code, told = scene.canary(ALIKE, "--share", "20%", "--max", "5m", *guards, kind="shadow")
    report.write("shadow-other", told)
    callers.close()
    assert (code, told["phase"], told["reason"]) == (1, "worse", "worse: agreement>=0.95")
    assert told["copies"]["differed"] == told["copies"]["compared"] > 0
    assert set(callers.answers) == {1}
    assert not callers.failures
    assert "versions: 1 " in served(scene)
    [page] = scene.steering.glob(f"reports/{MODEL}-{ALIKE}-{told['split']['rollout']}.html")
    assert "agreement&gt;=0.95" in page.read_text()
    assert scene.rollout("status").returncode == 0


def test_a_canary_whose_answers_differ_is_taken_back(scene: Scene, callers: Callers) -> None:
    code, told = scene.canary(ALIKE, *HALF, "--guard", "errors", "--guard", "agreement>=0.9")
    callers.close()
    assert (code, told["reason"]) == (1, "worse: agreement>=0.9")
    assert not callers.failures


def test_a_shadow_without_requests_is_inconclusive(scene: Scene) -> None:
    code, told = scene.canary(SAME, "--max", "10s", kind="shadow")
    assert (code, told["phase"]) == (1, "inconclusive")


def test_no_request_never_means_good(scene: Scene) -> None:
    code, told = scene.canary(ALIKE, "--max", "10s")
    assert (code, told["phase"]) == (1, "inconclusive")
    assert told["reason"] == "no request reached it in the time it had"
    assert "versions: 1 " in served(scene)


def test_a_canary_whose_server_is_killed_fails_no_request(scene: Scene, callers: Callers) -> None:
    process = scene.begin(ALIKE, *HALF, "--guard", OPEN)
    scene.wait(200)
    servers = [
        one for one in psutil.Process(process.pid).children(recursive=True) if "tritonserver" in one.name()
    ]
    assert servers
    for one in servers:
        one.kill()
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the canary's server has ended" in text
    callers.close()
    assert not callers.failures


def test_after_a_kill_nobody_is_refused_and_the_same_command_goes_on(scene: Scene, callers: Callers) -> None:
    command = (ALIKE, *HALF, "--guard", OPEN)
    process = scene.begin(*command)
    before = scene.wait(300)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    begun = time.monotonic()
    while True:  # nobody watches, so nobody gets it, once its server has ended
        callers.answers.clear()
        time.sleep(1)
        if set(callers.answers) == {1}:
            break
        assert time.monotonic() - begun < 60
    print(f"a canary that nobody watches gets no request after {time.monotonic() - begun:.0f} s")
    again = scene.begin(*command)
    seen = scene.wait(before["requests"]["new"]["number"] + 200)
    assert seen["split"] == before["split"]
    again.send_signal(signal.SIGINT)
    again.wait(60)
    assert scene.status()["phase"] == "running"
    assert scene.rollout("abort").returncode == 0
    assert scene.status()["phase"] == "rolled back"
    callers.close()
    assert not callers.failures


def test_a_version_that_is_no_worse_is_promoted_and_never_taken_back(scene: Scene, callers: Callers) -> None:
    ended = []
    for number in range(ROUNDS):
        version = ALIKE if number % 2 == 0 else 1
        code, told = scene.canary(version, *HALF)
        ended.append((told["phase"], told["reason"], told["requests"]["new"]["number"]))
        assert (code == 0) == (told["phase"] == "promoted")
        if code:
            break
        assert f"versions: {version} " in served(scene)
    callers.close()
    report.write("canary-alike", {"ended": ended})
    assert [phase for phase, *_ in ended] == ["promoted"] * ROUNDS, ended
    assert not callers.failures
