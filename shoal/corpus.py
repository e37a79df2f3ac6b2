"""English text that every Python brings along: the language reference in `pydoc_data.topics`.

Calibration, verification and load tests draw on it, so that none of them needs a download.
"""

from __future__ import annotations

import random
import re
from functools import cache
from pydoc_data.topics import topics


@cache
def passages() -> tuple[str, ...]:
    """Some 3,000 paragraphs of 20 to 2,000 characters, in a fixed shuffled order."""
    found = []
    for _, text in sorted(topics.items()):
        for paragraph in re.split(r"\n\s*\n", text):
            line = " ".join(paragraph.split())
            if 20 <= len(line) <= 2000 and re.search(r"[a-z]{3}", line):
                found.append(line)
    unique = list(dict.fromkeys(found))
    random.Random(0).shuffle(unique)  # noqa: S311 - an order, not a secret
    return tuple(unique)


def texts(count: int, *, words: tuple[float, float] = (12.0, 0.7), seed: int = 0) -> list[str]:
    """Texts whose lengths are spread as real requests are: most short, a few long.

    Args:
        count: how many.
        words: median number of words and sigma of their log-normal distribution.
        seed: the same seed gives the same texts.
    """
    chance = random.Random(seed)  # noqa: S311
    pool = " ".join(passages()).split()
    median, sigma = words
    result = []
    for _ in range(count):
        length = max(1, round(median * chance.lognormvariate(0.0, sigma)))
        start = chance.randrange(max(1, len(pool) - length))
        result.append(" ".join(pool[start : start + length]))
    return result
