"""A conversation in the form a model was trained on: its own chat template, rendered on this side.

The template comes with the model's config, so client and server cannot disagree. It is Jinja from a
checkpoint, so it runs in Jinja's sandbox.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from clients.errors import BadInput

Message = Mapping[str, str]


class ChatTemplate:
    """Renders conversations.

    Args:
        source: Jinja, as in a checkpoint's `chat_template`.
        begin: the token every text begins with, for templates that ask for it.

    Raises:
        BadInput: it is empty or not a template.
    """

    def __init__(self, source: str, begin: str = "") -> None:
        if not source:
            raise BadInput("this model has no chat template", hint="use generate, with a text of your own")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        self._begin = begin
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise BadInput(f"the model's chat template cannot be read: {error}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt for the assistant's next message.

        Args:
            messages: each with `role` (system, user or assistant) and `content`.

        Raises:
            BadInput: the template does not take this conversation.
        """
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, bos_token=self._begin)
        except (TemplateError, TypeError) as error:
            raise BadInput(f"the model's chat template does not take this conversation: {error}") from error

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ChatTemplate:
        """From a model's config, as a client's `config` returns it."""
        parameters = config.get("parameters") or {}
        values = {
            key: parameters.get(key, {}).get("string_value", "") for key in ("chat_template", "begin_token")
        }
        return cls(values["chat_template"], values["begin_token"])


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
