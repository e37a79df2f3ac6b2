"""Serves the gateway with uvicorn."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from starlette.applications import Starlette

from serving.gateway.app import application
from serving.gateway.connection import Connection
from serving.gateway.http import Stopping
from serving.gateway.settings import GatewaySettings
from shoal.errors import ServerError
from shoal.machine import allow_all_files

# Seconds in which streams may end when the gateway is told to stop.
GRACE_SECONDS = 10
_TELL_SECONDS = 2  # more, in which those that run still are told that it stops
_BACKLOG = 2048


def run(settings: GatewaySettings) -> int:
    """Listen, and serve until SIGTERM or Ctrl-C. Returns an exit code.

    Raises:
        ShoalError: the port is taken, or the file of keys cannot be read.
    """
    app = application(settings)
    with listening(settings) as listener:
        serve(app, settings, listener)
    return 0


def serve(app: Starlette, settings: GatewaySettings, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        app: see `serving.gateway.app.application`.
        listener: see `listening`.
    """
    allow_all_files()  # each stream is a connection, and each connection is a file
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        http=Connection,
        loop="uvloop",
        ws="none",
        backlog=_BACKLOG,
        timeout_graceful_shutdown=GRACE_SECONDS + _TELL_SECONDS,
        ssl_certfile=settings.certificate and str(settings.certificate),
        ssl_keyfile=settings.private_key and str(settings.private_key),
    )
    _Server(config, app.state.gateway.stopping).run(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn's, which would end the requests that are left without a word."""

    def __init__(self, config: uvicorn.Config, stopping: Stopping) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and end those that are there."""
        timer = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._stopping.end)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def listening(settings: GatewaySettings) -> socket.socket:
    """The socket that the gateway listens on.

    Raises:
        ServerError: the port cannot be had.
    """
    try:
        return socket.create_server((settings.host, settings.port), backlog=_BACKLOG)
    except OSError as error:
        raise ServerError(
            f"port {settings.port} of {settings.host} cannot be had: {error.strerror}", hint="another --port"
        ) from error
