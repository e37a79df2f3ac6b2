"""A conversation in the form a model was trained on: its own chat template, rendered.

The template comes with the model's config. It is Jinja from a checkpoint, so it runs in Jinja's sandbox. A
decoder of ours renders it itself, since only who also tokenizes can keep what people write from becoming a
control token (`serving.generation.conversation`); for models of other makers, clients do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shoal.errors import BadInput

Message = Mapping[str, Any]


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

    Attributes:
        source: as given.

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
        self.source = source
        self._tokens = dict(special_tokens or {})
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise BadInput(f"the model's chat template cannot be read: {error}") from error

    @property
    def takes_tools(self) -> bool:
        """Whether the template shows the model the tools that it may call."""
        return re.search(r"\btools\b", self.source) is not None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for the assistant's next message.

        Args:
            messages: each with `role` (system, user or assistant) and `content`.
            tools: functions that the model may call, as OpenAI's API describes them; None: none.
            continue_final_message: the prompt ends with the content of the last message, which the model goes
                on with.
            add_generation_prompt: the prompt ends where the assistant's message begins.
            variables: further ones that the template reads, such as `enable_thinking`.

        Raises:
            BadInput: there is no message, or the template does not take this conversation.
        """
        if not messages:
            raise BadInput("the conversation is empty", hint="pass at least one message")
        given = {
            **(variables or {}),
            **self._tokens,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        try:
            rendered = self._template.render(given)
        except (TemplateError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise BadInput(f"the model's chat template does not take this conversation: {error}") from error
        return _cut(rendered, messages[-1]["content"] or "") if continue_final_message else rendered

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


def _cut(rendered: str, content: str) -> str:
    """A rendered conversation up to the end of its last message's content, as transformers cuts it."""
    start = rendered.rfind(content.strip())
    if not content.strip() or start < 0:
        raise BadInput(
            "the last message cannot be continued: it is empty, or the chat template does not show it"
        )
    whole = content.lstrip()  # templates may strip the end
    return rendered[: start + len(whole if rendered.startswith(whole, start) else content.strip())]


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
