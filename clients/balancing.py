"""Several servers behind one address, balanced by gRPC itself, without a proxy.

The forms of such addresses: https://github.com/grpc/grpc/blob/master/doc/naming.md
The retries: https://github.com/grpc/proposal/blob/master/A6-client-retries.md
"""

from __future__ import annotations

import json
import re
from typing import Any

from clients.vocabulary import Tls, host_and_port

LARGEST_MESSAGE = 2**31 - 1  # bytes, as in tritonclient
_HOST = r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):\d{1,5}"
_SEVERAL = re.compile(rf"dns:///{_HOST}|ipv[46]:{_HOST}(,{_HOST})*")
# Requests go to the servers in turn. A call that a server fails is sent again, to the next one, but only
# before the first byte of its answer. Where many fail, gRPC stops sending them again (`retryThrottling`).
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
}


def target_of(url: str, tls: Tls | None) -> tuple[str, dict[str, Any]]:
    """The address and the options of tritonclient's gRPC clients for one server or several.

    Args:
        url: `host:port` of one server; `dns:///host:port` for every address of a name, or
            `ipv4:1.2.3.4:8001,1.2.3.5:8001` for several servers, to which requests go in turn.
        tls: certificates; None: plain text.

    Raises:
        BadInput: it is not an address.
    """
    options = tls.grpc_options() if tls else {}
    if not _SEVERAL.fullmatch(url):
        return host_and_port(url), options
    options["channel_args"] = [
        ("grpc.max_send_message_length", LARGEST_MESSAGE),
        ("grpc.max_receive_message_length", LARGEST_MESSAGE),
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ]
    return url, options
