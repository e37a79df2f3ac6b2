"""Checks one value of JSON while it is written, so that no character is read twice.

Source: RFC 8259.
"""

from __future__ import annotations

import re

SPACE = " \t\r\n"
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_DIGITS, _NO_ZERO = "0123456789", "123456789"
# A number: which characters may come after what has been read of it, and what has been read then.
_NUMBERS = {
    "minus": {"0": "zero", _NO_ZERO: "whole"},
    "zero": {".": "point", "eE": "e"},
    "whole": {_DIGITS: "whole", ".": "point", "eE": "e"},
    "point": {_DIGITS: "fraction"},
    "fraction": {_DIGITS: "fraction", "eE": "e"},
    "e": {"+-": "sign", _DIGITS: "exponent"},
    "sign": {_DIGITS: "exponent"},
    "exponent": {_DIGITS: "exponent"},
}
_COMPLETE = ("zero", "whole", "fraction", "exponent")
_FIRST_DIGITS = {"-": "minus", "0": "zero"} | dict.fromkeys(_NO_ZERO, "whole")
_LITERALS = {word[0]: word[1:] for word in ("true", "false", "null")}


class JsonValue:
    """One value of JSON (RFC 8259), checked character by character.

    It begins with anything but a number, since nothing says where a number ends that stands alone.

    Attributes:
        done: it is complete.
        broken: what comes next cannot be part of it.
    """

    def __init__(self) -> None:
        self.done = self.broken = False
        self._state = "value"
        self._open: list[str] = []  # what will close each array and object
        self._in_key = False
        self._rest = ""  # of a literal
        self._missing = 0  # digits of \uXXXX

    def take(self, text: str, place: int, end: int) -> int:
        """Read `text[place:end]`. Returns where the rest begins."""
        while place < end and not self.done:
            if self._state == "string" and (found := _PLAIN.match(text, place, end)) and found.end() > place:
                place = found.end()
            elif self._step(text[place]):
                place += 1
            else:
                self.broken = True
                break
        return place

    def _step(self, letter: str) -> bool:
        """Read one character; False: it cannot be here."""
        if self._state in ("string", "escape", "hex"):
            return self._in_string(letter)
        if self._state == "literal":
            expected, self._rest = self._rest[:1], self._rest[1:]
            if not self._rest and letter == expected:
                self._close()
            return letter == expected
        if self._state in _NUMBERS:
            for letters, state in _NUMBERS[self._state].items():
                if letter in letters:
                    self._state = state
                    return True
            if self._state not in _COMPLETE:
                return False
            self._close()
        return letter in SPACE or self._structure(letter)

    def _in_string(self, letter: str) -> bool:
        if self._state == "hex":
            self._missing -= 1
            self._state = "hex" if self._missing else "string"
            return letter in "0123456789abcdefABCDEF"
        if self._state == "escape":
            self._state, self._missing = ("hex", 4) if letter == "u" else ("string", 0)
            return letter in '"\\/bfnrtu'
        if letter == "\\":
            self._state = "escape"
        elif letter == '"' and self._in_key:
            self._state, self._in_key = "colon", False
        elif letter == '"':
            self._close()
        return letter in '\\"'  # control characters must be escaped

    def _structure(self, letter: str) -> bool:
        """A character between values and keys, or the first one of them."""
        state = self._state
        if state in ("after", "first key", "first item") and self._open[-1:] == [letter]:
            self._open.pop()
            self._close()
        elif state == "after" and letter == ",":
            self._state = "key" if self._open[-1] == "}" else "value"
        elif state in ("first key", "key") and letter == '"':
            self._state, self._in_key = "string", True
        elif state == "colon" and letter == ":":
            self._state = "value"
        else:
            return state in ("value", "first item") and self._begins(letter)
        return True

    def _begins(self, letter: str) -> bool:
        """The first character of a value."""
        if letter in "{[":
            self._open.append("}" if letter == "{" else "]")
            self._state = "first key" if letter == "{" else "first item"
        elif letter == '"':
            self._state = "string"
        elif letter in _LITERALS:
            self._state, self._rest = "literal", _LITERALS[letter]
        else:
            self._state = _FIRST_DIGITS.get(letter, "")
        return self._state != ""

    def _close(self) -> None:
        """A value is complete."""
        self._state, self.done = "after", not self._open
