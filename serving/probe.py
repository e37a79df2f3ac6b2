"""Is a server really serving? Its own word, and one real inference of every model users call.

A Python stub that died leaves Triton's readiness at 200, so the word alone is not enough. Plain HTTP
from the standard library: a health check must not need a client library.
"""

from __future__ import annotations

import base64
import hmac
import http.client
import json
import os
import struct
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.dialect import SAMPLING, TEXT_INPUT

Headers = Mapping[str, str]
# Environment variable of whoever starts a server: no full queue refuses a request whose parameter
# `shoal_probe` has its value, and a model that keeps its queue itself answers it before all others.
PROBE_KEY = "SHOAL_PROBE_KEY"
PARAMETER = "shoal_probe"
BUSY = (429, 503)  # a model refuses because it has too much to do: an answer
_NOT_LIVE = 400  # Triton listens once it has begun to serve, or has failed to
# A value of each kind that any model takes; -1 dims become 1.
_SAMPLES: dict[str, Any] = {"BYTES": "ready?", "BOOL": True}


def problem(address: str, *, timeout: float = 5.0, headers: Headers | None = None) -> str | None:
    """What keeps the server at `host:port` from serving, or None.

    Args:
        timeout: seconds for each of the calls.
        headers: that every call carries: the key of endpoints that are closed.
    """
    try:
        for question in questions(address, timeout=timeout, headers=headers):
            send(question.request(), timeout=timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return reason_of(error)
    return None


def is_probe(parameters: Mapping[str, Any]) -> bool:
    """Whether a request with these parameters knows the key of whoever started the server."""
    key = os.environ.get(PROBE_KEY, "")
    return bool(key) and hmac.compare_digest(str(parameters.get(PARAMETER, "")).encode(), key.encode())


class NeverStarts(Exception):
    """A server runs, and will serve nothing: with `--exit-on-error=false` it stays, to say so."""


def starting(address: str, *, timeout: float = 5.0, headers: Headers | None = None) -> str | None:
    """What keeps the server at `host:port` from having started, whether or not it could load its models.

    Raises:
        NeverStarts: it says of itself that it has failed.
    """
    try:
        send(request(f"{address}/v2/health/live", headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == _NOT_LIVE:
            raise NeverStarts from error
        return reason_of(error)
    except (OSError, http.client.HTTPException) as error:
        return reason_of(error)
    return None


@dataclass(frozen=True)
class Question:
    """The smallest inference of one model.

    Attributes:
        varied: whether each must have another text: the model's answers are cached, and what comes out of a
            cache proves nothing.
    """

    model: str
    url: str
    body: Any
    headers: Headers
    varied: bool

    def request(self) -> urllib.request.Request:
        """The HTTP request that asks it."""
        body = self.body
        if self.varied:
            body = json.loads(json.dumps(body))
            for tensor in body["inputs"]:
                if tensor["datatype"] == "BYTES":
                    tensor["data"][0] = f"{tensor['data'][0]} {time.time_ns()}"
        return request(self.url, body, self.headers)


def answered(question: Question, *, timeout: float = 5.0) -> int:
    """How many requests its model has answered since it was loaded, those from a cache not counted.

    Raises:
        OSError: the server does not answer.
        ValueError, KeyError, http.client.HTTPException: it is not Triton.
    """
    url = f"{question.url.rpartition('/')[0]}/stats"
    versions = _json(url, timeout, question.headers)["model_stats"]
    return sum(int(version["inference_count"]) for version in versions)


def questions(address: str, *, timeout: float = 5.0, headers: Headers | None = None) -> list[Question]:
    """One for each model that users call.

    Raises:
        OSError: the server is not ready, or does not answer.
        ValueError, http.client.HTTPException: it is not Triton.
    """
    headers = headers or {}
    send(request(f"{address}/v2/health/ready", headers=headers), timeout=timeout)
    return [smallest(address, name, timeout, headers) for name in _entry_models(address, timeout, headers)]


def not_loaded(address: str, *, timeout: float, headers: Headers) -> dict[str, str]:
    """Models of which no version is ready -> why. Triton gives an ensemble no reason; it is "" then.

    Raises:
        OSError: the server does not answer.
        ValueError, http.client.HTTPException: it is not Triton.
    """
    index = _json(f"{address}/v2/repository/index", timeout, headers, {})
    ready = {entry["name"] for entry in index if entry.get("state") == "READY"}
    reasons = {entry["name"]: str(entry.get("reason") or "") for entry in index}
    return {name: reason for name, reason in reasons.items() if name not in ready}


def control(address: str, model: str, action: str, *, timeout: float, headers: Headers) -> None:
    """Have a server `load` or `unload` a model; returns when that is done.

    Raises:
        OSError: it was not; `urllib.error.HTTPError`: the server says why.
    """
    send(request(f"{address}/v2/repository/models/{model}/{action}", {}, headers), timeout=timeout)


def infer(
    address: str, model: str, inputs: list[dict[str, Any]], *, timeout: float = 5.0
) -> list[dict[str, Any]]:
    """Outputs of a model from its inputs, as KServe's protocol writes both in JSON.

    Raises:
        OSError: there is no answer, or it is an error.
        ValueError, KeyError, http.client.HTTPException: it is not Triton.
    """
    return list(_json(f"{address}/v2/models/{model}/infer", timeout, {}, {"inputs": inputs})["outputs"])


def send(request: urllib.request.Request, *, timeout: float = 5.0) -> bytes:
    """The body of the answer.

    Raises:
        OSError: there is none, or it is an error: `urllib.error.HTTPError`.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is never proxied
    with opener.open(request, timeout=timeout) as response:
        return bytes(response.read())


def reason_of(error: Exception) -> str:
    """Say in one line why a question had no answer."""
    if isinstance(error, urllib.error.HTTPError):
        return f"/{error.url.split('/', 3)[3]} answers {error.code}: {_body(error)}"
    return str(error) or type(error).__name__


def _entry_models(address: str, timeout: float, headers: Headers) -> list[str]:
    """Models that users call: all that are ready but the steps of an ensemble."""
    index = _json(f"{address}/v2/repository/index", timeout, headers, {})
    ready = [entry["name"] for entry in index if entry.get("state") == "READY"]
    steps: set[str] = set()
    for name in ready:
        config = _json(f"{address}/v2/models/{name}/config", timeout, headers)
        steps.update(step["model_name"] for step in config.get("ensemble_scheduling", {}).get("step", []))
    return [name for name in dict.fromkeys(ready) if name not in steps]


def smallest(address: str, model: str, timeout: float, headers: Headers) -> Question:
    """A question on the smallest input that the model's metadata allows; for a decoder, one token."""
    url = f"{address}/v2/models/{model}"
    config = _json(f"{url}/config", timeout, headers)
    if config.get("model_transaction_policy", {}).get("decoupled"):  # not to be had through `infer`
        body = {TEXT_INPUT: "ready?", SAMPLING: '{"max_tokens": 1, "temperature": 0}'}
        return Question(model, f"{url}/generate", {**body, **_key()}, headers, varied=False)
    varied = bool(config.get("response_cache", {}).get("enable"))
    optional = {entry["name"] for entry in config.get("input", ()) if entry.get("optional")}
    tensors = [tensor for tensor in _json(url, timeout, headers)["inputs"] if tensor["name"] not in optional]
    if sample := config.get("parameters", {}).get("sample"):
        content, more = _sample(json.loads(sample["string_value"]), tensors)
        return Question(model, f"{url}/infer", content, {**headers, **more}, varied and not more)
    inputs = []
    for tensor in tensors:
        shape = [max(1, int(size)) for size in tensor["shape"]]
        count = 1
        for size in shape:
            count *= size
        value = _SAMPLES.get(tensor["datatype"], 1)
        inputs.append({**tensor, "shape": shape, "data": [value] * count})
    return Question(model, f"{url}/infer", _admitted(inputs), headers, varied)


def _key() -> dict[str, str]:
    return {PARAMETER: key} if (key := os.environ.get(PROBE_KEY)) else {}


def _admitted(inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """A request that no full queue refuses."""
    return {"inputs": inputs, "parameters": _key()}


def _sample(sample: dict[str, Any], tensors: list[dict[str, Any]]) -> tuple[Any, dict[str, str]]:
    """One row that the model's own config gives, as a request: in JSON, or in the protocol's binary form.

    Source: KServe's binary tensor data extension; a picture's file does not fit into JSON.
    """
    if sample.pop("encoding", "") != "base64":
        given = [
            {**tensor, "shape": [1, len(sample[tensor["name"]])], "data": sample[tensor["name"]]}
            for tensor in tensors
        ]
        return _admitted(given), {}
    inputs, content = [], b""
    for name, values in sample.items():
        texts = [base64.b64decode(value) for value in values]
        data = b"".join(struct.pack("<I", len(text)) + text for text in texts)
        size = {"binary_data_size": len(data)}
        inputs.append({"name": name, "datatype": "BYTES", "shape": [1, len(texts)], "parameters": size})
        content += data
    head = json.dumps(_admitted(inputs)).encode()
    return head + content, {"Inference-Header-Content-Length": str(len(head))}


def main() -> None:
    """`python -m serving.probe HOST:PORT`: exit code 0 if it serves, 1 and the reason if not."""
    reason = problem(sys.argv[1])
    sys.exit(reason and f"not serving: {reason}")


def request(url: str, body: Any = None, headers: Headers | None = None) -> urllib.request.Request:
    """An HTTP request; a body that is not bytes is sent as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    return urllib.request.Request(f"http://{url}", data=data, headers=dict(headers or {}))


def _json(url: str, timeout: float, headers: Headers, body: Any = None) -> Any:
    return json.loads(send(request(url, body, headers), timeout=timeout))


def _body(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text.strip() or error.reason


if __name__ == "__main__":
    main()
