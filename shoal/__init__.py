"""Shoal: from a Hugging Face checkpoint to a proven, load-tested NVIDIA Triton endpoint.

This package is the little that all rooms share: the errors, the manifest, the CPU count, the command.
"""

__version__ = "0.1.0"
