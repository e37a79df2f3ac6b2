"""Serves the gateway with uvicorn."""

from __future__ import annotations

import socket

import uvicorn
from starlette.applications import Starlette

from serving.gateway.app import application
from serving.gateway.connection import Connection
from serving.gateway.settings import GatewaySettings
from shoal.errors import ServerError
from shoal.machine import allow_all_files

# Seconds in which streams may end when the gateway is told to stop.
GRACE_SECONDS = 10
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
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_certfile=settings.certificate and str(settings.certificate),
        ssl_keyfile=settings.private_key and str(settings.private_key),
    )
    uvicorn.Server(config).run(sockets=[listener])


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
