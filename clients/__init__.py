"""Clients for a Triton that serves Shoal's models. Needs numpy and tritonclient, nothing heavier.

    from clients import GrpcClient

    with GrpcClient("127.0.0.1:8001", timeout=2.0) as client:
        vectors = client.embed(["a text", "another"])  # float32 [2, 384]
        labels = client.classify(["a text"], model="sentiment")
        for part in client.generate("Fish swim in", max_tokens=20, temperature=0):
            print(part.text, end="")

`AsyncGrpcClient` is its asyncio twin, `HttpClient` speaks HTTP; all raise the errors of `clients.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clients.answers import Entity, Found, Generated, Label, ZeroShotLabel
from clients.async_grpc import AsyncGrpcClient
from clients.errors import (
    BadInput,
    ClientError,
    Denied,
    Overloaded,
    ServerFault,
    Timeout,
    Unavailable,
    UnknownModel,
)
from clients.generation import Answer, Part
from clients.grpc_client import GrpcClient
from clients.vocabulary import Tls

if TYPE_CHECKING:
    from clients.http_client import HttpClient

__all__ = [
    "Answer",
    "AsyncGrpcClient",
    "BadInput",
    "ClientError",
    "Denied",
    "Entity",
    "Found",
    "Generated",
    "GrpcClient",
    "HttpClient",
    "Label",
    "Overloaded",
    "Part",
    "ServerFault",
    "Timeout",
    "Tls",
    "Unavailable",
    "UnknownModel",
    "ZeroShotLabel",
]


def __getattr__(name: str) -> Any:
    """`HttpClient`, imported when it is asked for: it brings gevent, which the others do not need."""
    if name == "HttpClient":
        from clients.http_client import HttpClient  # noqa: PLC0415

        return HttpClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
