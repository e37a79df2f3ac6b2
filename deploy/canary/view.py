"""What the canary's server reads: the model repository with one model at another version, by links."""

from __future__ import annotations

import shutil
from pathlib import Path

from shoal.manifest import Manifest
from shoal.paths import write_atomic
from shoal.scratch import linked


def lay_out(repository: Path, manifest: Manifest, made: Path) -> Path:
    """Make a repository that serves this version, and everything else as `repository` does.

    Args:
        made: a path on the same file system that is not there yet.

    Raises:
        OSError: it cannot be written.
    """
    for config in repository.glob("*/config.pbtxt"):
        shutil.copytree(config.parent, made / config.parent.name, copy_function=linked)
    for model, text in manifest.configs.items():
        write_atomic(made / model / "config.pbtxt", text)  # a file of its own in the place of the link
    return made
