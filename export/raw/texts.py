"""Texts that hurt: what tokenizers, normalizers and clients get wrong, and what users send all the same.

The same texts every time. None is empty and none is white space alone, since those are refused before a model
sees them.
"""

from __future__ import annotations

import random
import unicodedata
from functools import cache

from shoal import corpus

# Beyond so many tokens a text is not made longer than the context: the original would take minutes.
LONGEST = 2048

# Letters of scripts, and what stands among them: ranges of code points that are assigned.
_RANGES = (
    (0x0021, 0x007E),  # ASCII
    (0x00A1, 0x024F),  # Latin with marks
    (0x0300, 0x036F),  # combining marks
    (0x0370, 0x04FF),  # Greek, Cyrillic
    (0x05D0, 0x05EA),  # Hebrew
    (0x0620, 0x064A),  # Arabic
    (0x0905, 0x0939),  # Devanagari
    (0x0E01, 0x0E3A),  # Thai
    (0x3041, 0x30FA),  # Japanese syllables
    (0x4E00, 0x9FFF),  # Chinese
    (0xAC00, 0xD7A3),  # Korean
    (0x2010, 0x2044),  # punctuation
    (0x2190, 0x22FF),  # arrows, operators
    (0x1F300, 0x1F64F),  # emoji
    (0x1D400, 0x1D44D),  # mathematical letters
    (0x10330, 0x1034A),  # Gothic
    (0x20000, 0x20060),  # rare Chinese
)

_WRITTEN = (
    # Capitals, and letters whose lower or upper case is not one letter.
    "PARIS IS IN FRANCE",
    "iPhone, McDonald's and eBay",
    "İstanbul ve Iğdır",
    "STRASSE, Straße, ẞ",
    "ΟΔΥΣΣΕΥΣ Ὀδυσσεύς σίγμας",
    "ǅ ﬁne ﬂuﬀy ﬃ",
    "ＦＵＬＬ ｗｉｄｔｈ １２３",
    # Accents, whole and in parts.
    unicodedata.normalize("NFC", "Crème brûlée à la naïve façade, Ångström"),
    unicodedata.normalize("NFD", "Crème brûlée à la naïve façade, Ångström"),
    unicodedata.normalize("NFC", "한국어 문장입니다"),
    unicodedata.normalize("NFD", "한국어 문장입니다"),
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞",
    # Emoji and other planes.
    "😀",
    "great 👍🏽 job 👨‍👩‍👧‍👦 🇩🇪🏳️‍🌈 ❤️",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 𐍈𐌰",
    "𠀋𡈽𡌛 rare",
    # Scripts without spaces, and from right to left.
    "北京是中国的首都。",
    "東京タワーへ行きました！",
    "ภาษาไทยไม่มีช่องว่าง",
    "हिन्दी में एक वाक्य।",
    "السلام عليكم ورحمة الله",
    "שָׁלוֹם עוֹלָם",
    "mixed עברית and English \u200fmarks\u200e here",
    "混在 of 中文 and English",
    # Numbers.
    "3.14159 1,000,000 1e-5 0x1F 007",
    "½ ² ① Ⅷ ٣٤ ４２",
    "2024-02-29T23:59:60+01:00",
    "1234567890" * 12,
    # Control characters, and spaces that are none of ASCII's.
    "bell \x07 escape \x1b[31m delete \x7f",
    "null \x00 inside",
    "zero\u200bwidth\u200d joiners\ufeff and soft\u00adhyphen",
    "\u200b",
    "no\u00a0break thin\u2009space ideographic\u3000space line\u2028separator",
    "private \ue000 and unassigned \u0378 \U000e0041",
    "replacement \ufffd noncharacter \ufffe",
    # White space around and inside.
    "  leading and trailing  ",
    "\tTabs\tand\r\nlines\n\nempty lines\n\n\n",
    "many     spaces      here",
    "\n.\n",
    # One to three tokens.
    "a",
    "I",
    ".",
    "Hi",
    "ok go",
    "why?",
    "_",
    "-1",
    # What looks like something else.
    "[CLS] hello [SEP] [MASK] [PAD] [UNK]",
    "<s>hello</s><pad><unk><mask>",
    "<|im_start|>user hi<|im_end|><|endoftext|>",
    "##ing ##s Ġword ▁word",
    "https://example.com/a?b=c&d=%20e#f me@example.org @someone #hashtag",
    "def f(x):\n    return x ** 2  # comment",
    '{"key": ["value", null, 1.5]}',
    "<p class='x'>HTML &amp; entities</p>",
    r"\frac{a}{b} $x_1^2$ C:\path\to\file",
    "don't can't won't it's o'clock rock'n'roll",
    "well-known state-of-the-art e-mail",
    "“curly” ‘quotes’ – dashes — and… ellipsis",
    "\"straight\" 'quotes' `ticks`",
    "!!!???...,,,;;;:::",
    "hahahahahahaha aaaaaaaaaaaaaaaa",
    "C++ C# .NET U.S.A. Ph.D. 100% $5 €10 £3 ₹2",
    "1st 2nd 3rd 4x4 B2B 90s",
)


@cache
def hard_texts() -> tuple[str, ...]:
    """Some 170 texts: written ones, made of random letters, ordinary ones, and a word of 5,000 letters."""
    chance = random.Random(11)  # noqa: S311 - the same texts each time
    made = [_random(chance) for _ in range(48)]
    ordinary = [*corpus.texts(40, seed=12), *corpus.passages()[500:510]]
    return (*_WRITTEN, *made, *ordinary, "supercalifragilistic" * 250)


@cache
def long_text(words: int) -> str:
    """Ordinary text of so many words, which differ from one end to the other."""
    pool = " ".join(corpus.passages()[600:1400]).split()
    return " ".join((pool * (1 + words // len(pool)))[:words])


def too_long_text(max_length: int, max_bytes: int) -> str:
    """A text of more tokens than a context holds, where that is short enough to be tried.

    Args:
        max_length: tokens that the context holds.
        max_bytes: length that the text must keep to.
    """
    words = max_length + 64 if max_length <= LONGEST else LONGEST // 4
    return long_text(words).encode()[:max_bytes].decode(errors="ignore")


def pairs() -> list[tuple[str, str]]:
    """Two texts each: hard ones beside each other, one side too long, both too long, twice the same."""
    texts = hard_texts()
    chance = random.Random(13)  # noqa: S311
    mixed = [(text, chance.choice(texts)) for text in texts[::2]]
    return [*mixed, ("Paris", "Paris"), ("a", "b"), ("b", "a")]


def _random(chance: random.Random) -> str:
    """A few words of random letters of a few scripts."""
    scripts = chance.sample(_RANGES, 3)
    words = []
    for _ in range(chance.randint(1, 8)):
        first, last = chance.choice(scripts)
        words.append("".join(chr(chance.randint(first, last)) for _ in range(chance.randint(1, 7))))
    return " ".join(words)
