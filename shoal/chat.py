"""A conversation in the form a model was trained on: its own chat template, rendered on this side.

The template comes with the model's config, so client and server cannot disagree. It is Jinja from a
checkpoint, so it runs in Jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shoal.errors import BadInput

Message = Mapping[str, str]


class _Generation(Extension):
    """`{% generation %}`: marks what an assistant says, for training; it is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_pass"), [], [], body).set_lineno(line)

    def _pass(self, caller: Callable[[], str]) -> str:
        return caller()


class ChatTemplate:
    """Renders conversations as transformers' `apply_chat_template` does.

    Args:
        source: Jinja, as in a checkpoint's `chat_template`.
        special_tokens: by name, e.g. `bos_token`, for templates that ask for them.

    Raises:
        BadInput: it is empty or not a template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        if not source:
            raise BadInput("this model has no chat template", hint="use generate, with a text of your own")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _json  # Jinja's own escapes what HTML would take for a tag
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        self._tokens = dict(special_tokens or {})
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise BadInput(f"the model's chat template cannot be read: {error}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt for the assistant's next message.

        Args:
            messages: each with `role` (system, user or assistant) and `content`.

        Raises:
            BadInput: there is no message, or the template does not take this conversation.
        """
        if not messages:
            raise BadInput("the conversation is empty", hint="pass at least one message")
        try:
            return self._template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._tokens
            )
        except (TemplateError, TypeError) as error:
            raise BadInput(f"the model's chat template does not take this conversation: {error}") from error

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ChatTemplate:
        """Take the template from a model's config, as a client's `config` returns it."""
        parameters = config.get("parameters") or {}
        values = {
            key: parameters.get(key, {}).get("string_value", "")
            for key in ("chat_template", "special_tokens", "begin_token")
        }
        # A version from before there were `special_tokens` states the first of them alone.
        tokens = json.loads(values["special_tokens"] or "{}") or {"bos_token": values["begin_token"]}
        return cls(values["chat_template"], tokens)


def _json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson` with the arguments that transformers gives it."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
