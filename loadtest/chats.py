"""Simulated people who talk to a decoder, and read answers as they stream.

Besides each answer as a whole, Locust gets rows of their own for the time to first token and for the time
between tokens. Lengths are spread as real ones are: most questions and answers short, a few long.
"""

from __future__ import annotations

import random
from typing import Any

from locust import events, task

from loadtest.users import WorkloadUser
from shoal import corpus

TURNS = 5
QUESTIONS = corpus.texts(500, words=(16.0, 0.6), seed=2)
ANSWER_TOKENS = (48.0, 0.5)  # median and sigma of a log-normal distribution
MOST_TOKENS = 160


class ChatUser(WorkloadUser):
    """Sends requests of a workload; without one, asks five questions in a conversation, then begins another.

    Such a conversation grows by what the model has really said.
    """

    abstract = True
    generates = True

    def on_start(self) -> None:
        """See `WorkloadUser`."""
        super().on_start()
        self.messages: list[dict[str, str]] = []

    @task
    def ask(self) -> None:
        """One question and its answer."""
        if self.environment.parsed_options.workload:
            self.ask_for(random.choice(self.requests))  # noqa: S311 - load, not a secret
            return
        if len(self.messages) >= 2 * TURNS:
            self.messages = []
        self.messages.append({"role": "user", "content": random.choice(QUESTIONS)})  # noqa: S311
        most = min(MOST_TOKENS, round(ANSWER_TOKENS[0] * random.lognormvariate(0, ANSWER_TOKENS[1])))
        seen = self.ask_for({"messages": self.messages, "max_tokens": max(4, most)})
        if seen is None:
            self.messages = []
        else:
            self.messages.append({"role": "assistant", "content": seen.text})


class GrpcChatUser(ChatUser):
    """Over gRPC."""

    protocol = "grpc"


class HttpChatUser(ChatUser):
    """Over HTTP."""

    protocol = "http"


@events.init_command_line_parser.add_listener
def _set_defaults(parser: Any) -> None:
    parser.set_defaults(model="smollm2", deadline=120.0)
