"""The embedded server: how it starts, refuses, ends, and what it leaves behind (nothing)."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import onnx
import psutil
import pytest

from clients import ClientError, GrpcClient, HttpClient, Unavailable
from serving import embedded, probe
from serving.embedded import Server, running, start, stop, stubs
from serving.ports import Ports
from shoal.errors import RepositoryError, ServerError

ANY = Ports(0, 0, 0)


def _leftovers(server: Server) -> list[object]:
    """Processes, shared memory and files of a server."""
    regions = list(Path("/dev/shm").glob(f"shoal_{server.folder.name}_*"))
    processes = [
        p
        for p in psutil.process_iter(["cmdline"])
        if any(server.folder.name in arg for arg in p.info["cmdline"] or [])
    ]
    return [*regions, *processes, *([server.folder] if server.folder.exists() else [])]


def _wait_for(condition: object, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def test_it_listens_on_loopback_only(server: Server) -> None:
    ports = {server.ports.http, server.ports.grpc, server.ports.metrics}
    listening = [c for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert {c.laddr.port for c in listening} == ports
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}


def test_a_taken_port_is_named(repository: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ServerError, match=f"grpc port {port} cannot be had: Address already in use"):
            start(repository, Ports(0, port, 0))


def test_an_empty_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="holds no models"):
        start(tmp_path, ANY)


def test_a_clone_without_weights_says_what_to_do(own_repository: Path) -> None:
    for version in ("1", "2"):
        for path in (own_repository / "minilm_encoder" / version).iterdir():
            path.unlink()
    with pytest.raises(RepositoryError, match=r"config but no weights .*shoal export"):
        start(own_repository, ANY)


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize("size", [0, 1000, 20_000_000])
def test_a_corrupt_network_is_named(own_repository: Path, size: int, with_manifest: bool) -> None:
    os.truncate(own_repository / "minilm_encoder" / "2" / "model.onnx", size)
    if with_manifest:
        with pytest.raises(RepositoryError, match="is not the file that was measured"):
            start(own_repository, ANY)
        return
    for manifest in own_repository.glob("*/*/manifest.json"):
        manifest.unlink()
    with pytest.raises(RepositoryError, match=r"model\.onnx is not an ONNX file"):
        start(own_repository, ANY)


def test_a_network_that_cannot_be_loaded_is_named(own_repository: Path) -> None:
    """Triton ends as it starts, and its own words are told."""
    for manifest in own_repository.glob("*/*/manifest.json"):
        manifest.unlink()
    model = onnx.load(own_repository / "minilm_encoder" / "2" / "model.onnx")
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, own_repository / "minilm_encoder" / "2" / "model.onnx")
    before = set(embedded._runs().glob("*"))
    with pytest.raises(ServerError, match=r"(?s)stopped while starting.*cannot load .*model\.onnx") as error:
        start(own_repository, ANY)
    assert len(str(error.value).splitlines()) < 9
    assert set(embedded._runs().glob("*")) == before


def test_a_server_that_is_not_ready_in_time_is_stopped(repository: Path) -> None:
    before = set(embedded._runs().glob("*"))
    with pytest.raises(ServerError, match="not ready after 0 s"):
        start(repository, ANY, timeout=0.2)
    assert set(embedded._runs().glob("*")) == before


def test_stopping_leaves_nothing(repository: Path) -> None:
    server = start(repository, ANY)
    assert server.alive
    assert len(_leftovers(server)) > 3
    assert stop(server) is True
    assert not server.alive
    assert _leftovers(server) == []


def test_the_processes_of_models_end_with_their_server(repository: Path) -> None:
    """By themselves: whoever started the server may be dead too."""
    server = start(repository, ANY)
    models = stubs(server)
    assert len(models) == 2
    # While a model's answer is being taken, its process needs longer: see tests/serving/test_heartbeat.py.
    time.sleep(0.5)
    psutil.Process(server.pid).kill()
    assert _wait_for(lambda: not stubs(server), 10)
    stop(server)


def test_it_finishes_what_runs_before_it_stops(repository: Path) -> None:
    answers: list[object] = []
    with running(repository) as server, GrpcClient(server.grpc) as client:
        client.embed(["warm"])

        def slow() -> None:
            answers.append(client.embed(["many words " * 200] * 24, batch_size=24).shape)

        thread = threading.Thread(target=slow)
        thread.start()
        time.sleep(0.2)
        assert stop(server) is True
        thread.join()
    assert answers == [(24, 384)]


def test_killed_while_clients_call_every_call_ends(repository: Path) -> None:
    """No call hangs: each ends in an answer or a typed error."""
    ended: list[str] = []
    hold = threading.Event()

    def call(kind: type[GrpcClient] | type[HttpClient], url: str) -> None:
        with kind(url, timeout=5.0) as client:
            while not hold.is_set():
                try:
                    client.embed(["a text"] * 8)
                    ended.append("answer")
                except ClientError as error:
                    ended.append(type(error).__name__)
                    if isinstance(error, Unavailable):
                        return
                except BaseException as error:
                    ended.append(f"untyped {error!r}")
                    return

    with running(repository) as server:
        threads = [
            threading.Thread(target=call, args=(kind, url))
            for kind, url in ((GrpcClient, server.grpc), (HttpClient, server.http)) * 3
        ]
        for thread in threads:
            thread.start()
        assert _wait_for(lambda: len(ended) > 20)
        os.kill(server.pid, signal.SIGKILL)
        for thread in threads:
            thread.join(timeout=20)
        alive = [thread for thread in threads if thread.is_alive()]
        hold.set()
        assert not alive
    assert ended.count("Unavailable") == 6
    assert set(ended) == {"answer", "Unavailable"}
    assert _leftovers(server) == []


def test_a_dead_stub_is_noticed(repository: Path) -> None:
    """Triton 2.51 goes on saying ready; one real inference tells."""
    with running(repository) as server:
        assert probe.problem(server.http) is None
        stubs = [
            p for p in psutil.Process(server.pid).children() if "minilm_encoder" in " ".join(p.cmdline())
        ]
        stubs[0].kill()
        assert _wait_for(lambda: probe.problem(server.http, timeout=3.0) is not None)
        with GrpcClient(server.grpc) as client:
            assert client.ready()
            with pytest.raises(ClientError):
                client.embed(["x"], timeout=5.0)


def test_an_older_runtime_is_refused_with_a_way_out(own_repository: Path) -> None:
    path = own_repository / "minilm_encoder" / "2" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["tools"]["onnxruntime"] = "99.1.0"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ServerError, match=r"made with onnxruntime 99\.1\.0, this is .*; upgrade onnxruntime"):
        start(own_repository, ANY)
