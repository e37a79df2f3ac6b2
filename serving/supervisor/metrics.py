"""The port of the supervisor.

Prometheus reads `/metrics`, a load balancer and the container's health check read `/health`, and a gateway in
front of the server reads `/catalogue` and, of a model that users call, `/catalogue/NAME/tokenizer`. Nobody
needs a key for them, and none of them changes anything.

`POST /drain` lets `/health` say 503 while the server goes on answering, so that whoever balances load sends
new requests elsewhere; `DELETE /drain` takes that back. Both are for programs on the same machine, or in the
same container or pod (a preStop hook), and for no page in a browser.
"""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import msgspec
import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from serving.catalogue import Catalogue, catalogue, tokenizer_of
from serving.embedded import Server, stubs
from serving.supervisor.readiness import Health
from serving.supervisor.snapshot import ModelSpec
from shoal.errors import ServerError
from shoal.machine import available_cpus

STUCK_SECONDS = 15.0  # it looks four times a second
_TEXT, _JSON = "text/plain; charset=utf-8", "application/json"
_TOKENIZER = re.compile(r"/catalogue/([^/]+)/tokenizer")


class Metrics:
    """Everything that is counted, and the port it is read from.

    Args:
        served: gives what the server has loaded; it is called from other threads, while a server runs.

    Raises:
        ServerError: the port cannot be had.
    """

    def __init__(self, address: str, port: int, served: Callable[[], Mapping[str, ModelSpec]] = dict) -> None:
        self.registry = CollectorRegistry()
        self.server: Server | None = None
        self._served = served
        self._problem: str | None = "starting"
        self._draining = self._leaving = False
        self._looked = time.monotonic()
        self._success = self._gauge(
            "shoal_probe_success", "1: the model answered its last question", ["model"]
        )
        self._seconds = self._gauge("shoal_probe_seconds", "That answer took so long", ["model"])
        self._failures = Counter(
            "shoal_probe_failures", "Questions without an answer", ["model", "reason"], registry=self.registry
        )
        self._restarts = Counter(
            "shoal_restarts", "Starts after the first", ["reason"], registry=self.registry
        )
        self._up = self._gauge("shoal_server_up", "1: every model answered after the last start")
        self._start = self._gauge("shoal_server_start_seconds", "The last start took so long until then")
        self._refused = self._gauge(
            "shoal_upgrade_refused", "1: the repository shows what cannot be served; what was served still is"
        )
        self._drains = self._gauge("shoal_draining", "1: it answers, and new requests should go elsewhere")
        self._gauge("shoal_cpus", "CPUs that may be used").set(available_cpus())
        self.registry.register(_Processes(self))
        self._told: dict[tuple[str, str], int] = {}
        self._listener = _listen(self, address, port)

    def _gauge(self, name: str, text: str, labels: list[str] | None = None) -> Gauge:
        return Gauge(name, text, labels or [], registry=self.registry)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._listener.server_address[1])

    @property
    def problem(self) -> str | None:
        """Why requests should go elsewhere: what keeps them from being answered, or the supervisor from
        noticing that, or that it drains; None: nothing.
        """
        still = time.monotonic() - self._looked
        if self._problem is None and still > STUCK_SECONDS:
            return f"the supervisor has not looked at its server for {still:.0f} s; the disk may hang"
        if self._problem is None and self._draining:
            return "draining: it answers, and new requests should go elsewhere"
        return self._problem

    def drain(self, draining: bool) -> bool:
        """Whether new requests should go elsewhere, though the server answers them.

        Returns:
            What holds now: a server that is about to stop drains whatever is asked for.
        """
        self._draining = draining or self._leaving
        self._drains.set(self._draining)
        return self._draining

    def leave(self) -> None:
        """The server is about to stop: it drains until then."""
        self._leaving = True
        self.drain(True)

    def catalogue(self) -> Catalogue:
        """What is served now; no models while no server runs."""
        # Read before `problem`: a server that ends meanwhile is then not told to be ready.
        server = self.server
        if server is None:
            return Catalogue(models=[], ready=False, grpc=0, http=0)
        models = catalogue(server.repository, self._served())
        ready = self.problem is None
        return Catalogue(models=models, ready=ready, grpc=server.ports.grpc, http=server.ports.http)

    def tokenizer(self, model: str) -> tuple[bytes, str] | None:
        """`tokenizer.json` of a model that is served now, and the version's tag; None: there is none."""
        server = self.server
        return None if server is None else tokenizer_of(server.repository, model, self._served())

    def started(self, server: Server, seconds: float) -> None:
        """Every model of a server has answered."""
        self.server, self._problem, self._looked = server, None, time.monotonic()
        self._told.clear()
        self._refused.set(0)
        self._up.set(1)
        self._start.set(seconds)

    def ready(self, problem: str | None) -> None:
        """What keeps a server that runs from answering; None: nothing. To be said again and again."""
        self._problem, self._looked = problem, time.monotonic()

    def ended(self, reason: str) -> None:
        """The server does not serve any more."""
        self.server, self._problem = None, reason
        self._up.set(0)
        self._success.clear()

    def upgraded(self, refused: bool) -> None:
        """The repository shows something else, which is served now, or refused."""
        self._refused.set(refused)
        if not refused:  # models may have gone
            self._success.clear()
            self._seconds.clear()

    def restarted(self, reason: str) -> None:
        """It is started again."""
        self._restarts.labels(reason).inc()

    def told(self, model: str, health: Health) -> None:
        """A model has answered, or has not."""
        self._success.labels(model).set(health.failures == 0)
        self._seconds.labels(model).set(health.seconds)
        for reason, count in health.failed.items():
            known = self._told.get((model, reason), 0)
            # Whoever watches other versions counts from nothing.
            self._failures.labels(model, reason).inc(count - known if count >= known else count)
            self._told[model, reason] = count

    def close(self) -> None:
        """Give the port back."""
        self._listener.shutdown()
        self._listener.server_close()


