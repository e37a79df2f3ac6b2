"""What can go wrong with a request, as types a caller can act on.

ClientError
├── Unavailable     nobody answered, or the server or model is not serving: try again later
├── Overloaded      the server's queue is full: try again later, and send less
├── BadInput        the request can never succeed as it is: change it
│   └── UnknownModel    no such model or version is served
├── Denied          the endpoint is closed, and the key was wrong or missing
├── Timeout         no answer before the deadline
└── ServerFault     the server failed on a request it accepted
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from tritonclient.utils import InferenceServerException

from shoal.admin import VARIABLE
from shoal.dialect import INVALID_REQUEST, QUEUE_FULL
from shoal.errors import BadInput, ClientError

__all__ = [
    "BadInput",
    "ClientError",
    "Denied",
    "Overloaded",
    "ServerFault",
    "Timeout",
    "Unavailable",
    "UnknownModel",
]


class Unavailable(ClientError):
    """Nobody answered, or the server or the model is not serving."""


class Overloaded(ClientError):
    """The server refused the request because its queue is full."""


class UnknownModel(BadInput):
    """No such model, or no such version of it, is served."""


class Denied(ClientError):
    """The endpoint is closed to who has no admin key."""


class Timeout(ClientError):
    """There was no answer before the deadline."""


class ServerFault(ClientError):
    """The server failed on a request it had accepted."""


# Triton 2.51 answers "queue full", "stopping" and "unknown version" with codes that overlap, so the
# text decides first. Each pattern is from the server's own messages.
_BY_TEXT: tuple[tuple[str, type[ClientError]], ...] = (
    (
        rf"^{INVALID_REQUEST}|model expects|unexpected inference|expected \d+ inputs|unexpected shape",
        BadInput,
    ),
    (r"decoupled transaction policy", BadInput),
    (r"protocol is restricted|API is restricted", Denied),
    (rf"[Ee]xceeds maximum queue size|{QUEUE_FULL}", Overloaded),
    (r"has no available versions", Unavailable),  # it is being unloaded: the server stops
    (r"unknown model|is not found|version .* not found", UnknownModel),
    # `Internal error from Core` is what gRPC says of a call that begins as its connection breaks. The last
    # lines are how gRPC and proxies tell of a stream whose server is gone, each proxy with another status.
    (
        r"[Ss]tub process|is not ready|stopping|shutting down|not available|failed to connect"
        r"|^Internal error from Core$"
        r"|RST_STREAM|Stream removed|GOAWAY"
        r"|upstream connect error|no healthy upstream|connection termination",
        Unavailable,
    ),
    (r"[Dd]eadline [Ee]xceeded|[Tt]imeout|timed out", Timeout),
)
_BY_STATUS: dict[str, type[ClientError]] = {
    "StatusCode.UNAVAILABLE": Unavailable,
    "StatusCode.CANCELLED": Unavailable,  # by the server, as it ends
    "StatusCode.INVALID_ARGUMENT": BadInput,
    "StatusCode.NOT_FOUND": UnknownModel,
    "StatusCode.UNIMPLEMENTED": BadInput,
    "StatusCode.OUT_OF_RANGE": BadInput,
    "StatusCode.RESOURCE_EXHAUSTED": BadInput,  # a message larger than gRPC's limit
    "StatusCode.DEADLINE_EXCEEDED": Timeout,
    "400": BadInput,
    "403": Denied,
    "404": UnknownModel,
    "413": BadInput,
    "429": Overloaded,
    "499": Timeout,
    "503": Unavailable,
    "504": Timeout,
}


def from_triton(error: InferenceServerException, url: str) -> ClientError:
    """The typed error for what tritonclient raised."""
    status = str(error.status() or "").strip("[]")
    message = re.sub(r"^\[request id: [^]]*\] ", "", str(error.message() or error).strip())
    message = re.sub(r" NOTE: Setting a non-zero max_batch_size.*", "", message, flags=re.DOTALL)
    kind = _BY_STATUS.get(status)
    if kind in (None, Unavailable, BadInput, UnknownModel):
        for pattern, by_text in _BY_TEXT:
            if re.search(pattern, message):
                kind = by_text
                break
    message = re.sub(rf"^(in ensemble '[^']*', |{INVALID_REQUEST})", "", message)
    if message == "Not Found":  # all that Triton says over HTTP
        message = "no such model or version is served"
    if kind is Timeout:
        message = "no answer before the deadline"
    hint = f"the server's admin key opens it: ${VARIABLE}, or admin_key=..." if kind is Denied else ""
    return (kind or ServerFault)(f"{url}: {message}", hint=hint)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn what tritonclient and its transports raise into `ClientError`s.

    A wrong name, dtype or shape that tritonclient itself notices arrives without a status.
    """
    try:
        yield
    except InferenceServerException as error:
        raise from_triton(error, url) from error
    except grpc.RpcError as error:  # of an asyncio stream, which tritonclient hands on as it is
        raised = InferenceServerException(str(error.details()), status=str(error.code()))
        raise from_triton(raised, url) from error
    except TimeoutError as error:
        raise Timeout(f"{url}: no answer before the deadline") from error
    except OSError as error:
        raise Unavailable(
            f"{url}: {error.strerror or error}", hint="is the server running? shoal status"
        ) from error
