"""What an engine was built from, with and for; whether it fits a machine is for `shoal.tensorrt`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from export.tensorrt.shapes import Profile


@dataclass(frozen=True)
class Fingerprint:
    """For the manifest.

    Attributes:
        flavour: `tensorrt`, or `tensorrt-rtx`, whose engines Triton does not load.
        version: of that library; an engine is read by the same version only.
        compute_capabilities: of the GPUs it runs on, e.g. `8.9`.
        onnx_sha256: of the graph it was built from.
        strongly_typed: precision is that of the graph's own types and nowhere lower.
        profiles: in the engine's order, which is the order Triton counts them in.
    """

    flavour: str
    version: str
    compute_capabilities: tuple[str, ...]
    onnx_sha256: str
    strongly_typed: bool
    profiles: tuple[Profile, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give the value as plain JSON types."""
        return msgspec.json.decode(msgspec.json.encode(self), type=dict[str, Any])

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Fingerprint:
        """Make the value from what `to_dict` gave."""
        return msgspec.convert(values, cls)
