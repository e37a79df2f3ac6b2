"""Holds answers of the gateway against its OpenAPI document, more strictly than callers need to."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from jsonschema import Draft202012Validator

from serving.gateway.endpoints import ENDPOINTS
from serving.gateway.openapi import document

# Answers that are told in part only; the types say so.
_OPEN = ("ModelResponse", "ResponseEvent")


def api() -> dict[str, Any]:
    """The document, in which an answer has no field that is not told."""
    made = deepcopy(document(ENDPOINTS, "0"))
    for name, schema in made["components"]["schemas"].items():
        if "properties" in schema and name not in _OPEN:
            schema["additionalProperties"] = False
    return made


def check(path: str, told: Any, status: int = 200, media_type: str = "application/json") -> None:
    """Check an answer, or an event of a stream.

    Args:
        path: as the document has it.

    Raises:
        jsonschema.ValidationError: it is not what the document says.
    """
    document = api()
    (operation,) = document["paths"][path].values()
    schema = operation["responses"][str(status)]["content"][media_type]["schema"]
    Draft202012Validator({**schema, "components": document["components"]}).validate(told)
