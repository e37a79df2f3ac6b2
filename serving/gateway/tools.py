"""OpenAI's `tools`: what a request asks for, and the grammar that makes an answer call them.

What a model has written is read back by `serving.gateway.tool_calls`.

Sources: OpenAI's API reference of chat completions, the fields `tools`, `tool_choice` and
`parallel_tool_calls`; the formats of calls are those of `shoal.tools`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from serving.generation.schema import prepared
from shoal.tools import ToolFormat

MAX_TOOLS = 128  # OpenAI's own limit
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CHOICES: dict[str, Literal["none", "auto", "required"]] = {
    "none": "none",
    "auto": "auto",
    "required": "required",
    "any": "required",  # the word of Anthropic and Mistral, which some clients send on
}
# What says of itself which further arguments there may be.
_MORE = frozenset({"additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames"}) | {
    *("allOf", "anyOf", "oneOf", "not", "if", "$ref", "dependentSchemas", "minProperties")
}
# What an object schema may hold and still describe no argument.
_SILENT = ("type", "title", "description", "$schema")
_EMPTY: dict[str, tuple[Any, ...]] = {
    "properties": ({},),
    "required": ([],),
    "additionalProperties": (False,),
}


class BadTools(ValueError):
    """A request whose tools can never be served as they are.

    Attributes:
        param: path of what is wrong in the request, such as `tools[0].function.name`.
        message: what is wrong with it, in one line.
    """

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param, self.message = param, message


@dataclass(frozen=True)
class Function:
    """A function that the model may call.

    Attributes:
        name: 1 to 64 letters, digits, underscores and hyphens of ASCII.
        parameters: the JSON schema of its arguments, an object; None: it takes none.
        index: its place in the request's `tools`.
    """

    name: str
    parameters: Mapping[str, Any] | None
    index: int


@dataclass(frozen=True)
class ToolRequest:
    """What a request says about tools, checked.

    Attributes:
        functions: in the order of the request; empty: no tools.
        choice: `none`: the model must not call a function; `auto`: it may; `required`: it must call at least
            one; `named`: it must call `name`, once.
        name: of the function that must be called; "" unless `choice` is `named`.
        parallel: whether one answer may hold several calls.
    """

    functions: tuple[Function, ...] = ()
    choice: Literal["none", "auto", "required", "named"] = "none"
    name: str = ""
    parallel: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the functions that an answer may call, as `CallParser` needs them."""
        if self.choice == "none":
            return ()
        return (self.name,) if self.name else tuple(function.name for function in self.functions)


def check(tools: Any, tool_choice: Any, parallel_tool_calls: Any) -> ToolRequest:
    """Check these fields of a request's body; None stands for a field that is missing or null.

    An empty list of tools means no tools. Unknown fields are ignored, and so is `strict`: only `tool_choice`
    decides whether calls are made to match their schemas.

    Raises:
        BadTools: one of them is wrong; it names the place.
    """
    functions = _functions(tools)
    if not isinstance(parallel_tool_calls, bool | None):
        raise BadTools("parallel_tool_calls", "must be true or false")
    parallel = parallel_tool_calls is not False
    if isinstance(tool_choice, dict):
        name = _chosen(tool_choice, functions)
        return ToolRequest(functions, "named", name, parallel)
    if tool_choice is not None and not (isinstance(tool_choice, str) and tool_choice in _CHOICES):
        raise BadTools(
            "tool_choice", 'must be "none", "auto", "required", or an object that names one of the tools'
        )
    choice = _CHOICES[tool_choice or "auto"]
    if not functions:
        if choice == "required":
            raise BadTools("tool_choice", "asks for a call, but the request has no tools")
        choice = "none"
    return ToolRequest(functions, choice, "", parallel)


def _functions(tools: Any) -> tuple[Function, ...]:
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise BadTools("tools", "must be a list")
    if len(tools) > MAX_TOOLS:
        raise BadTools("tools", f"holds {len(tools)} tools, at most {MAX_TOOLS} are accepted")
    functions = tuple(_function(tool, index) for index, tool in enumerate(tools))
    first: dict[str, int] = {}
    for function in functions:
        if first.setdefault(function.name, function.index) != function.index:
            raise BadTools(
                f"tools[{function.index}].function.name",
                f"is {function.name!r}, which tools[{first[function.name]}] is called already",
            )
    return functions


