"""The patterns of JSON schemas, which are JavaScript's (ECMA-262), in the syntax of Rust's crate `regex`.

llguidance reads the latter. Most of it is the same; what would mean something else is written anew, and what
cannot be said there is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SPACE = r"\t\n\x0b\x0c\r \xa0\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}"
_ANY = r"[^\n\r\x{2028}\x{2029}]"
_EDGE, _BACK = "is the edge of a word", "is a back reference"
# Characters that JSON writes as \\uXXXX only, which `structure.JSON` does without; and DEL.
UNWRITABLE = frozenset({*range(0x20), 0x7F} - set(map(ord, "\b\f\n\r\t")))
_WRITABLE = r"[^\x00-\x07\x0b\x0e-\x1f\x7f]"
CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_ESCAPE = re.compile(
    r"""\\(?: (?P<set> [dDwWsS] | [pP]\{[A-Za-z0-9_=]+\} )
    | (?P<control> [tnvfr] ) | c(?P<letter> [A-Za-z] ) | (?P<null> 0(?![0-9]) )
    | u(?P<high> [dD][89abAB][0-9a-fA-F]{2} )\\u(?P<low> [dD][c-fC-F][0-9a-fA-F]{2} )
    | x(?P<two> [0-9a-fA-F]{2} ) | u(?P<four> [0-9a-fA-F]{4} ) | u\{(?P<braced> [0-9a-fA-F]{1,6} )\}
    | (?P<itself> [^A-Za-z0-9] ) )""",
    re.VERBOSE,
)
_GROUP = re.compile(r"\(\?:|\(\?<[A-Za-z_$][A-Za-z0-9_$]*>|\((?!\?)")
_REPEAT = re.compile(r"\{[0-9]+(?:,[0-9]*)?\}")


def translated(pattern: str) -> str:
    """A pattern of a JSON schema for llguidance.

    Raises:
        ValueError: it has no counterpart; says why.
    """
    return "".join(_pieces(pattern))


def _pieces(pattern: str) -> Iterator[str]:
    place = 0
    while place < len(pattern):
        letter = pattern[place]
        if letter == "\\":
            code, kind, place = _escape(pattern, place)
            yield kind or _character(code)
        elif letter == "[":
            piece, place = _class(pattern, place + 1)
            yield piece
        elif letter == "(":
            group = _GROUP.match(pattern, place)
            if group is None:
                around = re.match(r"\(\?<?[=!]", pattern[place:])
                what = "it looks ahead or behind" if around else f"{pattern[place : place + 4]} is not known"
                raise ValueError(f"{what}, which cannot be kept to")
            yield "(" if group.group() == "(" else "(?:"
            place = group.end()
        elif letter == "{" and (repeat := _REPEAT.match(pattern, place)):
            yield repeat.group()
            place = repeat.end()
        else:
            place += 1
            yield letter if letter in "^$*+?|)" else _ANY if letter == "." else _character(ord(letter))


def _escape(pattern: str, place: int) -> tuple[int, str, int]:
    """A code point, or else a set in Rust's words; and where it ends."""
    found = _ESCAPE.match(pattern, place)
    if found is None:
        escape = pattern[place : place + 2]
        known = _EDGE if escape[1:] in ("b", "B") else _BACK if escape[1:] in tuple("k123456789") else ""
        raise ValueError(f"{escape} {known or 'is not known'}, which cannot be kept to")
    code, kind, text = 0, "", found[found.lastgroup or 0]
    match found.lastgroup:
        case "set":
            kind = f"[{'^' if text == 'S' else ''}{SPACE}]" if text in "sS" else f"\\{text}"
        case "control":
            code = CONTROLS[text]
        case "letter":
            code = ord(text) % 32
        case "low":
            code = 0x10000 + ((int(found["high"], 16) - 0xD800) << 10) + int(text, 16) - 0xDC00
        case "two" | "four" | "braced":
            code = int(text, 16)
            if 0xD800 <= code <= 0xDFFF or code > 0x10FFFF:
                raise ValueError(f"{found.group()} is no character")
        case "itself":
            code = ord(text)
    return code, kind, found.end()


def _class(pattern: str, place: int) -> tuple[str, int]:
    """A class of characters in brackets, from behind the first one; and where it ends."""
    negated = pattern.startswith("^", place)
    place += negated
    pieces: list[str] = []
    unwritable = False
    while True:
        if place >= len(pattern):
            raise ValueError("a [ is not closed")
        if pattern[place] == "]":
            break
        first, kind, place = _member(pattern, place)
        last = first
        if not kind and pattern.startswith("-", place) and pattern[place + 1 : place + 2] not in ("]", ""):
            last, its_kind, place = _member(pattern, place + 1)
            if its_kind or last < first:
                raise ValueError("a range in [...] is out of order, or one of sets")
        pieces.append(kind or f"\\x{{{first:x}}}-\\x{{{last:x}}}")
        unwritable |= not kind and any(first <= code <= last for code in UNWRITABLE)
    if not pieces:
        return ("(?s:.)" if negated else r"[^\x{0}-\x{10ffff}]"), place + 1
    made = f"[{'^' if negated else ''}{''.join(pieces)}]"
    return (f"[{made}&&{_WRITABLE}]" if unwritable and not negated else made), place + 1


def _member(pattern: str, place: int) -> tuple[int, str, int]:
    if pattern.startswith("\\b", place):
        return 8, "", place + 2
    if pattern[place] == "\\":
        return _escape(pattern, place)
    return ord(pattern[place]), "", place + 1


def _character(code: int) -> str:
    """A character outside of a class.

    Raises:
        ValueError: it is one that is not written; llguidance would leave it out of the pattern.
    """
    if code in UNWRITABLE:
        raise ValueError(f"it asks for the control character U+{code:04X}, which is not written")
    return chr(code) if chr(code).isalnum() or not chr(code).isascii() else f"\\x{{{code:x}}}"
