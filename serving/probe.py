"""Is a server really serving? Its own word, and one real inference of every model users call.

A Python stub that died leaves Triton's readiness at 200, so the word alone is not enough. Plain HTTP
from the standard library: a health check must not need a client library.
"""

from __future__ import annotations

import base64
import http.client
import json
import struct
import sys
import urllib.error
import urllib.request
from typing import Any

# A value of each kind that any model takes; -1 dims become 1.
_SAMPLES: dict[str, Any] = {"BYTES": "ready?", "BOOL": True}


def problem(address: str, *, timeout: float = 5.0) -> str | None:
    """What keeps the server at `host:port` from serving, or None.

    Args:
        timeout: seconds for each of the calls.
    """
    try:
        _call(address, "v2/health/ready", timeout=timeout)
        for name in entry_models(address, timeout=timeout):
            infer_once(address, name, timeout=timeout)
    except urllib.error.HTTPError as error:
        return f"{error.url.partition(address)[2]} answers {error.code}: {_body(error)}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(error) or type(error).__name__
    return None


def entry_models(address: str, *, timeout: float = 5.0) -> list[str]:
    """Models that users call: all that are ready but the steps of an ensemble."""
    index = json.loads(_call(address, "v2/repository/index", {}, timeout=timeout))
    ready = [entry["name"] for entry in index if entry.get("state") == "READY"]
    steps: set[str] = set()
    for name in ready:
        config = json.loads(_call(address, f"v2/models/{name}/config", timeout=timeout))
        steps.update(step["model_name"] for step in config.get("ensemble_scheduling", {}).get("step", []))
    return [name for name in dict.fromkeys(ready) if name not in steps]


def infer_once(address: str, model: str, *, timeout: float = 5.0) -> None:
    """One inference on the smallest input that the model's metadata allows; of a decoder, one token."""
    config = json.loads(_call(address, f"v2/models/{model}/config", timeout=timeout))
    if config.get("model_transaction_policy", {}).get("decoupled"):  # not to be had through `infer`
        body = {"text_input": "ready?", "sampling_parameters": '{"max_tokens": 1, "temperature": 0}'}
        _call(address, f"v2/models/{model}/generate", body, timeout=timeout)
        return
    metadata = json.loads(_call(address, f"v2/models/{model}", timeout=timeout))
    if sample := config.get("parameters", {}).get("sample"):
        content, headers = _sample(json.loads(sample["string_value"]), metadata["inputs"])
        _call(address, f"v2/models/{model}/infer", content, timeout=timeout, headers=headers)
        return
    inputs = []
    for tensor in metadata["inputs"]:
        shape = [max(1, int(size)) for size in tensor["shape"]]
        count = 1
        for size in shape:
            count *= size
        value = _SAMPLES.get(tensor["datatype"], 1)
        inputs.append({**tensor, "shape": shape, "data": [value] * count})
    _call(address, f"v2/models/{model}/infer", {"inputs": inputs}, timeout=timeout)


def _sample(sample: dict[str, Any], tensors: list[dict[str, Any]]) -> tuple[bytes, dict[str, str]]:
    """One row that the model's own config gives, as a request: in JSON, or in the protocol's binary form.

    Source: KServe's binary tensor data extension; a picture's file does not fit into JSON.
    """
    if sample.pop("encoding", "") != "base64":
        given = [
            {**tensor, "shape": [1, len(sample[tensor["name"]])], "data": sample[tensor["name"]]}
            for tensor in tensors
        ]
        return json.dumps({"inputs": given}).encode(), {}
    inputs, content = [], b""
    for name, values in sample.items():
        texts = [base64.b64decode(value) for value in values]
        data = b"".join(struct.pack("<I", len(text)) + text for text in texts)
        size = {"binary_data_size": len(data)}
        inputs.append({"name": name, "datatype": "BYTES", "shape": [1, len(texts)], "parameters": size})
        content += data
    head = json.dumps({"inputs": inputs}).encode()
    return head + content, {"Inference-Header-Content-Length": str(len(head))}


def main() -> None:
    """`python -m serving.probe HOST:PORT`: exit code 0 if it serves, 1 and the reason if not."""
    reason = problem(sys.argv[1])
    sys.exit(reason and f"not serving: {reason}")


def _call(
    address: str, path: str, body: Any = None, *, timeout: float, headers: dict[str, str] | None = None
) -> bytes:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{address}/{path}", data=data, headers=headers or {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is never proxied
    with opener.open(request, timeout=timeout) as response:
        return bytes(response.read())


def _body(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text.strip() or error.reason


if __name__ == "__main__":
    main()
