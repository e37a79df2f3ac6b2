"""Prometheus' rules and Grafana's dashboards, as far as they can be looked at without either.

What they name is compared with a real server in `tests/serving/generation/test_dashboards.py`.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests import observed
from tests.conftest import ROOT
from tests.observed import GRAFANA, PROMETHEUS

DASHBOARDS = observed.dashboards()
ALERTS = observed.alerts()
each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)
each_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])


@pytest.mark.parametrize(
    "command",
    [
        ("promtool", "check", "config", "prometheus.yml"),
        ("promtool", "check", "rules", "rules/recording.yml", "rules/alerts.yml"),
        ("promtool", "test", "rules", "tests/alerts.yml"),
        ("amtool", "check-config", "alertmanager.yml"),
    ],
    ids=" ".join,
)
def test_prometheus_own_tools_agree(command: tuple[str, ...]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not on PATH: apt-get install prometheus prometheus-alertmanager")
    done = subprocess.run(command, cwd=PROMETHEUS, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_is_a_query() -> None:
    assert all(metric for _, metric in observed.asked_for())
    assert observed.metrics_of('sum by (a) (rate(b{c="d"}[5m])) / e > f unless max_over_time(g[1h:1m])') == {
        *("b", "e", "f", "g")
    }
    with pytest.raises(ValueError):
        observed.metrics_of("sum(")


def test_no_two_rules_share_a_name() -> None:
    kept = [rule.get("alert") or rule["record"] for rule in observed.rules()]
    assert len(kept) == len(set(kept))


@each_alert
def test_an_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
    assert re.search(rf"^### {name}\n\n\w", _alerts_section(), re.MULTILINE)


def test_no_advice_is_left_over() -> None:
    advised = re.findall(r"^### (.+)$", _alerts_section(), re.MULTILINE)
    assert advised == [alert["alert"] for alert in ALERTS]


def _alerts_section() -> str:
    section = re.search(
        r"^## Alerts\n.*?(?=^## |\Z)", (ROOT / "docs" / "operations.md").read_text(), re.M | re.S
    )
    assert section
    return section[0]


@each_alert
def test_an_alert_is_seen_to_fire_and_to_be_quiet(alert: dict[str, Any]) -> None:
    cases = yaml.safe_load((PROMETHEUS / "tests" / "alerts.yml").read_text())["tests"]
    times = [
        bool(time.get("exp_alerts"))
        for case in cases
        for time in case.get("alert_rule_test", [])
        if time["alertname"] == alert["alert"]
    ]
    healthy = cases[-1]["promql_expr_test"][0]
    assert True in times
    assert healthy["expr"].startswith('count_over_time(ALERTS{alertstate="firing"}') and len(healthy) == 2


def test_grafana_finds_what_is_provisioned() -> None:
    provisioned = GRAFANA / "provisioning"
    (source,) = yaml.safe_load((provisioned / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["uid"], source["type"], source["isDefault"]) == ("prometheus", "prometheus", True)
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped
    (provider,) = yaml.safe_load((provisioned / "dashboards" / "shoal.yml").read_text())["providers"]
    assert provider["type"] == "file" and provider["options"]["path"].startswith("/")
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS) == 3


@each_dashboard
def test_a_dashboard_is_complete(dashboard: dict[str, Any]) -> None:
    assert dashboard["schemaVersion"] == 42
    second = "key" if dashboard["uid"] == "shoal-gateway" else "price_per_hour"
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["model", second]
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(numbers) == len(set(numbers))
    for panel in observed.panels(dashboard):
        assert panel["title"] and panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "prometheus"}, panel["title"]
        assert panel["targets"], panel["title"]
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"]), panel["title"]
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters)), panel["title"]


@each_dashboard
def test_no_panel_covers_another(dashboard: dict[str, Any]) -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in dashboard["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for _, place in places)
    for (one, a), (other, b) in itertools.combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, f"{one} and {other}"


@each_dashboard
def test_grafanas_own_model_knows_every_field(dashboard: dict[str, Any]) -> None:
    """What Grafana would not read does not come back from its typed model."""
    pytest.importorskip("grafana_foundation_sdk", reason="Grafana's typed model takes Python 3.11")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    assert list(_lost(dashboard, read)) == []
    misspelt = json.loads(json.dumps(dashboard).replace('"legendFormat"', '"legend"'))
    assert list(_lost(misspelt, json.loads(JSONEncoder().encode(Dashboard.from_json(misspelt)))))


def _lost(given: Any, read: Any, place: str = "") -> Iterator[str]:
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            yield from _lost(value, read.get(key), f"{place}/{key}")
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for index, (value, other) in enumerate(zip(given, read, strict=True)):
            yield from _lost(value, other, f"{place}/{index}")
    elif given != read:
        yield place


def test_the_supervisor_says_all_that() -> None:
    supervisor = pytest.importorskip("serving.supervisor.metrics")
    metrics = supervisor.Metrics("127.0.0.1", 0)
    try:
        said = {
            sample.name + ("_total" if sample.type == "counter" else "")
            for sample in metrics.registry.collect()
        }
    finally:
        metrics.close()
    drift = {"shoal_drift", "shoal_drift_samples"}
    assert said | drift >= observed.names(observed.SUPERVISOR)
