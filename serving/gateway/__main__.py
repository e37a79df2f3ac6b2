"""The command: `python -m serving.gateway --triton 127.0.0.1:8001 --catalogue http://127.0.0.1:8003/catalogue`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from serving.gateway.run import run
from serving.gateway.settings import GatewaySettings, token_ids_of
from shoal.errors import ShoalError


def _path(given: str) -> Path | None:
    """A file, or none where a variable of the compose file is empty."""
    return Path(given) if given else None


def main() -> int:
    """Read the flags, then serve until told to stop."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.gateway",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    known = GatewaySettings()
    parser.add_argument(
        "--triton", action="append", help=f"host:port of a Triton's gRPC (default: {known.triton[0]})"
    )
    parser.add_argument(
        "--catalogue",
        action="append",
        help=f"URL of its supervisor's list (default: {known.catalogue[0]}); both once for each server",
    )
    parser.add_argument(
        "--triton-ca", type=_path, help="PEM: ask Triton over TLS, and trust what this authority has signed"
    )
    parser.add_argument("--host", default=known.host, help="address to listen on")
    parser.add_argument("--port", type=int, default=known.port, help="to listen on")
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        help="without keys: a name that callers have for this host, beside those of loopback",
    )
    parser.add_argument(
        "--published", help="address at which Docker publishes the port, where --host is that of a container"
    )
    parser.add_argument("--keys", type=_path, help="file of API keys; without it only loopback is served")
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
    parser.add_argument(
        "--recovery",
        type=float,
        default=known.recovery_seconds,
        help="seconds a request waits for a server after its own has gone",
    )
    parser.add_argument("--cache", help="keep answers: memory:64MB, or redis://HOST:PORT")
    parser.add_argument(
        "--cache-scope",
        choices=["key", "shared"],
        default=known.cache_scope,
        help="who is given a kept answer: the key it was made for, or all",
    )
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
    parser.add_argument(
        "--metrics-port", type=int, help="where Prometheus reads /metrics, without a key; default: nowhere"
    )
    parser.add_argument(
        "--metrics-host", default=known.metrics_host, help="address that --metrics-port listens on"
    )
    parser.add_argument(
        "--traces", default=known.traces, help="URL of an OTLP collector, http://otel:4318/v1/traces"
    )
    parser.add_argument("--audit", default=known.audit, metavar="FILE", help="a line a request; -: stdout")
    parser.add_argument(
        "--audit-text", action="store_true", help="with the texts of requests and answers, redacted"
    )
    given = parser.parse_args()
    try:
        return run(
            GatewaySettings(
                given.triton or known.triton,
                given.catalogue or known.catalogue,
                triton_authority=given.triton_ca,
                host=given.host,
                port=given.port,
                published=given.published,
                allowed_hosts=given.allowed_host,
                keys=given.keys,
                storage=given.storage,
                timeout=given.timeout,
                recovery_seconds=given.recovery,
                cache=given.cache,
                cache_scope=given.cache_scope,
                on_storage_error=given.on_storage_error,
                certificate=given.tls_cert,
                private_key=given.tls_key,
                token_ids=token_ids_of(given.token_ids),
                cl100k=given.cl100k,
                metrics_host=given.metrics_host,
                metrics_port=given.metrics_port,
                traces=given.traces,
                audit=given.audit,
                audit_text=given.audit_text,
            )
        )
    except ShoalError as error:
        sys.exit(f"{error.message}\n{error.hint}".strip())


if __name__ == "__main__":
    sys.exit(main())
