"""Clients for a Triton that serves Shoal's models. Needs numpy and tritonclient, nothing heavier.

    from clients import GrpcClient

    with GrpcClient("127.0.0.1:8001", timeout=2.0) as client:
        vectors = client.embed(["a text", "another"])  # float32 [2, 384]

`AsyncGrpcClient` is its asyncio twin, `HttpClient` speaks HTTP; all raise the errors of `clients.errors`.
"""

from clients.errors import BadInput, ClientError, Overloaded, ServerFault, Timeout, Unavailable, UnknownModel
from clients.grpc_client import AsyncGrpcClient, GrpcClient
from clients.http_client import HttpClient
from clients.vocabulary import Tls

__all__ = [
    "AsyncGrpcClient",
    "BadInput",
    "ClientError",
    "GrpcClient",
    "HttpClient",
    "Overloaded",
    "ServerFault",
    "Timeout",
    "Tls",
    "Unavailable",
    "UnknownModel",
]
