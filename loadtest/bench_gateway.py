"""`make bench-gateway`: what the gateway adds to requests, what it costs by itself, and LiteLLM beside it.

A service of `shoal serve` serves an embedder and a decoder, and the gateway stands before it. Callers in a
process of their own ask for the vector of a short text, or for an answer of 32 tokens as a stream: Triton
over HTTP, Triton over gRPC, the gateway, and LiteLLM's proxy before the gateway. A caller sends its next
request once it has its answer. All servers run all the time, and one is asked at a time, in turn. What is
added is the difference of the medians of two servers in the same block.

Then the gateway by itself: a stub in Triton's place answers at once. The CPU time of the gateway's process
is counted, and what it adds for one caller, who asks the stub with and without it, while no model takes the
CPUs. Last, streams in which nothing happens.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from loadtest import gateway_idle
from loadtest.callers import in_a_process, medians
from loadtest.gateway_stub import DECODER, EMBEDDER
from loadtest.neighbours import watched
from loadtest.peers.environment import kept_by, served_by
from loadtest.peers.server import HOST, NotServing, free_port, serving
from serving import service
from serving.launch import launch_with
from serving.ports import Ports
from shoal import machine, show
from shoal.manifest import manifests
from shoal.paths import cache_dir
from shoal.progress import Bars

CALLERS = {"unary": (1, 16), "stream": (1, 4, 16)}
TITLES = {"unary": "the vector of a short text", "stream": "an answer of 32 tokens, as a stream"}
HTTP, GRPC, GATEWAY, LITELLM = "Triton, HTTP", "Triton, gRPC", "gateway", "LiteLLM, gateway"
# What is compared: the first stands before the second, or beside it.
PAIRS = ((GATEWAY, HTTP), (GATEWAY, GRPC), (LITELLM, GATEWAY))
OWN_CALLERS = 16
IDLE_STREAMS = 10_000
err = Console(stderr=True)


@dataclass(frozen=True)
class Way:
    """A server, and how it is asked.

    Attributes:
        protocol: see `bench_gateway_client.asks`.
        url: host:port.
    """

    protocol: str
    url: str


@dataclass(frozen=True)
class Own:
    """The gateway before the stub.

    Attributes:
        url: host:port.
        pid: of the gateway.
        stub: host:port of the stub's HTTP.
        grpc: host:port of the stub's gRPC.
    """

    url: str
    pid: int
    stub: str
    grpc: str


def main() -> None:
    """Measure, print tables, and JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--embedder", default="minilm")
    parser.add_argument("--decoder", default="smollm2")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load in a block")
    parser.add_argument(
        "--peers", nargs="*", choices=["litellm"], default=["litellm"], help="none: leave it out"
    )
    parser.add_argument("--skip-idle", action="store_true", help=f"leave out {IDLE_STREAMS:,} idle streams")
    options = parser.parse_args()
    models = {"unary": options.embedder, "stream": options.decoder}
    for name in models.values():
        if not list(manifests(options.repository, name)):
            sys.exit(f"{options.repository} has no {name}: shoal export makes it")
    machine.allow_all_files()  # servers that are started inherit it
    progress = Bars(err)
    with ExitStack() as servers:
        with progress.step("Start the servers"):
            ways = _started(servers, options.repository, models, options.peers)
            own = _own(servers)
        blocks = []
        for number in range(options.blocks + 1):
            with progress.step(f"Measure block {number}" if number else "Warm up"), watched(err):
                blocks.append(_block(ways, models, own, options.seconds))
        idle = None
        if not options.skip_idle:
            with progress.step("Open idle streams"):
                idle = gateway_idle.measure(own.pid, own.url, own.stub, IDLE_STREAMS)
    del blocks[0]
    rows = medians(blocks)
    out = Console(width=140)
    out.print(machine.name(), highlight=False)
    for load in CALLERS:
        out.print(_loads_table(load, rows["loads"][load], [block["loads"][load] for block in blocks]))
    out.print(_added_table(rows["added"], [block["added"] for block in blocks]))
    out.print(_own_table(rows["own"], [block["own"] for block in blocks]))
    out.print(_alone_table(rows["own"], [block["own"] for block in blocks]))
    if idle is not None:
        out.print(_idle_line(idle), highlight=False)
    print(json.dumps({"machine": machine.describe(), "rows": rows, "idle": idle, "blocks": blocks}))


