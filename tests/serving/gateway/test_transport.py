"""What gRPC raises by itself is told apart from what Triton says."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from clients import ServerFault, Timeout, Unavailable
from clients.errors import ClientError
from serving.gateway.triton import Triton


@pytest.mark.parametrize(
    ("details", "left", "kind"),
    [
        ("Internal error from Core", 10.0, Unavailable),  # the connection broke as the call began
        ("Internal error from Core", 0.0, Timeout),  # the call began when its time was over
        ("failed to allocate", 10.0, ServerFault),  # Triton's own
    ],
)
def test_internal_errors(details: str, left: float, kind: type[ClientError]) -> None:
    """A connection that breaks as a call begins is not Triton's own failure."""
    error = AioRpcError(grpc.StatusCode.INTERNAL, Metadata(), Metadata(), details=details)

    async def translated() -> Exception:
        triton = Triton("127.0.0.1:1")
        try:
            return triton._translated(error, time.monotonic() + left)
        finally:
            await triton.close()

    assert type(asyncio.run(translated())) is kind
