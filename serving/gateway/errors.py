"""What a caller of the gateway is told when a request fails: one class, and the shapes that clients read.

OpenAI's SDK reads `{"error": {"message", "type", "param", "code"}}`; a body of another form leaves its
`error.code` empty. Cohere's client reads `{"message"}`, and that of text-embeddings-inference
`{"error", "error_type"}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from clients.errors import (
    BadInput,
    ClientError,
    Denied,
    Overloaded,
    Timeout,
    Unavailable,
    UnknownModel,
)

INVALID, OVERLOADED, INTERNAL = "invalid_request_error", "overloaded_error", "server_error"
RETRY_SECONDS, MOST_RETRY_SECONDS = 1.0, 60.0


class ApiError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        message: for people.
        kind: what OpenAI calls `type`.
        code: for programs, such as `model_not_found`; None: there is none.
        param: the field of the body that is wrong; None: none in particular.
        headers: beside those of every response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        self.headers = dict(headers or {})


def bad_request(message: str, param: str | None = None) -> ApiError:
    """A request that can never succeed as it is."""
    return ApiError(400, message, param=param, code="invalid_value" if param else None)


def unknown_model(name: str) -> ApiError:
    """No such model is served, or not to this key."""
    said = f"The model `{name[:200]}` does not exist; GET /v1/models lists those that do"
    return ApiError(404, said, code="model_not_found", param="model")


def overloaded(message: str, seconds: float = RETRY_SECONDS) -> ApiError:
    """There is more to do than can be done; OpenAI's SDK waits for some seconds and tries again."""
    milliseconds = round(min(max(seconds, RETRY_SECONDS), MOST_RETRY_SECONDS) * 1000)
    return ApiError(
        503,
        message,
        kind=OVERLOADED,
        code="overloaded",
        headers={"retry-after-ms": str(milliseconds), "retry-after": str(-(-milliseconds // 1000))},
    )


def stream_lost(message: str) -> ApiError:
    """An answer that had begun cannot be brought to its end: its server has gone."""
    return ApiError(503, f"the answer was lost: {message}", kind=INTERNAL, code="stream_lost")


def from_client(error: ClientError) -> ApiError:
    """What the client of Triton raised, without the address of the server."""
    message = re.sub(r"^[^ ]+: ", "", error.message, count=1)
    made = ApiError(500, message, kind=INTERNAL, code="internal")
    if isinstance(error, UnknownModel):
        made = ApiError(404, message, code="model_not_found", param="model")
    elif isinstance(error, BadInput):
        made = ApiError(400, message)
    elif isinstance(error, Overloaded):
        made = overloaded(message)
    elif isinstance(error, Timeout):
        made = ApiError(504, message, kind="timeout_error", code="timeout")
    elif isinstance(error, Unavailable):
        made = ApiError(
            503, "the model is not available", kind=INTERNAL, code="unavailable", headers={"retry-after": "1"}
        )
    elif isinstance(error, Denied):
        made = ApiError(502, "the model server refuses the gateway", kind=INTERNAL, code="denied")
    return made


def openai_shape(error: ApiError) -> dict[str, Any]:
    """The body that OpenAI's clients read."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def cohere_shape(error: ApiError) -> dict[str, Any]:
    """The body that Cohere's client reads."""
    return {"message": error.message}


def tei_shape(error: ApiError) -> dict[str, Any]:
    """The body that clients of text-embeddings-inference read."""
    kind = "Overloaded" if error.status in (429, 503) else "Validation" if error.status < 500 else "Backend"
    return {"error": error.message, "error_type": kind}


Shape = Callable[[ApiError], dict[str, Any]]
