"""What the dashboards and the rules of Prometheus ask for, and what the supervisor says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from tests.conftest import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"

# A page of the supervisor, port 8003; drift is told by it too.
SUPERVISOR = """\
shoal_probe_success{model="minilm"} 1
shoal_probe_success{model="smollm2"} 1
shoal_probe_success{model="t5"} 1
shoal_probe_seconds{model="minilm"} 0.01
shoal_probe_seconds{model="smollm2"} 0.1
shoal_probe_seconds{model="t5"} 0.1
shoal_probe_failures_total{model="minilm",reason="timeout"} 1
shoal_restarts_total{reason="probe"} 1
shoal_upgrade_refused 0
shoal_server_up 1
shoal_server_start_seconds 4.5
shoal_memory_bytes 1e9
shoal_cpu_seconds_total 12.5
shoal_cpus 2
shoal_drift{model="minilm",feature="length"} 0.1
shoal_drift_samples{model="minilm"} 1000
"""
# A page of the gateway's metrics, port 9464.
GATEWAY = """\
shoal_gateway_requests_total{endpoint="/v1/chat/completions",model="smollm2",status="200",key="alice"} 100
shoal_gateway_requests_total{endpoint="/v1/chat/completions",model="smollm2",status="503",key="alice"} 1
shoal_gateway_running_requests{endpoint="/v1/chat/completions"} 2
shoal_gateway_refused_total{reason="overloaded",model="smollm2",key="alice"} 1
shoal_gateway_callers_left_total{endpoint="/v1/chat/completions",model="smollm2"} 1
shoal_gateway_retries_total{endpoint="/v1/chat/completions",key="alice"} 1
shoal_gateway_audit_lost_total{reason="full"} 0
shoal_gateway_tokens_total{model="smollm2",key="alice",type="input"} 1000
shoal_gateway_tokens_total{model="smollm2",key="alice",type="cached"} 400
shoal_gateway_tokens_total{model="smollm2",key="alice",type="output"} 2000
gen_ai_server_request_duration_seconds_count{gen_ai_request_model="smollm2",error_type=""} 100
gen_ai_server_request_duration_seconds_count{gen_ai_request_model="smollm2",error_type="internal"} 0
gen_ai_server_request_duration_seconds_bucket{gen_ai_request_model="smollm2",error_type="",le="+Inf"} 100
gen_ai_server_time_to_first_token_seconds_bucket{gen_ai_request_model="smollm2",le="+Inf"} 100
gen_ai_server_time_per_output_token_seconds_bucket{gen_ai_request_model="smollm2",le="+Inf"} 100
"""
# What Prometheus itself makes.
OWN = {"up", "ALERTS"}


def names(page: str) -> set[str]:
    """Metrics that have a value on a page of metrics."""
    return set(re.findall(r"^(\w+)[{ ]", page, re.MULTILINE))


def rules() -> list[dict[str, Any]]:
    """All rules, each with `alert` or `record`."""
    files = [yaml.safe_load(path.read_text()) for path in sorted((PROMETHEUS / "rules").glob("*.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """The rules that tell somebody."""
    return [rule for rule in rules() if "alert" in rule]


def dashboards() -> dict[str, dict[str, Any]]:
    """File name -> dashboard."""
    paths = sorted((GRAFANA / "dashboards").glob("*.json"))
    return {path.name: json.loads(path.read_text()) for path in paths}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that draw something: no rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries() -> dict[str, str]:
    """Where it stands -> a query of a dashboard, its variables replaced as Grafana does."""
    found = {}
    for file, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                found[f"{file}: {panel['title']} {target['refId']}"] = filled_in(target["expr"])
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                selector = re.fullmatch(r"label_values\((.+), \w+\)", variable["query"]["query"])
                assert selector, variable
                found[f"{file}: ${variable['name']}"] = selector[1]
    return found


def filled_in(query: str) -> str:
    """A query of Grafana as Prometheus gets it; no variable is left."""
    for name, value in (
        ("__rate_interval", "15s"),
        ("price_per_hour", "0.5"),
        ("model", ".+"),
        ("key", ".*"),
    ):
        query = re.sub(rf"\${name}\b", value, query)
    assert "$" not in query, query
    return query


def metrics_of(query: str) -> set[str]:
    """The metrics that a query names.

    Raises:
        ValueError: it is no PromQL.
    """
    found: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.add(node.name)

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def asked_for() -> Iterator[tuple[str, str]]:
    """(Where it stands, metric) of all queries and rules."""
    for place, query in queries().items():
        yield from ((place, metric) for metric in metrics_of(query))
    for rule in rules():
        place = rule.get("alert") or rule["record"]
        yield from ((place, metric) for metric in metrics_of(str(rule["expr"])))


def write_config(path: Path, targets: dict[str, str]) -> None:
    """Our configuration of Prometheus elsewhere: job -> host:port, no Alertmanager, a faster clock."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    del config["alerting"]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    path.write_text(yaml.safe_dump(config))
