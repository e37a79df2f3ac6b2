"""vLLM on CPU: its OpenAI server, over HTTP streaming."""

from __future__ import annotations

import os
import sys
from ctypes.util import find_library
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from loadtest.peers.load import CANNOT_RUN_HERE, arguments, give_up, measure, parse, report
from loadtest.peers.server import HOST, free_port, running, sender


def request(new_tokens: int, prompt: list[int]) -> dict[str, Any]:
    """A greedy completion of so many tokens."""
    return {
        "model": "model",
        "prompt": prompt,
        "max_tokens": new_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def tokens(event: dict[str, Any]) -> int | None:
    """All tokens of a completion; only its last event tells."""
    return event["usage"]["completion_tokens"] if event.get("usage") else None


def main() -> None:
    """Serve, measure, report."""
    parser = arguments(__doc__)
    flags = Path("/proc/cpuinfo").read_text().split()
    # Without AVX-512, bfloat16 is several times slower than float32.
    dtype = "bfloat16" if "avx512f" in flags else "float32"
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default=dtype)
    parser.add_argument("--gigabytes", type=int, default=2, help="space for the KV cache")
    options = parse(parser)
    if "avx2" not in flags:
        give_up("vLLM's CPU build needs AVX2, which this CPU has not", CANNOT_RUN_HERE)
    port = free_port()
    command = [
        # The command `vllm` of this build asks for the version of a package `vllm`, which is not its name.
        *(sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", options.model, "--served-model-name", "model", "--host", HOST, "--port", str(port)),
        *("--dtype", options.dtype, "--generation-config", "vllm"),
        "--enable-prefix-caching" if options.chats else "--no-enable-prefix-caching",
    ]
    # By itself vLLM leaves a core to its other processes; told which to use, it takes what the others take.
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    # vLLM's manual asks for these two; Intel's OpenMP comes with it, tcmalloc is the system's.
    preload = [str(Path(sys.prefix) / "lib" / "libiomp5.so"), find_library("tcmalloc_minimal")]
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "LD_PRELOAD": ":".join(filter(None, preload)),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(options.cache / "vllm"),
        "VLLM_CPU_KVCACHE_SPACE": str(options.gigabytes),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
    }
    with running(command, port, options.cache / "vllm.log", environment):
        body = partial(request, options.new_tokens)
        results = measure(sender(port, "/v1/completions", body, tokens), options)
    settings = f"OpenAI server, {options.dtype}, HTTP stream, {options.threads} threads"
    report("vllm-cpu", metadata.version("vllm-cpu"), settings, results)


if __name__ == "__main__":
    main()
