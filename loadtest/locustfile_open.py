"""An open loop; `shoal loadtest --rate` runs it."""

from loadtest import recorder  # noqa: F401 - listens
from loadtest.open_loop import BothOpenLoop, GrpcOpenLoop, HttpOpenLoop

__all__ = ["BothOpenLoop", "GrpcOpenLoop", "HttpOpenLoop"]
