"""Token ids of OpenAI's tokenizer `cl100k_base`, read back as text.

langchain-openai sends texts to be embedded as these ids. For this direction a table is enough: each id stands
for some bytes. The table is the file from which tiktoken makes the tokenizer, and not part of its package.

Source: tiktoken, `tiktoken/load.py` for the format of the file, and `cl100k_base` in
`tiktoken_ext/openai_public.py` for its hash and the special tokens.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.gateway.errors import bad_request
from shoal.errors import UsageError

SOURCE = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
_SPECIAL = {
    100257: b"<|endoftext|>",
    100258: b"<|fim_prefix|>",
    100259: b"<|fim_middle|>",
    100260: b"<|fim_suffix|>",
    100276: b"<|endofprompt|>",
}


class Cl100k:
    """The table.

    Args:
        tokens: the bytes of each id.
    """

    def __init__(self, tokens: Mapping[int, bytes]) -> None:
        self._tokens = tokens

    @classmethod
    def read(cls, file: Path) -> Cl100k:
        """The table of a file; each of its lines is a token in base64, a space, and its id.

        Raises:
            UsageError: it cannot be read, or is another file than OpenAI's.
        """
        hint = f"--cl100k takes the file of {SOURCE}"
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror}", hint=hint) from None
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise UsageError(f"{file} is not cl100k_base.tiktoken: it has another SHA-256", hint=hint)
        lines = (line.split() for line in content.splitlines())
        return cls(_SPECIAL | {int(number): base64.b64decode(token) for token, number in lines})

    def text(self, ids: Sequence[int]) -> str:
        """The text of some ids. Half of a character, where a long text was cut, becomes U+FFFD.

        Raises:
            ApiError: there is no such token.
        """
        try:
            return b"".join([self._tokens[each] for each in ids]).decode(errors="replace")
        except KeyError as error:
            raise bad_request(f"input holds {error}, which is no token of cl100k_base", "input") from None
