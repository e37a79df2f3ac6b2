"""Takes what looks personal or secret out of a text that is logged.

Five kinds, by their form: e-mail addresses, phone numbers, card numbers whose last digit is right by Luhn
(ISO/IEC 7812-1), IBANs whose check digits are right by mod 97 (ISO 13616), and keys of well-known APIs. Names
and addresses have no form, and stay. Each pattern is bounded, so that no text takes long.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:shoal|sk|pk|rk)[-_][\w-]{16,256}"  # ours, OpenAI's, Anthropic's, Stripe's
    r"|hf_\w{20,128}|gh[opsur]_\w{20,256}|github_pat_\w{20,256}|glpat-[\w-]{16,128}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,64}|xox[abeprs]-[\w-]{10,256}"
    r"|eyJ[\w-]{8,2000}\.[\w-]{8,2000}\.[\w-]{8,1000}"  # a JSON Web Token
    r")"
)
_MAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}")
_PHONE = re.compile(
    r"(?<![\w+.])(?:"
    r"\+[1-9]\d{0,3}(?:[ ./()-]{0,2}\d){6,13}"  # +49 171 1234567
    r"|\(?0\d{2,4}\)?[ /-]\d{3,4}[ -]?\d{3,5}"  # 0171 1234567
    r"|\(?[2-9]\d{2}\)?[ .-]{1,2}\d{3}[ .-]\d{4}"  # (555) 123-4567
    r")(?!\w)"
)
_CARD = re.compile(r"(?<!\d)(?=\d{3})\d(?:[ -]?\d){12,18}")
_IBAN = re.compile(r"(?<![A-Z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}")
_SEPARATOR = re.compile(r"[ -]")


def luhn(number: str) -> bool:
    """Whether the last digit of a card's number, of digits only, checks the others (ISO/IEC 7812-1)."""
    doubled = (int(digit) * (1 + index % 2) for index, digit in enumerate(reversed(number)))
    return len(number) in range(13, 20) and sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def iban(number: str) -> bool:
    """Whether the check digits of an IBAN, without separators, are right (ISO 13616, mod 97 of ISO 7064)."""
    moved = number[4:] + number[:4]
    return 15 <= len(number) <= 34 and int("".join(str(int(letter, 36)) for letter in moved)) % 97 == 1


def redacted(text: str) -> str:
    """A text with `[kind]` in the place of what was found."""
    text = _KEY.sub("[key]", text)
    text = _MAIL.sub("[e-mail]", text)
    text = _checked(text, _IBAN, iban, "[iban]")
    text = _checked(text, _CARD, luhn, "[card]")
    return _PHONE.sub("[phone]", text)


def _checked(text: str, pattern: re.Pattern[str], valid: Callable[[str], bool], kind: str) -> str:
    """Replace what matches and is valid. A match may hold further groups of digits behind the number."""
    parts, place, start = [], 0, 0
    while found := pattern.search(text, start):
        ends = [found.end(), *(found.start() + cut.start() for cut in _SEPARATOR.finditer(found[0]))]
        for end in sorted(ends, reverse=True):
            if valid(_SEPARATOR.sub("", text[found.start() : end])):
                parts += [text[place : found.start()], kind]
                place = start = end
                break
        else:
            start = found.start() + 1
    return "".join([*parts, text[place:]])


def redacted_json(value: Any) -> Any:
    """The same of all texts in a value of JSON, names of fields too."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, list):
        return [redacted_json(each) for each in value]
    if isinstance(value, dict):
        return {redacted(name): redacted_json(each) for name, each in value.items()}
    return value
