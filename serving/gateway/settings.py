"""How the gateway serves: checked once, at its start."""

from __future__ import annotations

import ipaddress
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
        triton: host:port of Triton's gRPC endpoint.
        catalogue: URL of the supervisor's list of models.
        host, port: where the gateway listens.
        keys: file of API keys, see `serving.gateway.keys`; None: anybody may call, from this machine only.
        storage: where requests and tokens are counted, `memory://` or `redis://host:port`.
        on_storage_error: what becomes of requests while Redis does not answer: `refuse` or `allow`.
        timeout: seconds that a request may take, where its caller does not give less.
        max_body_bytes: of a request.
        body_seconds: in which a body must have come.
        certificate, private_key: PEM files for TLS; both or none.
        token_ids: by the name of an embedder, what token ids in a request mean: `cl100k`: those of OpenAI's
            tokenizer, which are read back as text; `refuse`, as for every model that is not named.
        cl100k: the file of that tokenizer, see `serving.gateway.cl100k`.
    """

    triton: str = "127.0.0.1:8001"
    catalogue: str = "http://127.0.0.1:8003/catalogue"
    host: str = LOOPBACK
    port: int = 8080
    keys: Path | None = None
    storage: str = "memory://"
    on_storage_error: Literal["refuse", "allow"] = "refuse"
    timeout: float = 600.0
    max_body_bytes: int = 32 << 20
    body_seconds: float = 30.0
    certificate: Path | None = None
    private_key: Path | None = None
    token_ids: Mapping[str, str] = field(default_factory=dict)
    cl100k: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise UsageError("TLS takes a certificate and its private key", hint="--tls-cert and --tls-key")
        if self.timeout <= 0 or self.max_body_bytes <= 0 or self.body_seconds <= 0:
            raise UsageError("timeout, body size and body time must be positive")
        if ("cl100k" in self.token_ids.values()) != (self.cl100k is not None):
            raise UsageError(
                "--token-ids MODEL=cl100k and --cl100k FILE go together",
                hint="docs/gateway.md, `Token ids`, says where the file comes from",
            )
        if self.keys is None and not self.is_loopback:
            raise UsageError(
                f"without API keys the gateway listens on {LOOPBACK} only, not on {self.host}",
                hint="make one: shoal keys add NAME, and start with --keys FILE",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether nobody outside of this machine can reach the gateway."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
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
