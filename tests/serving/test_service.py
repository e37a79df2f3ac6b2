"""What `shoal serve` starts: it follows the repository, brings back what died, and ends with nothing left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest

from clients import GrpcClient
from serving import embedded, service
from serving.ports import Ports
from serving.service import Service
from serving.supervisor.record import Recorder
from shoal import rollouts
from shoal.errors import RepositoryError, ServerError, UsageError
from shoal.paths import write_atomic
from shoal.repository import promote, version_of
from tests.conftest import ROOT
from tests.processes import SERVER, descendants

ANY = Ports(0, 0, 0)


def _until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _server(of: Service) -> psutil.Process:
    """Its tritonserver."""
    return descendants(of.pid, SERVER)[0]


def _left(process: psutil.Process, of: Service) -> list[object]:
    """What is still there of a service: processes that name its folder or that of its server, and files."""
    folders = [of.folder.name, *(argument.split("=")[1] for argument in _ARGUMENTS[process.pid])]
    found: list[object] = [path for path in [of.folder] if path.exists()]
    for other in psutil.process_iter(["cmdline"]):
        line = " ".join(other.info["cmdline"] or [])
        found += [line] if any(folder in line for folder in folders) else []
    return found


_ARGUMENTS: dict[int, list[str]] = {}


def _remembered(process: psutil.Process) -> psutil.Process:
    """Its shared-memory prefix, which its stubs have on their command lines, read while it lives."""
    _ARGUMENTS[process.pid] = [a.split(",")[1] for a in process.cmdline() if "shm-region-prefix-name" in a]
    return process


@pytest.fixture(scope="module")
def shared(repository: Path) -> Iterator[Service]:
    """For tests that change nothing."""
    made = service.start(repository, ANY)
    yield made
    service.stop(made)


@pytest.fixture
def served(own_repository: Path) -> Iterator[Service]:
    made = service.start(own_repository, ANY)
    yield made
    service.stop(made)


def _answer(of: Service) -> list[float]:
    with GrpcClient(of.grpc) as client:
        return [float(value) for value in client.embed(["Fish swim in shoals."])[0]]


def _serves(of: Service) -> str:
    """The version of the encoder that is served."""
    return str(json.loads(of.record.state.read_text())["served"]["minilm_encoder"]["versions"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        # By its shared memory a client could overwrite a model's process.
        ("systemsharedmemory/region/mine/register", {"key": "/x", "offset": 0, "byte_size": 64}),
        (
            "cudasharedmemory/region/mine/register",
            {"raw_handle": {"b64": ""}},
        ),
        ("logging", {"log_verbose_level": 9}),
        ("trace/setting", {"trace_level": ["TIMESTAMPS"]}),
        ("repository/models/minilm/unload", {}),
    ],
)
def test_what_changes_the_server_is_closed(shared: Service, path: str, body: dict[str, object]) -> None:
    connection = HTTPConnection(shared.http, timeout=10)
    connection.request("POST", f"/v2/{path}", json.dumps(body))
    answer = connection.getresponse()
    assert answer.status == 403 and b"restricted" in answer.read()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_is_asked_in_any_way(shared: Service, method: str) -> None:
    connection = HTTPConnection(shared.health.partition("://")[2].partition("/")[0], timeout=10)
    for path in ("/health", "/health?from=balancer"):
        connection.request(method, path)
        answer = connection.getresponse()
        assert answer.status == 200 and answer.read() == (b"serving\n" if method == "GET" else b"")


def test_places_in_any_alphabet_are_served(
    own_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though Triton's Python takes names of files for ASCII."""
    repository = own_repository.rename(tmp_path / "modèles 模型")
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cäche"))
    made = service.start(repository, ANY)
    try:
        assert len(_answer(made)) == 384
    finally:
        service.stop(made)
    with embedded.running(repository) as server, GrpcClient(server.grpc) as client:
        assert client.embed(["Fish"]).shape == (1, 384)


