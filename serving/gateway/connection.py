"""Connections of callers: uvicorn's, but for those that never ask for anything, or do not read."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# In which the head of a request must have come, and in which a caller must take what waits to be sent.
PATIENCE_SECONDS = 30.0
MOST_HEAD_BYTES = 64 << 10  # of a request's line and headers
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Connection(HttpToolsProtocol):
    """A connection that ends where its caller does nothing for `PATIENCE_SECONDS`.

    uvicorn ends those that are idle after an answer. It waits for ever on new ones, for the rest of a head,
    and for callers who do not read: one whose machine is gone, or who means harm, would hold a file of this
    process, and a request, as long as it runs.
    """

    _head: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """What comes after an answer begins the next request; what comes before its end is its body."""
        if self._head is None and self.cycle.response_complete:
            self._wait_for_head()
        super().data_received(data)
        if self._head is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    def on_headers_complete(self) -> None:
        """The head has come."""
        super().on_headers_complete()
        _cancel(self._head)
        self._head, self._head_bytes = None, 0

    def pause_writing(self) -> None:
        """Much waits to be sent."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """The caller has taken most of it."""
        super().resume_writing()
        _cancel(self._unread)
        self._unread = None

    def on_response_complete(self) -> None:
        """A connection that ends with its answer stays open until the caller has taken it."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._wait_for_reader()

    def timeout_keep_alive_handler(self) -> None:
        """The same holds for one that ends since nothing has come."""
        super().timeout_keep_alive_handler()
        self._wait_for_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing comes any more."""
        _cancel(self._head)
        _cancel(self._unread)
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._head = self.loop.call_later(PATIENCE_SECONDS, self.timeout_keep_alive_handler)

    def _wait_for_reader(self) -> None:
        if self._unread is None:
            self._unread = self.loop.call_later(PATIENCE_SECONDS, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
