"""`pb_utils` for the model classes: Triton's own inside its Python stub, elsewhere what stands in for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

try:
    import triton_python_backend_utils as pb_utils
except ModuleNotFoundError:
    from serving.models import stand_in as pb_utils

__all__ = ["pb_utils", "version_folder"]


def version_folder(args: Mapping[str, str]) -> Path:
    """Where the files of a model's version lie.

    The Python inside Triton's stub takes names of files for ASCII. There a path with other letters becomes
    one that stands for the same bytes (PEP 383).

    Args:
        args: of `TritonPythonModel.initialize`.
    """
    return Path(os.fsdecode(f"{args['model_repository']}/{args['model_version']}".encode()))
