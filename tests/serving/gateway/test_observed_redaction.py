"""Numbers with check digits are those that card networks and the registry of IBANs publish as examples."""

from __future__ import annotations

import pytest

from serving.gateway.record import MOST_TEXT
from serving.gateway.redaction import iban, luhn, redacted, redacted_json

CARDS = [
    "4111111111111111",
    "4242424242424242",
    "5555555555554444",
    "378282246310005",
    "6011111111111117",
    "30569309025904",
    "3530111333300000",
    "4222222222222",
]
IBANS = [
    "DE89 3704 0044 0532 0130 00",
    "GB29 NWBK 6016 1331 9268 19",
    "FR14 2004 1010 0505 0001 3M02 606",
    "NO93 8601 1117 947",
    "MT84 MALT 0110 0001 2345 MTLC AST0 01S",
    "CH93 0076 2011 6238 5295 7",
]


@pytest.mark.parametrize("number", CARDS)
def test_cards(number: str) -> None:
    assert luhn(number)
    spaced = " ".join(number[place : place + 4] for place in range(0, len(number), 4))
    for written in (number, spaced, spaced.replace(" ", "-")):
        assert redacted(f"12 fish, {written} 99 more") == "12 fish, [card] 99 more"
    wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
    assert not luhn(wrong) and redacted(f"part {wrong}.") == f"part {wrong}."


@pytest.mark.parametrize("number", IBANS)
def test_ibans(number: str) -> None:
    bare = number.replace(" ", "")
    assert iban(bare)
    for written in (number, bare):
        assert redacted(f"to {written} BY noon") == "to [iban] BY noon"
    digit = 2 if bare[2] != "9" else 3
    wrong = bare[:digit] + str((int(bare[digit]) + 1) % 10) + bare[digit + 1 :]
    assert not iban(wrong) and redacted(f"to {wrong}.") == f"to {wrong}."


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("write to jane.doe+shop@mail.example.co.uk, now", "write to [e-mail], now"),
        ("Müller <jörg@münchen.example>", "Müller <[e-mail]>"),
        ("call +49 171 1234567 today", "call [phone] today"),
        ("call +1 (415) 555-2671.", "call [phone]."),
        ("call (415) 555-2671 or 0171 1234567", "call [phone] or [phone]"),
        ("key sk-proj-abcdefghijklmnopqrstuvwx!", "key [key]!"),
        ("shoal-0123456789ab-ABCDEFGHIJKLMNOPQRSTUVWXYZ", "[key]"),
        ("AKIAIOSFODNN7EXAMPLE and ghp_abcdefghijklmnopqrstuvwxyz0123456789", "[key] and [key]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P", "[key]"),
    ],
)
def test_forms(text: str, kept: str) -> None:
    assert redacted(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "On 2024-01-15 at 12:30:45 the price was 1,234,567.89 of 1000000 units.",
        "ISBN 978-3-16-148410-1, version 1.2.3, 192.0.2.146, port 8001",
        "x = a @ b; user@localhost; 3.14159265358979",
        "uuid 123e4567-e89b-12d3-a456-426614174000",
        "DESK 12 and the sk-y",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_texts_in_json_and_their_names() -> None:
    value = {"a@b.example": ["4111111111111111", 4111, None, {"to": "GB29NWBK60161331926819"}]}
    assert redacted_json(value) == {"[e-mail]": ["[card]", 4111, None, {"to": "[iban]"}]}


@pytest.mark.parametrize("piece", ["a", "1 ", "a@", "eyJ-", "AB12", "0 ", "AB12 CD34 ", "1234 ", "a.b-"])
def test_the_longest_text_ends(piece: str) -> None:
    """Whatever a caller writes, no pattern backtracks without a bound: the tests' time limit would tell."""
    text = piece * (MOST_TEXT // len(piece))
    assert redacted(f"{text} jane@example.org").endswith("[e-mail]")