def _started(
    servers: ExitStack, repository: Path, models: dict[str, str], peers: Sequence[str]
) -> dict[str, Way]:
    """The servers of real models; a peer that cannot run is told, and left out."""
    running = service.start(repository, ports=Ports(0, 0, 0))
    servers.callback(service.stop, running)
    catalogue = running.health.replace("/health", "/catalogue")
    url, _ = servers.enter_context(_gateway(running.grpc, catalogue, "gateway"))
    ways = {HTTP: Way("http", running.http), GRPC: Way("grpc", running.grpc), GATEWAY: Way("openai", url)}
    names = ("--embedding", models["unary"], "--chat", models["stream"])
    for peer in peers:
        arguments = ("--api-base", f"http://{url}/v1", *names, "--cache", kept_by(peer))
        try:
            ways[LITELLM] = Way("openai", servers.enter_context(served_by(peer, "proxy", arguments)))
        except NotServing as error:
            err.print(f"{peer} is left out: {error}", style="yellow", soft_wrap=True)
    return ways


def _own(servers: ExitStack) -> Own:
    """A gateway, and the stub behind it."""
    http, grpc = free_port(), free_port()
    servers.enter_context(_served("loadtest.gateway_stub", http, "stub", f"--grpc-port={grpc}"))
    url, pid = servers.enter_context(
        _gateway(f"{HOST}:{grpc}", f"http://{HOST}:{http}/catalogue", "gateway-alone")
    )
    return Own(url, pid, f"{HOST}:{http}", f"{HOST}:{grpc}")


@contextmanager
def _gateway(triton: str, catalogue: str, name: str) -> Iterator[tuple[str, int]]:
    """A gateway; yields its host:port and process id."""
    port = free_port()
    flags = (f"--triton={triton}", f"--catalogue={catalogue}")
    with _served("serving.gateway", port, name, *flags) as pid:
        yield f"{HOST}:{port}", pid


@contextmanager
def _served(module: str, port: int, name: str, *arguments: str) -> Iterator[int]:
    """A module of ours that serves, with its log in the cache; yields its process id."""
    logs = cache_dir() / "bench-gateway"
    logs.mkdir(parents=True, exist_ok=True)
    command = [*launch_with(os.getpid()), sys.executable, "-m", module, f"--port={port}", *arguments]
    with serving(command, port, logs / f"{name}.log", {}) as pid:
        yield pid


def _block(ways: dict[str, Way], models: dict[str, str], own: Own, seconds: float) -> dict[str, Any]:
    """Each load of each server once, in turn."""
    loads: dict[str, Any] = {}
    for load, model in models.items():
        for callers in CALLERS[load]:
            for name, way in ways.items():
                said = _asked(way, load, model, callers, seconds)
                loads.setdefault(load, {}).setdefault(str(callers), {})[name] = said
    return {
        "loads": loads,
        "added": {
            load: {callers: _added(found) for callers, found in by_callers.items()}
            for load, by_callers in loads.items()
        },
        "own": {load: _alone(own, load, seconds) for load in models},
    }


def _asked(way: Way, load: str, model: str, callers: int, seconds: float) -> dict[str, Any]:
    asked = {"protocol": way.protocol, "url": way.url, "model": model, "load": load}
    return in_a_process("loadtest.bench_gateway_client", asked | {"callers": callers, "seconds": seconds})


def _added(found: dict[str, Any]) -> dict[str, Any]:
    """What one server adds to another one, by `PAIRS`: milliseconds, and its share of the other's rate."""
    added = {}
    for name, base in PAIRS:
        if name in found and base in found:
            times = {key: found[name][key] - found[base][key] for key in ("p50_ms", "p99_ms")}
            added[f"{name} - {base}"] = {**times, "share": found[name]["rate"] / found[base]["rate"]}
    return added