def _function(tool: Any, index: int) -> Function:
    where = f"tools[{index}]"
    if not isinstance(tool, dict):
        raise BadTools(where, "must be an object")
    if tool.get("type") != "function":
        raise BadTools(f"{where}.type", 'must be "function"; no other type of tool is served')
    function = tool.get("function")
    if not isinstance(function, dict):
        raise BadTools(f"{where}.function", "must be an object with a name")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadTools(
            f"{where}.function.name", "must be 1 to 64 characters of a-z, A-Z, 0-9, underscore and hyphen"
        )
    if not isinstance(function.get("description"), str | None):
        raise BadTools(f"{where}.function.description", "must be a string")
    if not isinstance(function.get("strict"), bool | None):
        raise BadTools(f"{where}.function.strict", "must be true or false")
    parameters = function.get("parameters")
    if not isinstance(parameters, dict | None):
        raise BadTools(f"{where}.function.parameters", "must be a JSON schema, which is an object")
    if parameters is not None and parameters.get("type", "object") != "object":
        raise BadTools(
            f"{where}.function.parameters.type",
            'must be "object": arguments are named, and stand in an object',
        )
    return Function(name, parameters, index)


def _chosen(choice: dict[str, Any], functions: tuple[Function, ...]) -> str:
    """The name in a `tool_choice` that names a function."""
    if choice.get("type") != "function":
        raise BadTools("tool_choice.type", 'must be "function"')
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise BadTools("tool_choice.function.name", "must be the name of one of the tools")
    if name not in [known.name for known in functions]:
        raise BadTools("tool_choice.function.name", f"is {name[:64]!r}, which none of the tools is called")
    return name


def structured(
    request: ToolRequest, form: ToolFormat, control_tokens: Mapping[str, int]
) -> dict[str, str] | None:
    """The `structured_outputs` that make a whole answer consist of valid calls; None: the answer is free.

    With `required` the answer is one call, or several if the request allows parallel calls. A function that
    is named is called exactly once, as OpenAI's guide to function calling says. Arguments match the schema
    of the function, and have the separators of `json.dumps`. A function without parameters gets `{}`, and
    none gets an argument that its schema neither names nor speaks of otherwise.

    Where a special token is part of the format (`form.special`), the answer must be asked for with
    `skip_special_tokens: false`, or `CallParser` does not see it.

    Args:
        form: how the model writes calls.
        control_tokens: ids by their text of all added tokens of the tokenizer, special or not. Left to
            spell `<tool_call>` as text, llguidance fails where that is an added token.

    Raises:
        BadTools: a schema asks for what cannot be kept to while an answer is written; it names the place.
    """
    if request.choice in ("none", "auto"):
        return None
    functions = [f for f in request.functions if request.choice == "required" or f.name == request.name]
    begin, end, between = (_marked(text, control_tokens) for text in (form.begin, form.end, form.between))
    several = request.parallel and request.choice == "required"
    if form.listed:
        # Mistral 7B v0.3 writes a space before the list, its later models do not.
        whole = [
            *begin,
            '" "? "["',
            "call",
            f"({' '.join([*between, 'call'])})*" if several else "",
            '"]"',
            *end,
        ]
    else:
        one = [*begin, "call", *end]
        whole = [*one, f"({' '.join([*between, *one])})*" if several else ""]
    calls = [_call(function, form) for function in functions]
    return {
        "grammar": f"start: {' '.join(filter(None, whole))}\ncall: {chr(10).join(_alternatives(calls))}\n"
    }


def _alternatives(rules: list[str]) -> list[str]:
    return [rule if index == 0 else f"  | {rule}" for index, rule in enumerate(rules)]


def _call(function: Function, form: ToolFormat) -> str:
    """One call as the right side of a Lark rule."""
    head = f'{{"name": {json.dumps(function.name)}, "{form.arguments}": '
    where = f"tools[{function.index}].function.parameters"
    if not _describes(function.parameters or {}):
        return json.dumps(head + "{}}")
    schema = {**(function.parameters or {}), "type": "object"}
    if "properties" in schema and not _MORE & schema.keys():
        # Small models go on with arguments that the function does not have, to the end of the context.
        schema["additionalProperties"] = False
    try:
        prepared(schema)  # The model would refuse it as well, but without saying which tool is meant.
        text = json.dumps(schema, allow_nan=False)
    except RecursionError:
        raise BadTools(where, "is nested too deep") from None
    except ValueError as error:
        wrong = (
            "it holds a number that is too large, or none" if "Out of range float" in str(error) else error
        )
        raise BadTools(where, str(wrong)) from None
    return f'{json.dumps(head)} %json {text} "}}"'


def _describes(schema: Mapping[str, Any]) -> bool:
    """Whether a schema says anything about arguments.

    If it does not, it allows every object. A model that must write one would then invent arguments.
    """
    return any(
        keyword not in _SILENT and value not in _EMPTY.get(keyword, ()) for keyword, value in schema.items()
    )


def _marked(text: str, control_tokens: Mapping[str, int]) -> list[str]:
    """A text in Lark, with the token itself where what stands between white space is an added token."""
    marker = text.strip()
    if marker not in control_tokens:
        return [json.dumps(text)] if text else []
    before, _, after = text.partition(marker)
    parts = (
        json.dumps(before) if before else "",
        f"<[{control_tokens[marker]}]>",
        json.dumps(after) if after else "",
    )
    return [part for part in parts if part]
