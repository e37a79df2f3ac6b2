"""`shoal cost` against sums done by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loadtest.cost import calculation, prices
from loadtest.energy import Meter
from shoal.cli.app import app
from shoal.errors import UsageError
from tests.conftest import ROOT

PRICES = """
[machines.small]
usd_per_hour = 0.10
spot_usd_per_hour = 0.04
cpu = "AMD EPYC"
cpus = 2
source = "a bill"
date = 2026-11-01

[machines.large]
usd_per_hour = 0.36
cpu = "AMD EPYC"
cpus = 8
source = "a bill"
date = "2026-11-01"

[apis.words]
kind = "text-generation"
usd_per_million_input_tokens = 1.0
usd_per_million_output_tokens = 4.0
source = "a page"
date = 2026-11-01

[energy]
usd_per_kwh = 0.30
source = "a bill"
date = 2026-11-01
"""


def _report(folder: Path, **changes: Any) -> Path:
    """A decoder: 10 requests a second of 300 tokens in and 100 out, on two CPUs, for 20 J each."""
    report: dict[str, Any] = {
        "plan": {"model": "smollm2", "slo": "ttft_p95=500ms"},
        "served": {
            "version": 3,
            "precision": "int8",
            "task": "text-generation",
            "speeds": {"prefill": 4000.0, "decode": 1000.0},
        },
        "machine": {"cpu": "AMD EPYC 9654", "cpus": 2, "gpus": []},
        "total": {"requests": 100, "failures": 0, "per_second": 9.7},
        "input_tokens": 30_000,
        "joules": 2000.0,
        "streams": {"tokens": 10_000},
        "slo": {"met": True},
        "trials": [],
        "max_rate": 10.0,
        "requests": {name: [] for name in ("index", "ended", "latency", "first", "between", "succeeded")},
    }
    report.update(changes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture
def own(tmp_path: Path) -> prices.Prices:
    file = tmp_path / "prices.toml"
    file.write_text(PRICES)
    return prices.read(file)


def test_by_hand(tmp_path: Path, own: prices.Prices) -> None:
    (option,) = calculation.options_of([_report(tmp_path / "a")])
    row = calculation.on_machine(option, own.machines["small"], calculation.Wanted(rps=50, headroom=0.8), own)
    # 50 / (10 x 0.8) = 6.25, so 7 are needed and 8 run, at 0.10 USD an hour each.
    assert row["replicas"] == 8
    assert row["utilisation"] == pytest.approx(50 / 80)
    assert row["usd_per_month"] == pytest.approx(8 * 0.10 * 730)  # 584
    # 180,000 requests an hour for 0.80 USD.
    assert row["usd_per_million_requests"] == pytest.approx(0.80 / 180_000 * 1e6)  # 4.44
    # One replica at its full rate: 36,000 requests an hour for 0.10 USD.
    assert row["usd_per_million_requests_at_best"] == pytest.approx(0.10 / 36_000 * 1e6)
    # A token out takes 1 ms and one in 0.25 ms, so of a request's 175 ms, 100 are the 100 tokens out.
    assert row["usd_per_million_output_tokens"] == pytest.approx(4.4444 * (100 / 175) / 100, rel=1e-4)
    assert row["usd_per_million_input_tokens"] == pytest.approx(4.4444 * (75 / 175) / 300, rel=1e-4)
    parts = 300 * row["usd_per_million_input_tokens"] + 100 * row["usd_per_million_output_tokens"]
    assert parts == pytest.approx(row["usd_per_million_requests"])
    # 20 J a request are 5.56 kWh a million, for 0.30 USD each.
    assert row["kwh_per_million_requests"] == pytest.approx(20 * 1e6 / 3.6e6)
    assert row["usd_of_energy_per_million_requests"] == pytest.approx(20 / 3.6 * 0.30)
    assert row["assumptions"] == []
    assert row["sources"][1:] == ["small: a bill (2026-11-01)", "electricity: a bill (2026-11-01)"]


def test_an_api_by_hand(tmp_path: Path, own: prices.Prices) -> None:
    (option,) = calculation.options_of([_report(tmp_path / "a")])
    wanted, machine = calculation.Wanted(rps=50, headroom=0.8), own.machines["small"]
    row = calculation.on_machine(option, machine, wanted, own)
    api = calculation.by_api(option, own.apis["words"], row, wanted, machine)
    # 300 tokens at 1 USD and 100 at 4 USD a million: 700 USD a million requests.
    assert api["usd_per_million_requests"] == pytest.approx(700)
    assert api["usd_per_month"] == pytest.approx(700 * 50 * 3600 * 730 / 1e6)
    # Two replicas cost 0.20 USD an hour, as 285.7 requests of the API do: 0.0794 a second.
    assert api["cheaper_from_rps"] == pytest.approx(0.20 / 3600 / 0.0007)


def test_an_api_that_is_always_cheaper_and_one_that_is_from_several_replicas_on(
    tmp_path: Path, own: prices.Prices
) -> None:
    (option,) = calculation.options_of([_report(tmp_path / "a")])
    wanted, machine = calculation.Wanted(rps=50, headroom=0.8), own.machines["small"]
    row = calculation.on_machine(option, machine, wanted, own)
    second = 0.10 / 3600  # dollars of a replica

    def even(dollars_a_request: float) -> float | None:
        api = prices.Api("x", "text-generation", dollars_a_request * 1e6 / 300, "s", "d")
        return calculation.by_api(option, api, row, wanted, machine)["cheaper_from_rps"]

    assert even(0.99 * second / 8) is None  # a replica's 8 requests a second cost less than the replica
    assert even((1 + 1e-12) * second / 8) is None  # and so they do but for a rounding error
    # At 1.25 times that, N replicas and a spare one are paid for by 8 N requests from N = 4 on.
    assert even(1.25 * second / 8) == pytest.approx(5 * second / (1.25 * second / 8))


def test_other_machines_and_spot(tmp_path: Path, own: prices.Prices) -> None:
    (option,) = calculation.options_of([_report(tmp_path / "a")])
    large = calculation.on_machine(option, own.machines["large"], calculation.Wanted(rps=50), own)
    assert large["replicas"] == 3 and large["rate_of_a_replica"] == 40.0  # 50 / (40 x 0.8) = 1.6
    assert large["assumptions"] == ["the rate of 2 CPUs was multiplied by 4"]
    spot = calculation.on_machine(option, own.machines["small"], calculation.Wanted(rps=50, spot=0.5), own)
    assert spot["usd_per_month"] == pytest.approx(8 * 0.07 * 730)
    with pytest.raises(UsageError, match="the spot price of large is not known"):
        calculation.on_machine(option, own.machines["large"], calculation.Wanted(rps=50, spot=0.5), own)
    exact = calculation.on_machine(option, own.machines["small"], calculation.Wanted(rps=16), own)
    assert exact["replicas"] == 3  # 16 / 8 is exactly two


def test_a_gpu_does_not_get_faster_by_cpus(tmp_path: Path, own: prices.Prices) -> None:
    machine = {"cpu": "AMD EPYC", "cpus": 16, "gpus": ["NVIDIA H100"]}
    (option,) = calculation.options_of([_report(tmp_path / "a", machine=machine)])
    other = prices.Machine("g", 1.0, "AMD EPYC", 4, "s", "d", gpu="NVIDIA A10G")
    row = calculation.on_machine(option, other, calculation.Wanted(rps=50), own)
    assert row["rate_of_a_replica"] == 10.0
    assert row["assumptions"] == ["measured on NVIDIA H100, not on NVIDIA A10G"]
    same = prices.Machine("h", 1.0, "AMD EPYC", 8, "s", "d", gpu="NVIDIA H100")
    assert calculation.on_machine(option, same, calculation.Wanted(rps=50), own)["assumptions"] == []


def test_a_client_that_was_the_limit_is_told(tmp_path: Path, own: prices.Prices) -> None:
    trials = [
        {"rate": 10.0, "met": True, "client_limited": False},
        {"rate": 10.4, "met": False, "client_limited": True},
        {"rate": 20.0, "met": False, "client_limited": False},
    ]
    (option,) = calculation.options_of([_report(tmp_path / "a", trials=trials)])
    row = calculation.on_machine(option, own.machines["small"], calculation.Wanted(rps=5), own)
    assert row["assumptions"] == ["the client was the limit: the server may be faster"]


def test_what_cannot_be_costed(tmp_path: Path) -> None:
    for changes, said in (
        ({"max_rate": None}, "no rate keeps the promise"),
        ({"trials": None, "max_rate": None, "slo": {"met": False}}, "no rate keeps"),
        ({"total": {"requests": 10, "failures": 1, "per_second": 1.0}, "slo": None}, "1 requests failed"),
    ):
        with pytest.raises(UsageError, match=said):
            calculation.measured(_report(tmp_path / "a", **changes))
    plain = _report(tmp_path / "b")
    report = json.loads((plain / "report.json").read_text())
    del report["trials"], report["max_rate"]
    report["slo"]["met"] = False
    (plain / "report.json").write_text(json.dumps(report))
    with pytest.raises(UsageError, match="was missed"):
        calculation.measured(plain)
    report["slo"]["met"] = True
    (plain / "report.json").write_text(json.dumps(report))
    assert not calculation.measured(plain).highest and calculation.measured(plain).rate == 9.7
    report["plan"]["beside"] = "127.0.0.1:1"
    (plain / "report.json").write_text(json.dumps(report))
    with pytest.raises(UsageError, match="rested while another was asked"):
        calculation.measured(plain)


def test_our_prices_have_sources_and_yours_win(tmp_path: Path) -> None:
    ours = prices.read()
    assert ours.machines and ours.apis
    assert all(each.source and each.date for each in [*ours.machines.values(), *ours.apis.values()])
    name = next(iter(ours.machines))
    file = tmp_path / "own.toml"
    file.write_text(
        f'[machines."{name}"]\nusd_per_hour = 9.5\ncpu = "x"\ncpus = 1\nsource = "me"\ndate = "now"\n'
    )
    assert prices.read(file).machines[name].usd_per_hour == 9.5
    assert prices.read(file).apis == ours.apis


def test_the_list_in_the_documents_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs" / "cost.md").read_text(), re.M | re.S)
    file = tmp_path / "prices.toml"
    file.write_text(block)
    own = prices.read(file)
    assert own.machines["aws m6a.large"].spot_usd_per_hour == 0.035
    assert own.energy is not None and "a service" in own.apis


ENTRY = '[machines.m]\nusd_per_hour = 1.0\ncpu = "x"\ncpus = 1\nsource = "s"\ndate = "d"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "is no price list"),
        ("[machine.m]\n", "has 'machine'"),
        ("machines = 5", "machines holds no entries"),
        ("[machines]\nm = 5", "machines holds no entries"),
        ("energy = 5", "energy is no table"),
        (ENTRY.replace('source = "s"\n', ""), "lacks 'source'"),
        (ENTRY + "gb = 4\n", "has 'gb'"),
        (ENTRY.replace("1.0", "-1.0"), "is no number of 0 or more"),
        (ENTRY.replace("1.0", "nan"), "is no number of 0 or more"),
        (ENTRY.replace("1.0", '"cheap"'), "is no number of 0 or more"),
        (ENTRY.replace("1.0", "true"), "is no number of 0 or more"),
        (ENTRY.replace("1.0", "0.0"), "has no price or no CPU"),
        (ENTRY.replace("cpus = 1", "cpus = 0"), "has no price or no CPU"),
        (ENTRY.replace('"s"', '""'), "is no text"),
        (
            '[apis.a]\nkind = "x"\nusd_per_million_input_tokens = 1\nsource = "s"\ndate = "d"',
            "kind of apis.a is x",
        ),
    ],
)
def test_price_lists_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=said):
        prices.read(file)


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text(PRICES)
    reports = [str(_report(tmp_path / "a")), str(_report(tmp_path / "b", max_rate=20.0))]
    common = ["--prices", str(tmp_path / "prices.toml"), "--report", str(tmp_path / "out"), "--rps", "50"]
    done = CliRunner().invoke(app, ["cost", *reports, "--machine", "small", *common])
    assert done.exit_code == 0, done.output
    assert "584" in done.output and "source: small: a bill (2026-11-01)" in done.output
    html = (tmp_path / "out" / "cost.html").read_text()
    assert "mathdefault" not in html  # figures on the axes, and no formulas
    assert html.count("<svg") == 2 and "<script" not in html and "http-equiv" not in html
    found = json.loads((tmp_path / "out" / "cost.json").read_text())
    assert [row["replicas"] for row in found["machines"]] == [8, 5]
    assert {row["api"] for row in found["apis"]} == {"words", "GPT-4o mini"}
    for arguments, said in (
        (["cost", reports[0], "--machine", "huge", *common], "the price list has no machine huge"),
        (["cost", str(tmp_path / "nothing"), *common], "is no report of a load test"),
    ):
        failed = CliRunner().invoke(app, arguments)
        assert failed.exit_code and said in str(failed.exception)


def test_energy_is_counted_over_the_end_of_a_counter(tmp_path: Path) -> None:
    zones = {}
    for number, (name, energy) in enumerate((("package-0", 999_000_000), ("core", 5), ("psys", 7))):
        zones[name] = tmp_path / f"intel-rapl:{number}"
        zones[name].mkdir()
        (zones[name] / "name").write_text(f"{name}\n")
        (zones[name] / "energy_uj").write_text(f"{energy}\n")
        (zones[name] / "max_energy_range_uj").write_text("1000000000\n")
    counter = zones["package-0"] / "energy_uj"
    meter = Meter(tmp_path)
    counter.write_text("4000000\n")
    meter.tick()  # 5 J: to the end of the counter, and from its beginning
    counter.write_text("1000000\n")
    assert meter.joules() == pytest.approx(5.0 + 997.0)  # around once more
    counter.unlink()
    assert meter.joules() is None
    assert Meter(tmp_path / "nothing").joules() is None
