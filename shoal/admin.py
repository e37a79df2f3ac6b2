"""The key to a served Triton's closed endpoints: what reads or changes the server itself, and no answer."""

from __future__ import annotations

import os
from pathlib import Path

from shoal.errors import UsageError

HEADER = "shoal-admin-key"
GRPC_HEADER = f"triton-grpc-protocol-{HEADER}"  # Triton puts that before every such header's name
VARIABLE = "SHOAL_ADMIN_KEY_FILE"


def key_from_environment() -> str:
    """The key in the file that `$SHOAL_ADMIN_KEY_FILE` names; "" where it names none.

    Raises:
        UsageError: the file cannot be read.
    """
    path = os.environ.get(VARIABLE)
    try:
        return Path(path).read_text().strip() if path else ""
    except (OSError, ValueError) as error:
        raise UsageError(f"${VARIABLE} names {path}, which cannot be read: {error}") from error