def _alone(own: Own, load: str, seconds: float) -> dict[str, float]:
    """CPU time of the gateway before the stub, in microseconds a request and a part of a stream, and what it
    adds for one caller, in milliseconds."""
    process = psutil.Process(own.pid)
    used = sum(process.cpu_times()[:2])
    model = {"unary": EMBEDDER, "stream": DECODER}[load]
    said = _asked(Way("openai", own.url), load, model, OWN_CALLERS, seconds)
    used = sum(process.cpu_times()[:2]) - used
    ways = {GATEWAY: Way("openai", own.url), GRPC: Way("grpc", own.grpc)}
    one = {name: _asked(way, load, model, 1, seconds) for name, way in ways.items()}
    added = _added(one)[f"{GATEWAY} - {GRPC}"]
    return {
        "added_p50_ms": added["p50_ms"],
        "added_p99_ms": added["p99_ms"],
        "rate": said["rate"],
        "request_us": 1e6 * used / said["requests"],
        "part_us": 1e6 * used / said["parts"],
        "p50_ms": said["p50_ms"],
    }


def _loads_table(load: str, rows: dict[str, Any], blocks: Sequence[dict[str, Any]]) -> Any:
    """Medians of blocks, with their ranges."""
    what = "first token" if load == "stream" else "answer"
    columns = ["#callers", "server", "#requests/s", f"#{what} p50 ms", "#p99 ms"]
    if load == "stream":
        columns += ["#tokens/s", "#client us a part"]
    made = show.table(f"{TITLES[load]}: medians (ranges) of blocks", columns)
    for callers, ways in rows.items():
        for name, row in ways.items():
            each = partial(_range, [block[callers][name] for block in blocks], row)
            cells = [each("rate"), each("p50_ms"), each("p99_ms")]
            if load == "stream":
                cells += [each("parts_rate"), f"{row['part_us']:.0f}"]
            made.add_row(callers, name, *cells)
    return made


def _added_table(rows: dict[str, Any], blocks: Sequence[dict[str, Any]]) -> Any:
    columns = ["load", "#callers", "added by - to", "#p50 ms", "#p99 ms", "#share of its requests/s"]
    made = show.table("what is added, in the same block (of a stream: to its first token)", columns)
    for load, by_callers in rows.items():
        for callers, pairs in by_callers.items():
            for pair, row in pairs.items():
                each = partial(_range, [block[load][callers][pair] for block in blocks], row)
                made.add_row(load, callers, pair, each("p50_ms"), each("p99_ms"), f"{row['share']:.0%}")
    return made


def _own_table(rows: dict[str, Any], blocks: Sequence[dict[str, Any]]) -> Any:
    title = f"the gateway by itself, {OWN_CALLERS} callers: its CPU time, and what a core could do"
    made = show.table(title, ["", "#us", "#a second and core", "#requests/s here"])
    for name, load, key in (
        ("request for a vector", "unary", "request_us"),
        ("stream of 64 parts", "stream", "request_us"),
        ("part of it", "stream", "part_us"),
    ):
        each: Callable[[str], str] = partial(_range, [block[load] for block in blocks], rows[load])
        made.add_row(name, each(key), f"{1e6 / rows[load][key]:,.0f}", each("rate"))
    return made


def _alone_table(rows: dict[str, Any], blocks: Sequence[dict[str, Any]]) -> Any:
    title = "what the gateway adds for one caller of the stub, whose CPUs no model takes"
    made = show.table(title, ["", "#p50 ms", "#p99 ms"])
    for name, load in (("request for a vector", "unary"), ("first part of a stream", "stream")):
        each: Callable[[str], str] = partial(_range, [block[load] for block in blocks], rows[load])
        made.add_row(name, each("added_p50_ms"), each("added_p99_ms"))
    return made


def _idle_line(idle: dict[str, float]) -> str:
    fewer = " (as many as this system's limit of files allows)" if idle["streams"] < IDLE_STREAMS else ""
    before, rss = (idle[key] / 2**20 for key in ("rss_before", "rss"))
    return (
        f"{idle['streams']:,} idle streams{fewer}: {rss:.0f} MiB of memory and {idle['cpus']:.0%} of a CPU;"
        f" without them {before:.0f} MiB. {idle['ended']:,} ended when told, the last after"
        f" {idle['end_seconds']:.1f} s."
    )


def _range(blocks: Sequence[dict[str, float]], row: dict[str, float], key: str) -> str:
    values = [block[key] for block in blocks]
    digits = 0 if abs(row[key]) >= 100 else 1 if abs(row[key]) >= 10 else 2
    return f"{row[key]:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
