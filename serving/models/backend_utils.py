"""`pb_utils` for the model classes: Triton's own inside its Python stub, elsewhere what stands in for it."""

from __future__ import annotations

try:
    import triton_python_backend_utils as pb_utils
except ModuleNotFoundError:
    from serving.models import stand_in as pb_utils

__all__ = ["pb_utils"]
