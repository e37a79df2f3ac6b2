"""Who has sent a request to a gateway without keys: this machine's own programs, or a page in its browser.

A browser sends requests to loopback for any page. A page of another origin cannot read the answers, but makes
the model work. A page whose own name comes to mean 127.0.0.1 ("DNS rebinding", as in CVE-2024-28224) can read
them, too: its requests have that name in `Host`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from serving.gateway.errors import ApiError


def check_origin(headers: Sequence[tuple[bytes, bytes]], allowed: Collection[str], *, public: bool) -> None:
    """Refuse a request for another host than this one, or of a page of another host.

    Args:
        headers: as ASGI has them.
        allowed: further names of this host.
        public: what is asked for is for everybody, so that links to it work.

    Raises:
        ApiError: 403, with what to do.
    """
    for name, value in headers:
        if name == b"host" and not _is_here(f"//{value.decode('latin-1')}", allowed):
            raise _refused("a request for another host", "--allowed-host NAME")
        if name == b"origin" and not public and not _is_here(value.decode("latin-1"), allowed):
            raise _refused("a request of a page of another host", "--keys FILE")


def _is_here(url: str, allowed: Collection[str]) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        if host == "localhost" or host in allowed:
            return True
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refused(what: str, way: str) -> ApiError:
    said = f"without API keys the gateway answers this machine only, and this is {what}; {way} changes that"
    return ApiError(403, said, kind="permission_error", code="forbidden")
