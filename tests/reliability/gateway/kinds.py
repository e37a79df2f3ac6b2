"""The kinds of faults, and how often each is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.reliability.gateway import callers, servers
from tests.reliability.gateway.scene import Scene


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        do: what does the harm, and takes it back.
        weight: how often it is drawn, beside the others.
        kills: it is worth doing only while both services are well.
        redis: it needs a redis-server.
    """

    do: Callable[[Scene], None]
    weight: float
    kills: bool = False
    redis: bool = False

    @property
    def name(self) -> str:
        """In words."""
        return self.do.__name__.replace("_", " ")


KINDS = (
    Kind(servers.triton_killed, 3, kills=True),
    Kind(servers.triton_stopped, 3, kills=True),
    Kind(servers.supervisor_and_triton_killed, 2, kills=True),
    Kind(servers.promoted_in_the_midst_of_a_stream, 4, kills=True),
    Kind(servers.killed_in_the_midst_of_a_stream, 5, kills=True),
    Kind(servers.catalogue_unreachable, 5),
    Kind(servers.redis_gone, 5, redis=True),
    Kind(servers.keys_changed, 5),
    Kind(callers.gone_while_queued, 8),
    Kind(callers.gone_in_prefill, 10),
    Kind(callers.gone_in_the_midst_of_an_answer, 10),
    Kind(callers.reads_slowly, 5),
    Kind(callers.reads_nothing, 5),
    Kind(callers.burst, 5),
    Kind(callers.body_of_100_mb, 5),
    Kind(callers.body_comes_slowly, 5),
    Kind(callers.garbage, 10),
    Kind(callers.half_open, 5),
)
