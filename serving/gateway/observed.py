"""What is seen of the gateway: each request's record, given to metrics, spans and the audit log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from serving.gateway.audit import Audit
from serving.gateway.metrics import Metrics
from serving.gateway.record import Record, begun
from serving.gateway.settings import GatewaySettings
from shoal.errors import MissingDependency

if TYPE_CHECKING:
    from serving.gateway.tracing import Tracing


class Observed:
    """Watches requests from their headers to their end.

    Args:
        settings: what is asked for; metrics are counted always.

    Raises:
        ShoalError: the port of the metrics cannot be had, the audit log cannot be written, or a package is
            missing.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.metrics = Metrics()
        self._tracing = _tracing(settings.traces) if settings.traces else None
        self._audit = Audit(settings.audit, self.metrics.audit_lost) if settings.audit else None
        self._texts = settings.audit_text
        if settings.metrics_port is not None:
            self.metrics.listen(settings.metrics_host, settings.metrics_port)

    def begin(
        self, number: str, method: str, endpoint: str, headers: Mapping[str, str], *, public: bool
    ) -> Record:
        """The record of a request whose headers have come; it must be ended.

        Args:
            public: whether it takes no key: what asks for health each second is counted only.
        """
        record = begun(number, method, endpoint, headers, texts=self._texts, public=public)
        self.metrics.begin(record)
        if self._tracing is not None and not public:
            self._tracing.begin(record, headers)
        return record

    def end(self, record: Record) -> None:
        """The request has ended, whichever way."""
        record.seconds = time.monotonic() - record.began
        self.metrics.end(record)
        if record.public:
            return
        if self._tracing is not None:
            self._tracing.end(record)
        if self._audit is not None:
            self._audit.end(record)

    async def close(self) -> None:
        """Write and send what is left."""
        for each in (self._audit, self._tracing):
            if each is not None:
                await asyncio.to_thread(each.close)


def _tracing(url: str) -> Tracing:
    try:
        from serving.gateway.tracing import Tracing  # noqa: PLC0415 - without traces it takes no time or memory
    except ModuleNotFoundError as error:
        raise MissingDependency(str(error.name), extra="gateway") from error
    return Tracing(url)
