"""`shoal tune`: the search on simulated services whose best setting is known, and how configs are written."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from loadtest.tuning import page, search, space
from loadtest.tuning.found import Judged
from loadtest.tuning.search import NothingMeets, Search
from loadtest.tuning.space import Knob, Setting, Space
from shoal import model_config
from shoal.errors import ServerError, ShoalError, UsageError
from shoal.manifest import Manifest

SECONDS = 8.0  # of a test in these simulations


def _manifest(version: int, configs: dict[str, str] | None = None, **evidence: Any) -> Manifest:
    return Manifest(
        model="m",
        network="m_encoder",
        version=version,
        precision="int8",
        source={},
        recipe={},
        files={f"m_encoder/{version}/model.onnx": str(version % 3)},  # 1 and 4 are alike
        configs=configs or {},
        onnx={},
        tools={},
        machine={},
        evidence={"proven": True, "min_cosine": 0.99, **evidence},
        created="2026",
    )


def _space(sizes: tuple[int, ...]) -> Space:
    knobs = tuple(Knob(f"k{n}", "", tuple(range(size)), 0, lambda *_: None) for n, size in enumerate(sizes))
    return Space("m", {1: _manifest(1)}, knobs)


class _Service:
    """Settings with known rates, tested with noise: a promise is kept at rates below the setting's own."""

    def __init__(self, rate: Callable[[Setting], float], noise: float, seed: int) -> None:
        self._rate, self._noise, self._chance = rate, noise, random.Random(seed)
        self.now = 0.0
        self.tests = 0

    def measure(self, setting: Setting, rate: float, number: int) -> Judged:
        self.now += SECONDS
        self.tests += 1
        own = self._rate(setting) * self._chance.lognormvariate(0, self._noise)
        return Judged(rate <= own, min(1.0, own / rate), {})

    def search(self, where: Space, minutes: float, journal: Path, seed: int = 0) -> Search:
        return Search(where, self.measure, 60 * minutes, journal, seed=seed, clock=lambda: self.now)


@pytest.mark.parametrize("seed", range(5))
def test_the_pick_is_near_the_best_of_a_grid(tmp_path: Path, seed: int) -> None:
    """96 settings; the best is 60 % better than the default, by two knobs that depend on each other."""
    where = _space((4, 3, 4, 2))

    def rate(setting: Setting) -> float:
        together = 1.35 if setting["k0"] == 2 and setting["k1"] >= 1 else 1.0
        return 100 * together * (1 + 0.06 * setting["k2"]) * (1.0 if setting["k3"] == 0 else 0.7)

    best = max(
        rate(dict(zip(("k0", "k1", "k2", "k3"), values, strict=True)))
        for values in itertools.product(range(4), range(3), range(4), range(2))
    )
    service = _Service(rate, 0.01, seed)
    found = service.search(where, 12, tmp_path / "journal.json", seed).run()
    assert found.winner is not None
    assert rate(found.winner) >= 0.95 * best
    # A race that has begun goes on when the time is over; then two candidates are confirmed at most.
    most = 12 * 60 * (1 - search.SHARE_TO_CONFIRM) / SECONDS + 12 + 2 * 2 * search.MOST_ROUNDS
    assert service.tests <= most


def test_twenty_searches_among_equal_settings_say_better_once_at_most(tmp_path: Path) -> None:
    won = 0
    for seed in range(20):
        service = _Service(lambda setting: 100.0, 0.04, seed)
        found = service.search(_space((4, 3, 3)), 10, tmp_path / f"{seed}.json", seed).run()
        won += found.winner is not None
    assert won <= 1


def test_noise_hides_a_small_gain_and_not_a_large_one(tmp_path: Path) -> None:
    for gain, wins in ((1.02, False), (1.5, True)):
        service = _Service(lambda setting, gain=gain: 100 * (gain if setting["k0"] == 1 else 1), 0.02, 3)  # type: ignore[misc]
        found = service.search(_space((2, 2)), 10, tmp_path / f"{gain}.json").run()
        assert (found.winner is not None) is wins


