"""The page in the browser: a fixed list of files, read once. No path of a request reaches the file system."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from serving.gateway.http import Answer, Call, Reply
from serving.gateway.service import Gateway

# Nothing but these files runs or is loaded, and no text becomes markup: script that would write HTML fails.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # a browser asks each time whether its copy still holds
}
_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
_STATIC = (
    "style.css",
    "icon.svg",
    "app.js",
    "api.js",
    "chat.js",
    "code.js",
    "docs.js",
    "dom.js",
    "forms.js",
    "models.js",
    "results.js",
)
FILES = {"/": "index.html", "/docs": "docs.html", **{f"/static/{name}": name for name in _STATIC}}


def _reply(name: str) -> Reply:
    content = (files("serving.gateway") / "static" / name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    kind = _TYPES[name.rpartition(".")[2]]
    return Reply(content, media_type=kind, headers={**_HEADERS, "etag": tag})


_REPLIES = {name: _reply(name) for name in FILES.values()}


async def page(gateway: Gateway, call: Call, *, name: str) -> Answer:
    """Answer with a file, or with 304 where the browser has it.

    Args:
        name: of the file, one of `FILES`.
    """
    return unless_known(_REPLIES[name], call)


def unless_known(reply: Reply, call: Call) -> Reply:
    """A reply with an `etag`, or 304 without content where the caller has the same."""
    known = [tag.strip().removeprefix("W/") for tag in call.headers.get("if-none-match", "").split(",")]
    if reply.headers["etag"] not in known:
        return reply
    return Reply(b"", 304, reply.media_type, reply.headers)
