"""The command: `python -m serving.gateway --triton 127.0.0.1:8001 --catalogue http://127.0.0.1:8003/catalogue`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from serving.gateway.run import run
from serving.gateway.settings import GatewaySettings, token_ids_of
from shoal.errors import ShoalError


def main() -> int:
    """Read the flags, then serve until told to stop."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.gateway",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    known = GatewaySettings()
    parser.add_argument("--triton", default=known.triton, help="host:port of Triton's gRPC endpoint")
    parser.add_argument("--catalogue", default=known.catalogue, help="URL of the supervisor's list")
    parser.add_argument("--host", default=known.host, help="address to listen on")
    parser.add_argument("--port", type=int, default=known.port, help="to listen on")
    parser.add_argument("--keys", type=Path, help="file of API keys; without it only loopback is served")
    parser.add_argument(
        "--storage", default=known.storage, help="where quotas are counted: memory:// or redis://"
    )
    parser.add_argument(
        "--on-storage-error",
        choices=["refuse", "allow"],
        default=known.on_storage_error,
        help="what becomes of requests while Redis does not answer",
    )
    parser.add_argument("--timeout", type=float, default=known.timeout, help="seconds a request may take")
    parser.add_argument("--tls-cert", type=Path, help="PEM")
    parser.add_argument("--tls-key", type=Path, help="PEM")
    parser.add_argument(
        "--token-ids",
        action="append",
        default=[],
        metavar="MODEL=cl100k",
        help="token ids in /v1/embeddings are those of OpenAI's tokenizer, for this model",
    )
    parser.add_argument("--cl100k", type=Path, metavar="FILE", help="cl100k_base.tiktoken, for --token-ids")
    given = parser.parse_args()
    try:
        return run(
            GatewaySettings(
                given.triton,
                given.catalogue,
                given.host,
                given.port,
                given.keys,
                given.storage,
                timeout=given.timeout,
                on_storage_error=given.on_storage_error,
                certificate=given.tls_cert,
                private_key=given.tls_key,
                token_ids=token_ids_of(given.token_ids),
                cl100k=given.cl100k,
            )
        )
    except ShoalError as error:
        sys.exit(f"{error.message}\n{error.hint}".strip())


if __name__ == "__main__":
    sys.exit(main())