def test_a_setting_that_crashes_is_one_failed_try(tmp_path: Path) -> None:
    def rate(setting: Setting) -> float:
        if setting["k0"] == 2:
            raise ServerError("the server died")
        return 100.0 + 50 * setting["k0"]

    service = _Service(rate, 0.005, 0)
    said: list[str] = []
    made = Search(
        _space((3, 2)), service.measure, 600, tmp_path / "j.json", say=said.append, clock=lambda: service.now
    )
    found = made.run()
    assert found.winner is not None and found.winner["k0"] == 1
    crashed = [tried for tried in found.tried if tried.setting["k0"] == 2]
    assert crashed and all(tried.rate is None and tried.error == "the server died" for tried in crashed)
    assert any("failed: the server died" in line for line in said)


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    service = _Service(lambda setting: 100.0 + 40 * setting["k0"], 0.005, 0)
    journal = tmp_path / "journal.json"
    count = 0

    def interrupted(setting: Setting, rate: float, number: int) -> Judged:
        nonlocal count
        count += 1
        if count == 40:
            raise KeyboardInterrupt
        return service.measure(setting, rate, number)

    where = _space((3, 4, 4))
    with pytest.raises(KeyboardInterrupt):
        Search(where, interrupted, 1200, journal, clock=lambda: service.now).run()
    kept = json.loads(journal.read_text())
    assert len(kept["same"]) == 2 and kept["tried"]
    tests = service.tests
    found = service.search(where, 20, journal).run()
    assert found.same == kept["same"]
    assert [vars(tried) for tried in found.tried[: len(kept["tried"])]] == kept["tried"]
    assert found.winner is not None and found.winner["k0"] == 2
    done = service.tests
    assert done > tests
    again = service.search(where, 20, journal).run(again=False)
    assert service.tests == done and again.winner == found.winner and again.rate == found.rate
    with pytest.raises(UsageError, match="is of another search"):
        service.search(_space((3, 4, 5)), 20, journal).run()
    journal.write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        service.search(where, 20, journal).run()


def test_a_candidate_that_crashes_while_it_is_confirmed_has_lost(tmp_path: Path) -> None:
    service = _Service(lambda setting: 100.0 + 50 * setting["k0"], 0.005, 0)

    def measure(setting: Setting, rate: float, number: int) -> Judged:
        if len(made.found.tried) == 5 and setting["k0"] == 2:  # all but what is served now were tried
            raise ServerError("the server died")
        return service.measure(setting, rate, number)

    made = Search(_space((3, 2)), measure, 600, tmp_path / "j.json", clock=lambda: service.now)
    found = made.run()
    assert found.winner is None or found.winner["k0"] == 1
    assert any(tried.error == "the server died" for tried in found.tried)


def test_a_budget_that_is_too_short_says_so(tmp_path: Path) -> None:
    service = _Service(lambda setting: 100.0, 0.005, 0)
    with pytest.raises(ShoalError, match="the budget of 60 s is over before a setting was tried"):
        service.search(_space((3, 2)), 1, tmp_path / "j.json").run()
    kept = json.loads((tmp_path / "j.json").read_text())
    assert len(kept["same"]) == 2 and not kept["ended"]
    found = service.search(_space((3, 2)), 20, tmp_path / "j.json").run()
    assert found.same == kept["same"] and found.tried  # it went on from there


def test_another_promise_is_another_search(tmp_path: Path) -> None:
    service = _Service(lambda setting: 100.0 + 40 * setting["k0"], 0.005, 0)
    where, journal = _space((3, 2)), tmp_path / "j.json"
    Search(where, service.measure, 900, journal, about={"slo": "p99=500ms"}, clock=lambda: service.now).run()
    other = Search(where, service.measure, 900, journal, about={"slo": "p99=20ms"}, clock=lambda: service.now)
    with pytest.raises(UsageError, match="is of another search"):
        other.run(again=False)


