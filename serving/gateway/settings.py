"""How the gateway serves: checked once, at its start."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shoal.errors import UsageError

LOOPBACK = "127.0.0.1"
TOKEN_IDS = ("cl100k", "refuse")


@dataclass(frozen=True)
class GatewaySettings:
    """How the gateway serves.

    Attributes:
        triton: host:port of the gRPC endpoint of each Triton.
        catalogue: URL of the list of models of each one's supervisor, in the same order.
        triton_authority: PEM file of the authority that signed the Tritons' certificates; None: no TLS.
        host, port: where the gateway listens.
        allowed_hosts: names of this host beside loopback, which requests may be for where there are no keys.
        published: where it can be reached from, if not at `host`: in a container it listens on all addresses,
            and Docker publishes its port at one.
        keys: file of API keys, see `serving.gateway.keys`; None: anybody may call, from this machine only.
        storage: where requests and tokens are counted, `memory://` or `redis://host:port`.
        on_storage_error: what becomes of requests while Redis does not answer: `refuse` or `allow`.
        timeout: seconds that a request may take, where its caller does not give less.
        recovery_seconds: how long a request waits for a server after its own has gone.
        max_body_bytes: of a request.
        body_seconds: in which a body must have come.
        cache: where answers are kept, see `serving.gateway.cache.store_of`; None: nowhere.
        cache_scope: who is given a kept answer: the `key` that it was made for, or all (`shared`).
        certificate, private_key: PEM files for TLS; both or none.
        token_ids: by the name of an embedder, what token ids in a request mean: `cl100k`: those of OpenAI's
            tokenizer, which are read back as text; `refuse`, as for every model that is not named.
        cl100k: the file of that tokenizer, see `serving.gateway.cl100k`.
        metrics_host, metrics_port: where Prometheus reads `/metrics`, without a key; no port: nowhere.
        traces: URL of an OTLP collector over HTTP; "": no traces.
        audit: file of the audit log; "-": stdout; "": none.
        audit_text: whether it has the texts of requests and answers, redacted.
    """

    triton: Sequence[str] = ("127.0.0.1:8001",)
    catalogue: Sequence[str] = ("http://127.0.0.1:8003/catalogue",)
    triton_authority: Path | None = None
    host: str = LOOPBACK
    port: int = 8080
    allowed_hosts: Sequence[str] = ()
    published: str | None = None
    keys: Path | None = None
    storage: str = "memory://"
    on_storage_error: Literal["refuse", "allow"] = "refuse"
    timeout: float = 600.0
    recovery_seconds: float = 30.0
    max_body_bytes: int = 8 << 20
    body_seconds: float = 30.0
    cache: str | None = None
    cache_scope: Literal["key", "shared"] = "key"
    certificate: Path | None = None
    private_key: Path | None = None
    token_ids: Mapping[str, str] = field(default_factory=dict)
    cl100k: Path | None = None
    metrics_host: str = LOOPBACK
    metrics_port: int | None = None
    traces: str = ""
    audit: str = ""
    audit_text: bool = False

    def __post_init__(self) -> None:
        if len(self.triton) != len(self.catalogue) or not self.triton:
            raise UsageError("--triton and --catalogue go together: one of each for every server")
        for path in (self.triton_authority, self.certificate, self.private_key):
            if path is not None and not os.access(path, os.R_OK):
                raise UsageError(f"{path} cannot be read", hint="it must be a PEM file")
        if (self.certificate is None) != (self.private_key is None):
            raise UsageError("TLS takes a certificate and its private key", hint="--tls-cert and --tls-key")
        if self.recovery_seconds < 0 or min(self.timeout, self.max_body_bytes, self.body_seconds) <= 0:
            raise UsageError("times and the size of bodies must be positive")
        if ("cl100k" in self.token_ids.values()) != (self.cl100k is not None):
            raise UsageError(
                "--token-ids MODEL=cl100k and --cl100k FILE go together",
                hint="docs/gateway.md, `Token ids`, says where the file comes from",
            )
        if self.metrics_port is None and self.metrics_host != LOOPBACK:
            raise UsageError("--metrics-host needs --metrics-port")
        if self.traces and not self.traces.startswith(("http://", "https://")):
            raise UsageError(f"--traces {self.traces} is no URL", hint="such as http://otel:4318/v1/traces")
        if self.audit_text and not self.audit:
            raise UsageError("--audit-text needs --audit FILE")
        if self.keys is None and not self.is_loopback:
            raise UsageError(
                f"without API keys the gateway serves {LOOPBACK} only, not {self.published or self.host}",
                hint="make one: shoal keys add NAME, and start with --keys FILE",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether nobody outside of this machine can reach the gateway."""
        address = self.published or self.host
        if address == "localhost":
            return True
        try:
            return ipaddress.ip_address(address).is_loopback
        except ValueError:
            return False


def token_ids_of(given: Sequence[str]) -> dict[str, str]:
    """`GatewaySettings.token_ids` of the flags `MODEL=cl100k` and `MODEL=refuse`.

    Raises:
        UsageError: one is neither.
    """
    meanings = {}
    for flag in given:
        name, _, meaning = flag.partition("=")
        if not name or meaning not in TOKEN_IDS:
            raise UsageError(f"--token-ids {flag}: it must be MODEL=cl100k or MODEL=refuse")
        meanings[name] = meaning
    return meanings
