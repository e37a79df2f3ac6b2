"""LiteLLM's proxy with one worker, in front of an endpoint that speaks OpenAI's API.

Becomes the server, which answers on loopback until it is ended.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from loadtest.peers.server import HOST

# It asks nobody for prices of models, and tells nobody that it runs.
ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "LITELLM_LOG": "ERROR",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # ours takes no key here, either
}


def config(api_base: str, models: dict[str, str]) -> dict[str, object]:
    """Its configuration: no keys, no database, and everything else as it is without one.

    Args:
        models: name -> what LiteLLM calls the mode: `chat` or `embedding`.
    """
    return {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": {"model": f"openai/{name}", "api_base": api_base, "api_key": "none"},
                "model_info": {"mode": mode},
            }
            for name, mode in models.items()
        ]
    }


def main() -> None:
    """Write the configuration, and become the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--api-base", required=True, help="URL that ends in /v1")
    parser.add_argument("--chat", required=True, help="name of the decoder")
    parser.add_argument("--embedding", required=True, help="name of the embedder")
    parser.add_argument("--port", required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder of the configuration")
    options = parser.parse_args()
    os.environ |= ENVIRONMENT
    file = options.cache / "config.yaml"  # JSON is YAML
    file.write_text(
        json.dumps(config(options.api_base, {options.chat: "chat", options.embedding: "embedding"}))
    )
    command = [
        *(str(Path(sys.executable).with_name("litellm")), "--config", str(file)),
        *("--host", HOST, "--port", options.port, "--num_workers", "1", "--telemetry", "False"),
    ]
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
