"""How long requests waited in front of each model, by Triton's own statistics, apart from how long they ran.

Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md. The
engine of a decoder takes requests from Triton at once and has a queue of its own, which is in the time to the
first token.
"""

from __future__ import annotations

import json
import urllib.request
from http.client import HTTPException
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from shoal.admin import GRPC_HEADER, HEADER, key_from_environment

TIMEOUT_SECONDS = 5.0
Statistics = dict[str, dict[str, int]]


def statistics(grpc_url: str, http_url: str) -> Statistics:
    """Requests so far, and nanoseconds that they waited and ran, by model; empty where the server tells none.

    Args:
        grpc_url, http_url: host:port; one of them may be "-".
    """
    try:
        rows = _over_http(http_url) if http_url != "-" else _over_grpc(grpc_url)
    except (OSError, HTTPException, ValueError, KeyError, TypeError, grpc.RpcError):
        return {}
    found: Statistics = {}
    for name, counts in rows:  # a model that is being replaced has two versions
        sums = found.setdefault(name, dict.fromkeys(counts, 0))
        for key, value in counts.items():
            sums[key] += value
    return found


def between(before: Statistics, after: Statistics, model: str) -> dict[str, dict[str, float]]:
    """By model: `requests`, and the mean `queue_ms` and `run_ms` of one.

    Args:
        model: that was tested. Models with less than a tenth of its requests are left out: they are no steps
            of it, and a supervisor asks each model now and then.
    """
    made = {}
    for name, now in after.items():
        then = before.get(name, dict.fromkeys(now, 0))
        count = now["requests"] - then["requests"]
        if count > 0:
            made[name] = {
                "requests": count,
                "queue_ms": (now["queue"] - then["queue"]) / count / 1e6,
                "run_ms": (now["run"] - then["run"]) / count / 1e6,
            }
    least = made[model]["requests"] / 10 if model in made else 0.0
    return {name: row for name, row in made.items() if row["requests"] >= least}


def _over_http(url: str) -> list[tuple[str, dict[str, int]]]:
    key = key_from_environment()
    request = urllib.request.Request(f"http://{url}/v2/models/stats", headers={HEADER: key} if key else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy gets to see the key
    with opener.open(request, timeout=TIMEOUT_SECONDS) as page:
        rows = json.load(page)["model_stats"]
    return [
        (
            row["name"],
            {
                "requests": int(row["inference_stats"]["success"].get("count", 0)),
                "queue": int(row["inference_stats"]["queue"].get("ns", 0)),
                "run": int(row["inference_stats"]["compute_infer"].get("ns", 0)),
            },
        )
        for row in rows
    ]


def _over_grpc(url: str) -> list[tuple[str, dict[str, int]]]:
    key = key_from_environment()
    with grpc.insecure_channel(url) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        rows = stub.ModelStatistics(
            pb.ModelStatisticsRequest(),
            timeout=TIMEOUT_SECONDS,
            metadata=((GRPC_HEADER, key),) if key else (),
        ).model_stats
    return [
        (
            row.name,
            {
                "requests": row.inference_stats.success.count,
                "queue": row.inference_stats.queue.ns,
                "run": row.inference_stats.compute_infer.ns,
            },
        )
        for row in rows
    ]
