"""The kinds of faults, and how often each is drawn."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tests.reliability.harm.clients import client_floods, client_sends_garbage, client_stalls, clients_leave
from tests.reliability.harm.disks import (
    clock_jumps,
    disk_full,
    file_swapped,
    file_truncated,
    file_unreadable,
    shared_memory_full,
)
from tests.reliability.harm.people import promoted, rolled_back
from tests.reliability.harm.processes import (
    port_taken,
    server_killed,
    server_stopped,
    stub_killed,
    stub_out_of_memory,
    stub_stopped,
    supervisor_killed,
)
from tests.reliability.scene import Scene
from tests.reliability.world import World


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        do: what does the harm, and takes it back.
        weight: how often it is drawn, beside the others.
        kills: it is worth doing only to a service that is well.
        needs: what it cannot be done without: `mounts`, `clock`, or nothing.
    """

    do: Callable[[Scene], AbstractContextManager[None]]
    weight: float
    kills: bool = False
    needs: str = ""

    @property
    def name(self) -> str:
        """In words."""
        return self.do.__name__.replace("_", " ")

    def possible(self, world: World) -> bool:
        """Whether it can be done here."""
        return {"": True, "mounts": world.mounts, "clock": world.clock_moves}[self.needs]


KINDS = (
    Kind(stub_killed, 4, kills=True),
    Kind(stub_stopped, 3, kills=True),
    Kind(stub_out_of_memory, 2, kills=True),
    Kind(server_killed, 3, kills=True),
    Kind(server_stopped, 2, kills=True),
    Kind(supervisor_killed, 2, kills=True),
    Kind(port_taken, 1, kills=True),
    Kind(shared_memory_full, 2, kills=True, needs="mounts"),
    Kind(disk_full, 6, needs="mounts"),
    Kind(file_swapped, 4),
    Kind(file_truncated, 4),
    Kind(file_unreadable, 4),
    Kind(clock_jumps, 6, needs="clock"),
    Kind(clients_leave, 12),
    Kind(client_stalls, 8),
    Kind(client_floods, 8),
    Kind(client_sends_garbage, 12),
    Kind(promoted, 9),
    Kind(rolled_back, 8),
)
