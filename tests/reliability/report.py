"""Figures of a run, as JSON in `build/reliability` and as a table on the terminal."""

from __future__ import annotations

import json
import platform
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shoal import machine
from tests.conftest import ROOT
from tests.reliability.callers import DEADLINE, Ended


def requests(ended: Sequence[Ended]) -> dict[str, Any]:
    """Of each kind of caller: how its requests ended, and after how long."""
    kinds: dict[str, list[Ended]] = defaultdict(list)
    for one in ended:
        kinds[one.kind].append(one)
    return {
        kind: {
            "sent": len(found),
            "ends": dict(Counter(one.how for one in found).most_common()),
            "p50_ms": round(1e3 * float(np.median([one.seconds for one in found])), 1),
            "p99_ms": round(1e3 * float(np.percentile([one.seconds for one in found], 99)), 1),
            "latest_after_deadline_s": round(max(0.0, *(one.seconds - DEADLINE for one in found)), 2),
        }
        for kind, found in sorted(kinds.items())
    }


def write(name: str, figures: dict[str, Any]) -> Path:
    """Keep the figures of a run, with the machine they are from."""
    about = {
        "cpu": machine.cpu_model(),
        "cpus": machine.available_cpus(),
        "python": platform.python_version(),
    }
    path: Path = ROOT / "build" / "reliability" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": about, **figures}, indent=2) + "\n")
    print(f"\n{json.dumps(figures, indent=1)}\n{path}")
    return path