@pytest.mark.parametrize("name", ["two\nlines", os.fsdecode(b"not UTF-8 \xff")])
def test_a_place_that_cannot_be_named_is_refused(repository: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(repository)
    shutil.copytree(repository, tmp_path / f"{name}2", symlinks=True)
    with pytest.raises(UsageError, match="is not UTF-8, or has control characters"):
        embedded.start(tmp_path / f"{name}2")


def test_what_is_no_file_holds_nobody_up(served: Service) -> None:
    """A pipe in the repository, whose opening would take until somebody writes to it."""
    (served.repository / "pipe" / "1").mkdir(parents=True)
    os.mkfifo(served.repository / "pipe" / "config.pbtxt")
    time.sleep(2.5)
    server = _server(served)
    server.kill()
    _until(lambda: served.problem)
    _until(lambda: not served.problem)
    assert _server(served) != server and len(_answer(served)) == 384


def test_it_follows_promotions(served: Service) -> None:
    server, before = _server(served), _answer(served)
    for version in (1, 2):
        manifest = promote(served.repository, "minilm", version)
        rollouts.wait_until_served(served.repository, manifest.configs, 60)
        assert _serves(served) == f"[{version}]"
        assert (_answer(served) == pytest.approx(before, abs=1e-4)) == (version == 2)
    assert _server(served) == server
    assert served.problem is None and served.refused == {}


def test_a_version_that_is_damaged_is_refused_and_named(served: Service) -> None:
    before = _answer(served)
    configs = version_of(served.repository, "minilm", 1).configs
    os.truncate(served.repository / "minilm_encoder" / "1" / "model.onnx", 1000)
    for name, config in configs.items():  # as `shoal promote` does, which would refuse it at once
        write_atomic(served.repository / name / "config.pbtxt", config)
    with pytest.raises(RepositoryError, match=r"not taken up: .*is not the file that was measured"):
        rollouts.wait_until_served(served.repository, configs, 60)
    assert "is not the file that was measured" in served.refused["minilm_encoder"]
    assert _answer(served) == pytest.approx(before, abs=1e-4)
    # A start serves what was good last, and says what is not served.
    service.stop(served)
    again = service.start(served.repository, ANY)
    try:
        assert "is not the file that was measured" in again.refused["minilm_encoder"]
        assert _answer(again) == pytest.approx(before, abs=1e-4)
    finally:
        service.stop(again)


def test_a_server_that_was_killed_is_started_again_on_its_ports(served: Service) -> None:
    server = _server(served)
    server.kill()
    _until(lambda: served.problem is not None, 5)
    _until(lambda: served.problem is None)
    assert _server(served) != server
    assert len(_answer(served)) == 384
    assert [found.pid for found in service.services(served.repository)] == [served.pid]


def test_what_cannot_be_started_again_says_why_and_is_once_it_can(own_repository: Path) -> None:
    """It is not given up, however long that takes."""
    made = service.start(own_repository, ANY, detach=True)
    graphs = [own_repository / "minilm_encoder" / version / "model.onnx" for version in "12"]
    whole = [graph.read_bytes() for graph in graphs]
    for graph in graphs:
        os.truncate(graph, 1000)
    _server(made).kill()
    _until(lambda: "is not the file that was measured" in str(made.problem))
    for graph, content in zip(graphs, whole, strict=True):
        graph.write_bytes(content)
    _until(lambda: made.problem is None)
    assert len(_answer(made)) == 384
    service.stop(made)


def test_what_ended_by_itself_tells_why_until_it_is_stopped(own_repository: Path) -> None:
    """Also after somebody has looked."""
    made = service.start(own_repository, ANY, detach=True)
    os.kill(made.pid, signal.SIGKILL)
    _until(lambda: not made.alive)
    Recorder(made.folder, made.record).ended(error=ServerError("there is no memory"))  # as its last words
    for _ in range(2):
        (found,) = service.ended(own_repository)
        assert found.end is not None and found.end.message == "there is no memory"
        assert "there is no memory" in str(found.problem)
        assert "serving" in found.log.read_text()
    assert service.services(own_repository) == []
    service.stop(found)
    assert service.ended(own_repository) == [] and not found.folder.exists()


def test_what_is_gone_from_the_repository_is_not_asked_for(own_repository: Path) -> None:
    """Although it was good last."""
    service.stop(service.start(own_repository, ANY))
    kept = shutil.copytree(own_repository, own_repository.parent / "kept")
    for model in ("minilm", "minilm_encoder", "minilm_tokenizer"):
        shutil.rmtree(own_repository / model)
    with pytest.raises(ServerError, match="holds no models"):
        service.start(own_repository, ANY)
    shutil.rmtree(own_repository)
    kept.rename(own_repository)
    again = service.start(own_repository, ANY)
    assert again.settled and len(_answer(again)) == 384
    service.stop(again)


def test_a_start_waits_for_what_is_asked_for(own_repository: Path) -> None:
    """And not only for the last good, which is served first."""
    service.stop(service.start(own_repository, ANY))
    promote(own_repository, "minilm", 1)
    made = service.start(own_repository, ANY)
    try:
        assert made.settled and _serves(made) == "[1]"
    finally:
        service.stop(made)


def test_a_service_of_another_machine_is_left_alone(own_repository: Path) -> None:
    made = service.start(own_repository, ANY)
    try:
        record = json.loads((made.folder / "service.json").read_text())
        elsewhere = made.folder.with_name("elsewhere")
        shutil.copytree(made.folder, elsewhere)
        (elsewhere / "service.json").write_text(json.dumps(record | {"kernel": "another", "pid": 1}))
        assert [found.pid for found in service.services(own_repository)] == [made.pid]
        assert elsewhere.exists()
        shutil.rmtree(elsewhere)
    finally:
        service.stop(made)


def test_stopping_leaves_nothing(own_repository: Path) -> None:
    made = service.start(own_repository, ANY)
    server = _remembered(_server(made))
    assert len(_left(server, made)) > 3
    assert service.stop(made) is True
    assert _left(server, made) == []
    assert service.services(own_repository) == []


def test_a_supervisor_that_was_killed_takes_its_server_along(own_repository: Path) -> None:
    made = service.start(own_repository, ANY, detach=True)
    server = _remembered(_server(made))
    idle = HTTPConnection(made.http)
    idle.request("GET", "/v2/health/ready")
    idle.getresponse().read()
    psutil.Process(made.pid).kill()
    # Whoever keeps a connection open holds it up, and not those who come after it on the same ports.
    _until(lambda: server.ppid() != made.pid)
    again = service.start(own_repository, made.record.ports)
    assert len(_answer(again)) == 384
    service.stop(again)
    _until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, 30)
    assert service.services(own_repository) == []  # and clears what it could not
    _until(lambda: _left(server, made) == [], 30)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_command_that_started_it(own_repository: Path, how: signal.Signals) -> None:
    command = [sys.executable, "-m", "shoal", "serve", "-r", str(own_repository), "--json"]
    for port in ("--http-port", "--grpc-port", "--metrics-port"):
        command += [port, "0"]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
    try:
        assert parent.stdout is not None
        lines = iter(parent.stdout.readline, "")
        told = json.loads("".join(line for line in _until_closed(lines)))
        (made,) = service.services(own_repository)
        server = _remembered(_server(made))
    finally:
        parent.send_signal(how)
    parent.communicate(timeout=300)
    assert told["pid"] == made.pid
    assert parent.returncode == (143 if how == signal.SIGTERM else -signal.SIGKILL)
    _until(lambda: not made.alive, 30)
    assert service.services(own_repository) == []
    _until(lambda: _left(server, made) == [], 30)


