"""Sends a share of what a model reads to a monitor on this machine, and never waits for it.

Off unless SHOAL_MONITOR names the monitor's socket, a unix datagram socket; SHOAL_MONITOR_SHARE is the share
of requests of which one row is sent. Token ids are sent, no text, and nothing is written to a disk. Where
nobody listens, or the listener is behind, the row is dropped: serving does not depend on being watched.

Needs the standard library alone.
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress

SOCKET, SHARE = "SHOAL_MONITOR", "SHOAL_MONITOR_SHARE"
DEFAULT_SHARE = 0.05
MOST_TOKENS = 1024  # some 6 kB; of a longer row its beginning and its length are sent


class TrafficSampler:
    """Where rows leave a model.

    Args:
        model: its name in the repository.
        version: which one, as Triton writes it.
        environ: where `SHOAL_MONITOR` and `SHOAL_MONITOR_SHARE` are read.
    """

    def __init__(self, model: str, version: str, environ: Mapping[str, str] = os.environ) -> None:
        self._about = {"model": model, "version": int(version)}
        self._path = environ.get(SOCKET, "")
        self._share = self._socket = None
        if not self._path:
            return
        given = environ.get(SHARE, "") or str(DEFAULT_SHARE)
        try:
            self._share = float(given)
        except ValueError:  # a model that serves is worth more than one that is watched
            logging.getLogger(__name__).warning("%s is %r, not a number: not monitored", SHARE, given)
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    @property
    def wants(self) -> bool:
        """Whether a row of this request is to be sent: no, but for a sampled share."""
        return self._share is not None and random.random() < self._share  # noqa: S311 - a sample, not a secret

    def send(
        self, ids: Sequence[int], type_ids: Sequence[int] | None = None, perplexity: float | None = None
    ) -> None:
        """Send one row, or drop it.

        Args:
            ids: token ids without padding.
            type_ids: of the same tokens, where the network reads them.
            perplexity: of a decoder's prompt, see `serving.generation.sequence.Request.scored`.
        """
        if self._socket is None:
            return
        row: dict[str, object] = {"length": len(ids), "input_ids": list(ids[:MOST_TOKENS])}
        if type_ids is not None:
            row["token_type_ids"] = list(type_ids[:MOST_TOKENS])
        if perplexity is not None:
            row["perplexity"] = perplexity
        message = json.dumps(self._about | row, separators=(",", ":")).encode()
        with suppress(OSError):  # nobody listens, or its buffer is full
            self._socket.sendto(message, self._path)
