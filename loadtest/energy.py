"""Energy that the processors have taken, where Linux tells it (RAPL, of Intel's and AMD's processors)."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class Meter:
    """Counts from when it is made.

    Args:
        powercap: where Linux shows the counters: https://docs.kernel.org/power/powercap/powercap.html
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        # Other zones are parts of a processor, or the whole board with the processors in it.
        self._zones = [zone for zone in powercap.glob("intel-rapl:*") if _is_processor(zone)]
        self._last = self._read()
        self._total = 0 if self._last else None

    def tick(self) -> None:
        """Look at the counters: to be called every few minutes, in which they may begin again once."""
        now = self._read()
        if self._total is None or now.keys() != self._last.keys():
            self._total = None
            return
        for zone, (value, span) in now.items():
            difference = value - self._last[zone][0]
            self._total += difference if difference >= 0 else difference + span
        self._last = now

    def joules(self) -> float | None:
        """Since it was made; None: no counter can be read, as in most virtual machines and without root."""
        self.tick()
        return None if self._total is None else self._total / 1e6

    def _read(self) -> dict[Path, tuple[int, int]]:
        try:
            return {
                zone: (_number(zone / "energy_uj"), _number(zone / "max_energy_range_uj"))
                for zone in self._zones
            }
        except (OSError, ValueError):
            return {}


def _is_processor(zone: Path) -> bool:
    try:
        return (zone / "name").read_text().startswith("package-")
    except OSError:
        return False


def _number(path: Path) -> int:
    return int(path.read_text())
