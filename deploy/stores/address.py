"""Where a version is kept: `s3://BUCKET/PREFIX/NAME[:TAG]` or `oci://REGISTRY/PATH/NAME[:TAG]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shoal.errors import UsageError

_ADDRESS = re.compile(
    r"(?P<scheme>s3|oci)://(?P<place>[A-Za-z0-9][A-Za-z0-9.-]*(?::\d{1,5})?)/"
    r"(?P<path>(?:[A-Za-z0-9][A-Za-z0-9_.-]*/)*)(?P<name>[a-z0-9][a-z0-9_.-]*)(?::(?P<tag>\w[\w.-]{0,127}))?"
)


@dataclass(frozen=True)
class Address:
    """One version of one model, or the newest.

    Attributes:
        scheme: `s3` or `oci`.
        place: the bucket, or host[:port] of the registry.
        path: folders below it, each with a slash behind it; "": none.
        name: of the model there.
        tag: names the version, which is its number where nothing else was asked for; None: not given.
    """

    scheme: str
    place: str
    path: str
    name: str
    tag: str | None = None

    @classmethod
    def parse(cls, given: str) -> Address:
        """Read a URL.

        Raises:
            UsageError: it is not an address of this form.
        """
        found = _ADDRESS.fullmatch(given)
        if not found:
            shown = repr(given) if not set("@?") & set(given) else "what was given"  # it may hold a password
            raise UsageError(
                f"{shown} is no place for a version",
                hint="s3://BUCKET/PREFIX/NAME:TAG or oci://REGISTRY/PATH/NAME:TAG",
            )
        return cls(**found.groupdict())

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.scheme}://{self.place}/{self.path}{self.name}{tag}"
