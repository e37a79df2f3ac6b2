"""`locust -f loadtest/locustfile.py` opens Locust's web page; `shoal loadtest` runs it headless."""

from loadtest import recorder  # noqa: F401 - listens
from loadtest.users import GrpcRowUser, HttpRowUser

__all__ = ["GrpcRowUser", "HttpRowUser"]
