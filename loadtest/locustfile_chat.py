"""Locust's page for decoders: `locust -f loadtest/locustfile_chat.py`, people who chat."""

from loadtest import recorder  # noqa: F401 - listens
from loadtest.chats import GrpcChatUser, HttpChatUser

__all__ = ["GrpcChatUser", "HttpChatUser"]
