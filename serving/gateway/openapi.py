"""The OpenAPI document of the gateway, made from the table of endpoints and the types of bodies and answers.

Source: https://spec.openapis.org/oas/v3.1.1.html.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from serving.gateway.answers import CohereError, OpenAIError, TeiError
from serving.gateway.descriptions import describe
from serving.gateway.errors import ApiError, Shape, cohere_shape, openai_shape, tei_shape
from serving.gateway.http import JSON

_REF = "#/components/schemas/{name}"
_ERRORS: dict[Shape, type] = {openai_shape: OpenAIError, cohere_shape: CohereError, tei_shape: TeiError}
# When an endpoint answers with an error. docs/gateway.md says more of each.
_ANY = {
    408: "The body did not come in time.",
    413: "The body is too large.",
    500: "The gateway or the model has failed.",
    503: "Too much runs or waits, or the server does not serve now. `retry-after` says when to try again.",
}
_KEY = {
    401: "The key is missing, wrong, expired or revoked.",
    429: "The key has used up a limit. `retry-after` says when to try again.",
}
_BODY = {
    400: "The request can never succeed as it is.",
    404: "No such model is served, or not to this key.",
    502: "The model server refuses the gateway.",
    504: "There was no answer before the deadline.",
}
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


@dataclass(frozen=True)
class Operation:
    """What the document says of an endpoint.

    Attributes:
        summary: what it does, a line.
        answer: type of the answer, as msgspec has types; several: one of these.
        body: the same of the request's body; None: it has none.
        events: type of each event, where the body can ask for a stream.
        shapes: of errors, beside that of the endpoint.
        also: statuses beside 200 that come with `answer` and with no error.
    """

    summary: str
    answer: Any
    body: type[msgspec.Struct] | tuple[type[msgspec.Struct], ...] | None = None
    events: Any = None
    shapes: tuple[Shape, ...] = ()
    also: tuple[int, ...] = ()


class Documented(Protocol):
    """What is read of an endpoint; `serving.gateway.app.Endpoint` is the real one."""

    @property
    def path(self) -> str: ...
    @property
    def methods(self) -> tuple[str, ...]: ...
    @property
    def shape(self) -> Callable[[ApiError], dict[str, Any]]: ...
    @property
    def public(self) -> bool: ...
    @property
    def operation(self) -> Operation | None: ...


def document(endpoints: Iterable[Documented], version: str) -> dict[str, Any]:
    """The document, as plain values; endpoints without an operation are not in it.

    Args:
        version: of the program.
    """
    shown = [(each, each.operation) for each in endpoints if each.operation is not None]
    types = [kind for each, operation in shown for kind in _types(each, operation)]
    refs, components = msgspec.json.schema_components(types, ref_template=_REF)
    schemas = dict(zip(types, refs, strict=True))
    paths: dict[str, Any] = {}
    for each, operation in shown:
        path = _PARAMETER.sub(r"{\1}", each.path)
        for method in each.methods:
            paths.setdefault(path, {})[method.lower()] = _operation(each, operation, method, schemas)
    describe(components, [held.get("requestBody") for path in paths.values() for held in path.values()])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Shoal gateway",
            "version": version,
            "description": "Models on NVIDIA Triton behind the APIs of OpenAI, Cohere, Jina and "
            "text-embeddings-inference. Fields that are not known are ignored, and named in the header "
            "`x-shoal-ignored`.",
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key of `shoal keys add`. A gateway that was started without keys takes "
                    "requests without one, from its own machine only.",
                }
            },
        },
    }


def _several(kinds: Any) -> tuple[Any, ...]:
    return kinds if isinstance(kinds, tuple) else (kinds,)


def _errors(endpoint: Documented, operation: Operation) -> tuple[Any, ...]:
    return tuple(_ERRORS[shape] for shape in (endpoint.shape, *operation.shapes))


def _types(endpoint: Documented, operation: Operation) -> list[Any]:
    named = (*_several(operation.answer), *_several(operation.body), operation.events)
    return [kind for kind in (*named, *_errors(endpoint, operation)) if kind is not None]


def _operation(
    endpoint: Documented, operation: Operation, method: str, schemas: Mapping[Any, Any]
) -> dict[str, Any]:
    def content(kinds: Any, media_type: str = JSON) -> dict[str, Any]:
        found = [schemas[kind] for kind in _several(kinds)]
        return {media_type: {"schema": found[0] if len(found) == 1 else {"anyOf": found}}}

    whole = content(operation.answer)
    if operation.events is not None:
        whole |= content(operation.events, "text/event-stream")
    responses: dict[str, Any] = {"200": {"description": "The answer.", "content": whole}}
    failed = content(_errors(endpoint, operation))
    for status, description in sorted(_statuses(endpoint, operation).items()):
        responses[str(status)] = {"description": description, "content": failed}
    for status in operation.also:
        responses[str(status)] = {"description": "The same, of what is wrong.", "content": whole}
    told: dict[str, Any] = {
        "operationId": _id(method, endpoint.path),
        "summary": operation.summary,
        "responses": responses,
    }
    if names := _PARAMETER.findall(endpoint.path):
        told["parameters"] = [_parameter(name) for name in names]
    if operation.body is not None:
        told["requestBody"] = {"required": True, "content": content(operation.body)}
    if endpoint.public:
        told["security"] = []
    return told


def _parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _statuses(endpoint: Documented, operation: Operation) -> dict[int, str]:
    told = dict(_ANY)
    if not endpoint.public:
        told |= _KEY
    if operation.body is not None:
        told |= _BODY
    elif _PARAMETER.search(endpoint.path):
        told[404] = _BODY[404]
    return told


def _id(method: str, path: str) -> str:
    words = re.findall(r"\w+", _PARAMETER.sub(r"\1", path))
    return "_".join((method.lower(), *words))
