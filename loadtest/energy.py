"""Energy that the processor has taken, where Linux tells it (RAPL, of Intel's and AMD's processors)."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class Meter:
    """Counts from when it is made.

    Args:
        powercap: where Linux shows the counters: https://docs.kernel.org/power/powercap/powercap.html
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        # `intel-rapl:0` is a processor; `intel-rapl:0:1` is a part of it, and its energy is in the former.
        self._zones = [zone for zone in powercap.glob("intel-rapl:*") if zone.name.count(":") == 1]
        self._before = self._read()

    def joules(self) -> float | None:
        """Since it was made; None: no counter can be read, as in most virtual machines and without root."""
        now = self._read()
        if not self._before or now.keys() != self._before.keys():
            return None
        total = 0
        for zone, value in now.items():
            difference = value - self._before[zone]
            total += difference if difference >= 0 else difference + _number(zone / "max_energy_range_uj")
        return total / 1e6

    def _read(self) -> dict[Path, int]:
        try:
            return {zone: _number(zone / "energy_uj") for zone in self._zones}
        except (OSError, ValueError):
            return {}


def _number(path: Path) -> int:
    return int(path.read_text())