def test_the_rate_that_is_told_was_confirmed(tmp_path: Path) -> None:
    service = _Service(lambda setting: 100.0 + 40 * setting["k0"], 0.03, 1)
    found = service.search(_space((3, 3)), 15, tmp_path / "j.json").run()
    assert found.winner is not None
    rounds = found.confirmed[-1]["rounds"]
    won = [row["rate"] for row in rounds if row["kept"] and not row["served_now_kept"]]
    assert len(won) == search.WINS and found.confirmed[-1]["rate"] == min(won)
    best = next(each.rate for each in found.tried if each.setting == found.winner)
    assert best is not None and max(won) <= found.rate <= best
    assert found.base < found.rate <= 1.1 * 180


def test_a_promise_that_nothing_keeps_says_what_was_nearest(tmp_path: Path) -> None:
    def measure(setting: Setting, rate: float, number: int) -> Judged:
        return Judged(False, 0.4, {})

    with pytest.raises(NothingMeets, match=r"no rate keeps the promise; at the best 40.0%"):
        Search(_space((2,)), measure, 600, tmp_path / "j.json").run()


NETWORK = """
name: "m_encoder" backend: "onnxruntime" max_batch_size: 64
input { name: "input_ids" data_type: TYPE_INT64 dims: -1 }
input { name: "attention_mask" data_type: TYPE_INT64 dims: -1 }
dynamic_batching { } instance_group { count: 1 }
version_policy { specific { versions: 1 } }
"""
TOKENIZER = 'name: "m_tokenizer" backend: "python" max_batch_size: 64 dynamic_batching { }'
DECODER = """
name: "m_encoder" backend: "python"
parameters { key: "max_num_seqs" value { string_value: "32" } }
parameters { key: "prefix_cache_tokens" value { string_value: "8192" } }
"""


def _encoder(cpus: int) -> Space:
    configs = {"m_encoder": NETWORK, "m_tokenizer": TOKENIZER}
    others = [_manifest(3, configs), _manifest(4, configs)]
    return space.space_of("m", _manifest(1, configs), others, cpus)


def test_the_space_of_an_encoder_never_has_more_threads_than_cpus() -> None:
    found = {knob.name: knob for knob in _encoder(4).knobs}
    assert found["instances x threads"].values == ("1 x 4", "2 x 2", "4 x 1")
    assert found["instances x threads"].default == "1 x 4"
    assert found["version"].values == (1, 3)  # 4 has the files of 1
    assert found["run tokens"].default == 1024
    assert found["tokenizer instances"].values == (1, 2, 4)
    assert found["waits for others, us"].values == ("never", 0, 500, 2000, 5000)
    assert found["waits for others, us"].default == 0
    assert {knob.name: knob for knob in _encoder(1).knobs}["tokenizer instances"].values == (1, 2)


def test_a_setting_is_written_into_the_configs() -> None:
    where = _encoder(2)
    changed = {
        **where.default,
        "version": 3,
        "instances x threads": "2 x 1",
        "waits for others, us": 500,
        "run tokens": 4096,
        "tokenizer instances": 2,
    }
    made = {name: model_config.parse(text) for name, text in where.configs(changed).items()}
    network = made["m_encoder"]
    assert network.instance_group[0].count == 2
    assert network.parameters["intra_op_thread_count"].string_value == "1"
    assert network.dynamic_batching.max_queue_delay_microseconds == 500
    assert network.parameters["max_run_tokens"].string_value == "4096"
    assert made["m_tokenizer"].instance_group[0].count == 2
    alone = where.configs({**where.default, "waits for others, us": "never"})["m_encoder"]
    assert not model_config.parse(alone).HasField("dynamic_batching")
    one = model_config.parse(where.configs(where.default)["m_encoder"])
    assert one.HasField("dynamic_batching")
    assert "intra_op_thread_count" not in one.parameters and one.instance_group[0].count == 1
    assert where.text(where.default) == "what is served now"
    assert "instances x threads 2 x 1" in where.text(changed)
    with pytest.raises(UsageError, match="unknown knob speed"):
        where.configs({**where.default, "speed": 1})