def _until_closed(lines: Iterator[str]) -> Iterator[str]:
    """One JSON document of a process that goes on."""
    for line in lines:
        yield line
        if line == "}\n":
            return


def test_what_cannot_be_served_is_one_error(own_repository: Path, tmp_path: Path) -> None:
    before = set(service._place().glob("*"))
    with pytest.raises(ServerError, match="holds no models"):
        service.start(tmp_path, ANY)
    for network in own_repository.glob("*/*/model.onnx"):
        os.truncate(network, 1000)
    with pytest.raises(ServerError, match="is not the file that was measured"):
        service.start(own_repository, ANY)
    shutil.rmtree(own_repository / "minilm_tokenizer")
    with pytest.raises(ServerError, match="minilm"):
        service.start(own_repository, ANY)
    assert set(service._place().glob("*")) == before


def test_the_words_of_triton_are_told(own_repository: Path) -> None:
    with pytest.raises(ServerError, match=r"could not start:\n.*unable to find .*for cache"):
        service.start(own_repository, ANY, arguments=["--cache-config=nonsense,size=1"])
    with pytest.raises(ServerError, match=r"(?s)stopped while starting.*log-format"):
        service.start(own_repository, ANY, arguments=["--log-format=nonsense"])


def test_a_start_that_takes_too_long_is_given_up(own_repository: Path) -> None:
    with pytest.raises(ServerError, match="not ready after 0 s"):
        service.start(own_repository, ANY, timeout=0.1)
    _until(lambda: not embedded.servers(own_repository), 30)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::"])
def test_another_address_is_refused_with_the_reason(repository: Path, host: str) -> None:
    with pytest.raises(UsageError, match=r"listens on 127\.0\.0\.1 only.*known vulnerabilities"):
        service.start(repository, ANY, host=host)
    for argument in ("--http-address", "--http-addr", "--model-store", "--allow-sagemaker", "--grpc-port"):
        with pytest.raises(UsageError, match="cannot be given to tritonserver"):
            service.start(repository, ANY, arguments=[f"{argument}={host}"])


@pytest.mark.parametrize("name", ["grpc", "health"])
def test_a_taken_port_is_named(repository: Path, name: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        ports, health = (Ports(0, port, 0), 0) if name == "grpc" else (ANY, port)
        with pytest.raises(ServerError, match=f"{name} port {port} cannot be had: Address already in use"):
            service.start(repository, ports, health_port=health)
