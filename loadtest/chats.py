"""Simulated people who talk to a decoder: a conversation that grows over turns, answers read as they stream.

Besides each answer as a whole, Locust gets rows of their own for the time to first token and for the time
between tokens. Lengths are spread as real ones are: most questions and answers short, a few long.
"""

from __future__ import annotations

import random
import time
from typing import Any

from locust import events, task

from loadtest.users import GrpcUser, HttpUser, LoadUser
from shoal import corpus

GENERATE, FIRST_TOKEN, BETWEEN_TOKENS = "generate", "first token", "between tokens"
TURNS = 5
QUESTIONS = corpus.texts(500, words=(16.0, 0.6), seed=2)
ANSWER_TOKENS = (48.0, 0.5)  # median and sigma of a log-normal distribution
MOST_TOKENS = 160


class ChatUser(LoadUser):
    """Asks five questions in one conversation, then begins another, without a pause."""

    abstract = True

    def on_start(self) -> None:
        """One connection a user."""
        super().on_start()
        self.messages: list[dict[str, str]] = []

    @task
    def turn(self) -> None:
        """One question and its answer."""
        if len(self.messages) >= 2 * TURNS:
            self.messages = []
        self.messages.append({"role": "user", "content": random.choice(QUESTIONS)})  # noqa: S311
        most = min(MOST_TOKENS, round(ANSWER_TOKENS[0] * random.lognormvariate(0, ANSWER_TOKENS[1])))
        parts: list[Any] = []
        times: list[float] = []
        failure: Exception | None = None
        start = time.perf_counter()
        try:
            for part in self.client.chat(
                self.messages,
                model=self.environment.parsed_options.model,
                max_tokens=max(4, most),
                temperature=0,
            ):
                parts.append(part)
                times.append(time.perf_counter())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure and is counted
            failure = error
            time.sleep(0.1)  # a dead server must not be asked ten thousand times a second
        tokens = sum(part.tokens for part in parts)
        self.fire(GENERATE, 1e3 * (time.perf_counter() - start), tokens, failure)
        if failure is not None:
            self.messages = []
            return
        self.messages.append({"role": "assistant", "content": "".join(part.text for part in parts)})
        self.fire(FIRST_TOKEN, 1e3 * (times[0] - start), parts[0].tokens)
        later = tokens - parts[0].tokens
        if later > 0:
            self.fire(BETWEEN_TOKENS, 1e3 * (times[-1] - times[0]) / later, later)


class GrpcChatUser(ChatUser, GrpcUser):
    """Over gRPC."""


class HttpChatUser(ChatUser, HttpUser):
    """Over HTTP."""


@events.init_command_line_parser.add_listener
def _set_defaults(parser: Any) -> None:
    parser.set_defaults(model="smollm2", deadline=120.0)