class _Processes:
    """Memory and CPU time of the server and its stubs, looked up when they are asked for."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._spent: dict[psutil.Process, float] = {}

    def collect(self) -> Iterator[Metric]:
        server, memory = self._metrics.server, 0
        try:
            processes = [psutil.Process(server.pid), *stubs(server)] if server else []
        except psutil.NoSuchProcess:
            processes = []
        for process in processes:
            try:
                # Of what several share (libraries, shared memory) each has its part.
                memory += process.memory_full_info().pss
                times = process.cpu_times()
                self._spent[process] = times.user + times.system
            except psutil.Error:
                continue
        yield GaugeMetricFamily("shoal_memory_bytes", "Of the server and its models", value=memory)
        spent = sum(self._spent.values())
        yield CounterMetricFamily("shoal_cpu_seconds", "Of the server and its models", value=spent)


def _listen(metrics: Metrics, address: str, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0  # seconds for the next line of a request: who sends half of one keeps no thread

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, generate_latest(metrics.registry), CONTENT_TYPE_LATEST)
            elif path == "/health":
                problem = metrics.problem
                body = (problem or "serving") + "\n"
                self._answer(503 if problem else 200, body.encode(), _TEXT)
            elif path == "/catalogue":
                self._answer(200, msgspec.json.encode(metrics.catalogue()), _JSON)
            elif asked := _TOKENIZER.fullmatch(path):
                found = metrics.tokenizer(unquote(asked[1]))
                if found is None:
                    self._answer(404, b"no such model is served, or it has no tokenizer.json\n", _TEXT)
                else:
                    self._answer(200, found[0], _JSON, found[1])
            else:
                self._answer(404, b"there is /metrics, /health and /catalogue\n", _TEXT)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            self._drain(True)

        def do_DELETE(self) -> None:
            self._drain(False)

        def _drain(self, draining: bool) -> None:
            if self.path.partition("?")[0] != "/drain":
                self._answer(404, b"there is POST /drain and DELETE /drain\n", _TEXT)
            elif not self._is_local():
                self._answer(
                    403, b"only programs on the same machine, or in the same container, may\n", _TEXT
                )
            else:
                self._answer(200, b"draining\n" if metrics.drain(draining) else b"serving\n", _TEXT)

        def _is_local(self) -> bool:
            """A browser sends `Origin` with such requests; `curl` and hooks do not."""
            peer = ipaddress.ip_address(self.client_address[0].partition("%")[0])
            peer = getattr(peer, "ipv4_mapped", None) or peer
            return peer.is_loopback and "Origin" not in self.headers

        def _answer(self, status: int, body: bytes, kind: str, tag: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if tag:
                self.send_header("ETag", f'"{tag}"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Scrapes are not news."""

    class Listener(ThreadingHTTPServer):
        # Connections that wait. Of 5, the default, a few idle ones keep the others out.
        request_queue_size = 256

        def handle_error(self, *_: object) -> None:
            """Whoever asked has left."""

    try:
        listener = Listener((address, port), Handler)
    except OSError as error:
        raise ServerError(f"port {port} cannot be had: {error.strerror}") from error
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    return listener