def test_a_network_on_a_gpu_has_a_kind_and_no_threads() -> None:
    on_gpu = NETWORK.replace(
        "instance_group { count: 1 }", "instance_group { count: 1 kind: KIND_GPU gpus: 0 }"
    )
    where = space.space_of("m", _manifest(1, {"m_encoder": on_gpu}), [], 4)
    found = {knob.name: knob for knob in where.knobs}
    assert found["instances"].values == (1, 2, 4) and "instances x threads" not in found
    kinds = {
        runs_on: model_config.parse(where.configs({**where.default, "runs on": runs_on})["m_encoder"])
        for runs_on in found["runs on"].values
    }
    assert [group.kind for group in kinds["GPU"].instance_group] == [ModelInstanceGroup.KIND_GPU]
    assert [group.kind for group in kinds["CPUs"].instance_group] == [ModelInstanceGroup.KIND_CPU]
    assert not kinds["CPUs"].instance_group[0].gpus


def test_the_space_of_a_decoder() -> None:
    where = space.space_of("m", _manifest(1, {"m_encoder": DECODER}), [])
    assert where.default == {
        "sequences at once": 32,
        "prompt tokens a step": 256,
        "prefix cache, tokens": 8192,
    }
    made = model_config.parse(where.configs({**where.default, "sequences at once": 8})["m_encoder"])
    assert made.parameters["max_num_seqs"].string_value == "8"


def test_what_cannot_be_tuned() -> None:
    vllm = 'name: "m_encoder" backend: "vllm"'
    with pytest.raises(UsageError, match="cannot be tuned: its backend is vllm"):
        space.space_of("m", _manifest(1, {"m_encoder": vllm}), [])


def test_corners_begin_where_requests_wait() -> None:
    where = _encoder(4)
    first = where.corners(["m_tokenizer", "m_encoder"])[0]
    assert first == {**where.default, "tokenizer instances": 4}
    assert all(sum(corner[name] != where.default[name] for name in corner) == 1 for corner in where.corners())


def test_only_proven_versions_within_the_bounds_take_part() -> None:
    versions = [
        _manifest(1, min_cosine=0.999, perplexity_rise=0.01),
        _manifest(2, min_cosine=0.98, perplexity_rise=0.06),
        _manifest(3, min_cosine=1.0, perplexity_rise=0.0, proven=False),
    ]
    numbers = [each.version for each in space.versions_that_keep(versions, min_cosine=0.99, max_rise=None)]
    assert numbers == [1]
    numbers = [each.version for each in space.versions_that_keep(versions, min_cosine=None, max_rise=0.1)]
    assert numbers == [1, 2]


def test_the_report(tmp_path: Path) -> None:
    service = _Service(lambda setting: 100.0 + 40 * setting["k0"], 0.005, 0)
    where = _space((3, 4, 4))
    found = service.search(where, 15, tmp_path / "j.json").run()
    about = {
        "model": "m",
        "slo": "p99=80ms",
        "workload": "mixed",
        "seconds": 6,
        "budget": 900.0,
        "machine": {"cpu": "one", "cpus": 2},
    }
    told = page.summary(where, found, about)
    page.write(where, found, told, tmp_path)
    assert max(told["importance"], key=told["importance"].get) == "k0"
    written = json.loads((tmp_path / "tune.json").read_text())
    assert written["winner"]["k0"] == 2 and written["better"] == pytest.approx(1.8, rel=0.1)
    assert written["best_single_test"] == pytest.approx(180, rel=0.1)
    html = (tmp_path / "tune.html").read_text()
    assert html.count("<svg") == 3 and "<script" not in html and "http-equiv" not in html
    assert "k0 2" in html
    assert sum(row["kept"] for row in written["confirmed"][-1]["rounds"]) >= search.WINS
    assert "Rounds on fresh requests" in html
