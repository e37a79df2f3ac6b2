"""`docker compose up` on a real engine: what answers, what is closed, what comes back, what is left.

Run by `make test-compose`.

PYTHON_IMAGE and PROMETHEUS_IMAGE name other images where the usual ones cannot be pulled;
`PROMETHEUS_IMAGE=debian` builds one from Debian's package.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import tritonclient.grpc as triton_grpc
from openai import OpenAI
from sklearn.datasets import load_breast_cancer
from tritonclient.utils import InferenceServerException

from clients import ClientError, GrpcClient, HttpClient, Tls, Unavailable
from shoal.admin import GRPC_HEADER, HEADER
from tests.compose.engine import PROJECT, ROOT, Service, has_engine

pytestmark = [
    pytest.mark.compose,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not has_engine(), reason="there is no Docker engine"),
]
TLS = ROOT / "deploy" / "tls"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    images = {}
    if os.environ.get("PROMETHEUS_IMAGE") == "debian":
        images = {"PROMETHEUS_IMAGE": "shoal-test-prometheus"}
    made = Service(**images)
    had_certificates = TLS.exists()
    try:
        if images:
            base = f"--build-arg=PYTHON_IMAGE={os.environ['PYTHON_IMAGE']}"
            file = ["-t", "shoal-test-prometheus", "-f", "tests/compose/prometheus.Dockerfile"]
            made.docker("build", "--network=host", *file, base, "tests/compose", timeout=600)
        for name in ("export", "triton", "gateway", "locust"):
            made.build(name)
        made.compose("down", "--volumes", "--remove-orphans")
        start = time.monotonic()
        made.compose("up", "--detach", "triton")
        exported = time.monotonic() - start
        made.wait_healthy()
        with GrpcClient(made.grpc) as client:
            client.embed(["Fish swim in shoals."])
        taken = time.monotonic() - start
        print(f"\nfrom up to the first answer: {taken:.1f} s, of which {exported:.1f} s export")
        yield made
    finally:
        made.compose("down", "--volumes", "--remove-orphans")
        if not had_certificates:  # those that the page makes
            shutil.rmtree(TLS, ignore_errors=True)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_all_models_answer_from_the_host(service: Service, protocol: str) -> None:
    kind = {"grpc": GrpcClient, "http": HttpClient}[protocol]
    with kind(getattr(service, protocol), timeout=60.0) as client:
        assert client.embed(["Fish swim in shoals."]).shape == (1, 384)
        assert (
            "paris" in client.complete("The capital of France is", max_tokens=12, temperature=0).text.lower()
        )
        (label, *_) = client.classify_rows(load_breast_cancer().data[:1], model="forest")[0]
        assert label.label in ("malignant", "benign") and 0.5 <= label.score <= 1


def test_the_gateway_answers_openais_sdk_from_the_host(service: Service) -> None:
    service.compose("up", "--detach", "gateway")
    service.wait_healthy("gateway")
    url = f"http://127.0.0.1:{service.ports['GATEWAY_PORT']}/v1"
    with OpenAI(base_url=url, api_key="none", timeout=60) as client, GrpcClient(service.grpc) as direct:
        given = client.embeddings.create(model="minilm", input="Fish swim in shoals.").data[0].embedding
        assert given == pytest.approx(direct.embed(["Fish swim in shoals."])[0].tolist(), abs=1e-5)
        asked = {"model": "smollm2", "messages": [{"role": "user", "content": "Name a fish."}]}
        answer = client.chat.completions.create(**asked, max_tokens=8, temperature=0)
        stream = client.chat.completions.create(**asked, max_tokens=8, temperature=0, stream=True)
        deltas = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(deltas) == answer.choices[0].message.content
    packages = service.inside("gateway", "ls", "/opt/shoal/lib/python3.11/site-packages").split()
    assert not {"torch", "transformers", "onnxruntime", "pytriton"} & set(packages)
    state = service.state("gateway")
    assert state["HostConfig"]["ReadonlyRootfs"] and not state["HostConfig"]["CapAdd"]
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9464/metrics').read().decode())"
    assert "shoal_gateway_requests_total{" in service.inside("gateway", "python3", "-c", code)


def test_the_image_is_slim_and_holds_no_secret(service: Service) -> None:
    size = int(service.docker("image", "inspect", "--format={{.Size}}", "shoal-serve")) / 1e6
    print(f"\nimage: {size:.0f} MB")
    assert size < 830
    packages = service.inside("triton", "ls", "/opt/shoal/lib/python3.11/site-packages").split()
    assert not {"torch", "transformers", "optimum"}.intersection(packages)
    described = service.docker("image", "inspect", "shoal-serve") + service.docker(
        "history", "--no-trunc", "shoal-serve"
    )
    key = service.inside("triton", "cat", "/var/lib/shoal/admin_key").strip()
    assert len(key) == 64
    logs = service.compose("logs", "--no-color", "triton")
    assert key not in described and key not in logs
    assert not re.search(r"(?i)(password|secret|token|api_?key)=\S", described)


def test_it_runs_as_nobody_in_particular(service: Service) -> None:
    state = service.state("triton")
    host = state["HostConfig"]
    assert service.inside("triton", "id", "-u").strip() == "1000"
    assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and host["Memory"] and host["NanoCpus"]
    assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"])
    bound = {binding["HostIp"] for ports in host["PortBindings"].values() for binding in ports or []}
    assert bound == {"127.0.0.1"}
    assert set(host["PortBindings"]) == {"8000/tcp", "8001/tcp"}
    with pytest.raises(AssertionError, match="Read-only file system"):
        service.inside("triton", "touch", "/opt/shoal/mine")
    assert float(re.search(r"^shoal_cpus (\S+)", service.watch("/metrics"), re.MULTILINE)[1]) <= 2  # type: ignore[index]


def test_the_servers_own_endpoints_are_closed(service: Service) -> None:
    key = service.inside("triton", "cat", "/var/lib/shoal/admin_key").strip()
    url = f"http://{service.http}/v2/models/minilm/config"
    for headers in ({}, {HEADER: "0" * 64}):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10)
        assert error.value.code == 403
    assert (
        urllib.request.urlopen(urllib.request.Request(url, headers={HEADER: key}), timeout=10).status == 200
    )
    with triton_grpc.InferenceServerClient(service.grpc) as client:
        with pytest.raises(InferenceServerException, match="restricted"):
            client.register_system_shared_memory("mine", "/mine", 64)
        with pytest.raises(InferenceServerException, match="restricted"):
            client.get_model_repository_index(headers={GRPC_HEADER: "0" * 64})
        with pytest.raises(InferenceServerException, match=r"restricted|explicit|not allowed"):
            client.load_model("minilm")
        with pytest.raises(InferenceServerException):  # model control is off for who has the key, too
            client.load_model("minilm", headers={GRPC_HEADER: key})


def test_equal_texts_are_answered_from_the_cache(service: Service) -> None:
    with GrpcClient(service.grpc) as client:
        for _ in range(3):
            client.embed(["Fish swim in shoals, again and again."])
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8002/metrics').read().decode())"
    metrics = service.inside("triton", "python3", "-c", code)
    hits = re.search(r'nv_cache_num_hits_per_model\{model="minilm",version="1"\} (\S+)', metrics)
    assert hits and float(hits[1]) >= 2


def test_locust_loads_it_from_its_container(service: Service) -> None:
    flags = [
        "--headless",
        "--users=4",
        "--spawn-rate=4",
        "--run-time=10s",
        "--only-summary",
        "--model=minilm",
    ]
    urls = ["--grpc-url=triton:8001", "--http-url=triton:8000"]
    file = "/opt/shoal/locust/locustfile.py"
    print(service.compose("run", "--rm", "locust", "locust", "-f", file, *flags, *urls)[-1500:])


def test_prometheus_sees_it(service: Service) -> None:
    if not os.environ.get("PROMETHEUS_IMAGE"):
        pytest.skip("PROMETHEUS_IMAGE names no image; the default one may not be here")
    service.compose("up", "--detach", "prometheus")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            targets = service.prometheus("targets")["activeTargets"]
            if targets and all(target["health"] == "up" for target in targets):
                break
        except OSError:
            pass
        time.sleep(1)
    assert {target["labels"]["job"]: target["health"] for target in targets} == {
        "triton": "up",
        "supervisor": "up",
        "gateway": "up",
    }
    groups = service.prometheus("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert rules and all(rule["health"] in ("ok", "unknown") for rule in rules)
    assert sum(rule["type"] == "alerting" for rule in rules) >= 8
    found = service.prometheus("query?query=shoal_probe_success")["result"]
    assert {entry["metric"]["model"]: entry["value"][1] for entry in found} == {
        "minilm": "1", "smollm2": "1", "forest": "1"
    }  # fmt: skip


class Load:
    """Callers that go on whatever happens, and what became of each request."""

    def __init__(self, service: Service, callers: int = 4) -> None:
        self.ends: Counter[str] = Counter()
        self.errors: dict[str, str] = {}
        self.failed_for = 0.0
        self._stop = threading.Event()
        self._last = time.monotonic()
        self._threads = [threading.Thread(target=self._call, args=[service]) for _ in range(callers)]

    def _call(self, service: Service) -> None:
        number = 0
        with GrpcClient(service.grpc, timeout=10.0) as client:
            while not self._stop.is_set():
                number += 1
                start = time.monotonic()
                try:
                    client.embed([f"Fish swim in shoals {threading.get_ident()} {number}."])
                    end = "answered"
                    self.failed_for = max(self.failed_for, time.monotonic() - self._last)
                    self._last = time.monotonic()
                except ClientError as error:
                    end = type(error).__name__
                    self.errors[end] = str(error)
                    time.sleep(0.02)
                if time.monotonic() - start > 12.0:
                    end = "lost"
                self.ends[end] += 1

    @contextmanager
    def running(self) -> Iterator[Load]:
        """For the length of a `with` block."""
        for thread in self._threads:
            thread.start()
        time.sleep(2)
        self._last = time.monotonic()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(30)
            assert not any(thread.is_alive() for thread in self._threads)


def _kill_stub(service: Service) -> None:
    code = "import psutil; [p.kill() for p in psutil.process_iter() if 'stub' in p.name()][:1]"
    service.inside("triton", "python3", "-c", code)


def _kill_server(service: Service) -> None:
    code = "import psutil; [p.kill() for p in psutil.process_iter() if p.name() == 'tritonserver']"
    service.inside("triton", "python3", "-c", code)


def _kill_container(service: Service) -> None:
    """As a crash, so that the restart policy brings it back; by hand where it is not of this machine."""
    pid, name = service.state("triton")["State"]["Pid"], service.container("triton")
    try:
        ours = name in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        ours = False
    if ours:
        os.kill(pid, signal.SIGKILL)
    else:
        service.docker("kill", "--signal=KILL", name)
        service.docker("start", name)


def _restart(service: Service) -> None:
    service.compose("restart", "triton")


@pytest.mark.parametrize(
    "harm", [_kill_stub, _kill_server, _kill_container, _restart], ids=lambda harm: harm.__name__
)
def test_it_comes_back_and_no_request_is_lost(service: Service, harm: Callable[[Service], None]) -> None:
    """Under load: every request ends in an answer or a typed error within its deadline."""
    service.wait_healthy()
    with Load(service).running() as load:
        begun = time.monotonic()
        since = datetime.now(timezone.utc)
        harm(service)
        while load.failed_for < 0.5 and time.monotonic() - begun < 120:
            time.sleep(0.1)
        time.sleep(2)
    sent = sum(load.ends.values())
    refused = sent - load.ends["answered"] - load.ends["lost"]
    print(
        f"\n{harm.__name__.strip('_')}: without an answer for {load.failed_for:.1f} s; {sent} sent, "
        f"{load.ends['answered']} answered, {refused} refused with a typed error, {load.ends['lost']} lost: "
        f"{dict(load.ends)}"
    )
    assert set(load.ends) <= {"answered", "Unavailable", "Timeout"}, load.errors
    assert load.ends["lost"] == 0 and load.ends["answered"] > 10
    assert 0 < load.failed_for < 60
    service.wait_healthy()
    if harm in (_kill_stub, _kill_server):
        lost, served = service.said("not serving", since), service.said("serving", since)
        detected, recovered = lost["at"] - since, served["at"] - lost["at"]
        print(
            f"noticed after {detected.total_seconds():.2f} s, serving again {recovered.total_seconds():.2f} s"
            f" later, of which models loaded for {served['seconds']} s"
        )
        assert detected < timedelta(seconds=3)
        assert recovered < timedelta(seconds=served["seconds"] + 5)


def test_versions_change_under_load_and_no_request_is_refused(service: Service) -> None:
    """Of an encoder and of a decoder, there and back."""
    service.wait_healthy()
    for model, version in [("minilm", "1"), ("smollm2", "2")]:
        for change in (["promote", model, version], ["rollback", model]):
            with Load(service).running() as load, GrpcClient(service.grpc, timeout=60.0) as client:
                since = datetime.now(timezone.utc)
                service.compose("run", "--rm", "export", "shoal", *change, "-r", "/models")
                told = time.monotonic()
                answers = 0
                while not (changed := service.said("serving new versions", since, missing={})):
                    assert time.monotonic() - told < 120, service.compose("logs", "--tail=20", "triton")
                    answers += bool(client.complete("The capital of France is", max_tokens=8).text)
                time.sleep(2)
            taken = (changed["at"] - since).total_seconds()
            print(
                f"\n{' '.join(change)}: served {taken:.1f} s after the command was given;"
                f" {sum(load.ends.values())} texts sent, {load.ends['answered']} answered,"
                f" {answers} completions answered"
            )
            assert set(load.ends) == {"answered"}, load.errors
            assert answers and model in changed["models"]
    assert service.said("not serving", since, missing={}) == {}


def test_plain_text_on_the_tls_port_is_refused(service: Service) -> None:
    """Certificates of one command; who speaks TLS and trusts them is answered, mutual or not."""
    service.shell("deploy/certificates deploy/tls")
    for mutual in (False, True):
        secured = Service(
            "docker-compose.yml", "deploy/compose.tls.yml", CLIENT_CA="/run/tls/ca.pem" * mutual
        )
        secured.ports = service.ports
        secured.environment |= {name: str(port) for name, port in service.ports.items()}
        secured.compose("up", "--detach", "triton")
        secured.wait_healthy()
        own = {"certificate": TLS / "client.pem", "key": TLS / "client.key"}
        with GrpcClient(secured.grpc, tls=Tls(TLS / "ca.pem", **own if mutual else {})) as client:
            assert client.embed(["Fish swim in shoals."]).shape == (1, 384)
        strangers = [None, Tls(TLS / "ca.pem")] if mutual else [None]
        for tls in strangers:
            with GrpcClient(secured.grpc, timeout=5.0, tls=tls) as client, pytest.raises(Unavailable):
                client.embed(["Fish swim in shoals."])
    service.compose("up", "--detach", "triton")
    service.wait_healthy()


@pytest.mark.parametrize("page", ["operations.md", "drift.md", "security.md"])
def test_the_pages_commands_run(service: Service, page: str) -> None:
    """Each block of commands of a page, from top to bottom, on this service."""
    text = (ROOT / "docs" / page).read_text()
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if "docker compose" in block:
            service.shell(block)
            service.wait_healthy()


def test_down_leaves_nothing(service: Service) -> None:
    service.compose("down", "--volumes", "--remove-orphans")
    for kind in ("ps", "volume", "network"):
        listing = ["ps", "-aq"] if kind == "ps" else [kind, "ls", "-q"]
        left = service.docker(*listing, f"--filter=label=com.docker.compose.project={PROJECT}")
        assert not left.split(), kind
