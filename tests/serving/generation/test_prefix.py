"""The prefix cache against a model of it that is as slow as it is plain."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.generation.prefix import BLOCK, PrefixCache

Prefix = tuple[int, ...]


class Plain:
    """All prefixes that are kept, each with the time of its last use; the oldest leaf is dropped first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used: dict[Prefix, int] = {}
        self._time = 0

    def match(self, tokens: Prefix) -> list[Prefix]:
        return self._use(tokens, (len(tokens) - 1) // BLOCK)

    def insert(self, tokens: Prefix) -> None:
        full = min(len(tokens) // BLOCK, self.capacity)
        for count in range(1, full + 1):
            self.used.setdefault(tokens[: count * BLOCK], self._time)
        self._use(tokens, full)
        while len(self.used) > self.capacity:
            leaves = [p for p in self.used if not any(q != p and q[: len(p)] == p for q in self.used)]
            del self.used[min(leaves, key=lambda leaf: self.used[leaf])]

    def _use(self, tokens: Prefix, most: int) -> list[Prefix]:
        self._time += 1
        path: list[Prefix] = []
        while len(path) < most and tokens[: (len(path) + 1) * BLOCK] in self.used:
            path.append(tokens[: (len(path) + 1) * BLOCK])
        for prefix in path:
            self.used[prefix] = self._time
        return path


def _insert(cache: PrefixCache[Prefix], tokens: Prefix) -> list[tuple[int, int]]:
    """Keeps each block as all tokens up to its end. Returns what was asked for."""
    asked: list[tuple[int, int]] = []

    def keep(start: int, stop: int) -> Prefix:
        asked.append((start, stop))
        return tokens[:stop]

    cache.insert(tokens, keep)
    return asked


def _blocks(*numbers: int, rest: int = 0) -> Prefix:
    return tuple(number for number in numbers for _ in range(BLOCK)) + (9,) * rest


PROMPTS = st.builds(
    lambda blocks, rest: _blocks(*blocks, rest=rest),
    st.lists(st.integers(1, 3), max_size=6),
    st.integers(0, BLOCK - 1),
)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 8), st.lists(st.tuples(st.booleans(), PROMPTS), max_size=40))
def test_it_keeps_what_a_plain_model_keeps(capacity: int, calls: list[tuple[bool, Prefix]]) -> None:
    """A match is a true prefix with the right values, never all of the tokens; no block is an orphan."""
    cache: PrefixCache[Prefix] = PrefixCache(capacity)
    plain = Plain(capacity)
    for inserts, tokens in calls:
        if inserts:
            known = len([n for n in range(1, capacity + 1) if tokens[: n * BLOCK] in plain.used])
            wanted = range(min(known, len(tokens) // BLOCK), min(len(tokens) // BLOCK, capacity))
            assert _insert(cache, tokens) == [(n * BLOCK, (n + 1) * BLOCK) for n in wanted]
            plain.insert(tokens)
        else:
            found = cache.match(tokens)
            assert found == plain.match(tokens)
            assert found == [tokens[: (n + 1) * BLOCK] for n in range(len(found))]
            assert len(found) * BLOCK < len(tokens) or not tokens
        assert len(cache) == len(plain.used) <= capacity
    reachable = {kept for _, tokens in calls for kept in cache.match((*tokens, 9))}
    assert reachable == set(plain.used)


@settings(max_examples=100, deadline=None)
@given(PROMPTS, PROMPTS, st.integers(0, 12))
def test_what_was_just_inserted_is_found_again(first: Prefix, second: Prefix, capacity: int) -> None:
    cache: PrefixCache[Prefix] = PrefixCache(capacity)
    _insert(cache, first)
    _insert(cache, second)
    assert len(cache.match((*second, 9))) == min(len(second) // BLOCK, capacity)
    assert _insert(cache, second) == []


@pytest.mark.parametrize("length", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1])
def test_a_match_leaves_a_token_over(length: int) -> None:
    cache: PrefixCache[Prefix] = PrefixCache(8)
    _insert(cache, _blocks(1, 1, 1))
    assert len(cache.match((1,) * length)) == max(0, length - 1) // BLOCK


@pytest.mark.parametrize("length", [0, 1, BLOCK, BLOCK + 1, BLOCK + 2, 2 * BLOCK + 1, 2 * BLOCK + 2])
def test_a_match_leaves_as_many_tokens_over_as_a_model_needs(length: int) -> None:
    cache: PrefixCache[Prefix] = PrefixCache(8)
    _insert(cache, _blocks(1, 1, 1))
    assert len(cache.match((1,) * length, 2)) == max(0, length - 2) // BLOCK


def test_the_same_block_after_another_prefix_is_another_block() -> None:
    cache: PrefixCache[Prefix] = PrefixCache(8)
    _insert(cache, _blocks(1, 2))
    assert cache.match(_blocks(2, rest=1)) == []
    assert cache.match(_blocks(3, 2, rest=1)) == []
    _insert(cache, _blocks(3, 2))
    assert len(cache) == 4


def test_what_is_used_stays_and_the_longest_unused_leaf_goes() -> None:
    cache: PrefixCache[Prefix] = PrefixCache(3)
    _insert(cache, _blocks(1, 2))
    _insert(cache, _blocks(3))
    cache.match(_blocks(1, rest=1))
    _insert(cache, _blocks(4))
    assert [len(cache.match(_blocks(*b, rest=1))) for b in [(1, 2), (3,), (4,)]] == [1, 1, 1]


def test_a_block_that_comes_back_does_not_bring_its_old_children_back() -> None:
    cache: PrefixCache[str] = PrefixCache(2)
    cache.insert(_blocks(1, 2), lambda start, stop: "old")
    cache.insert(_blocks(3, 3), lambda start, stop: "other")
    cache.insert(_blocks(1), lambda start, stop: "new")
    assert cache.match(_blocks(1, 2, rest=1)) == ["new"]


def test_a_prompt_longer_than_the_cache_keeps_its_beginning() -> None:
    cache: PrefixCache[Prefix] = PrefixCache(2)
    _insert(cache, _blocks(1, 2, 3, 4))
    assert cache.match(_blocks(1, 2, 3, 4)) == [_blocks(1), _blocks(1, 2)]


def test_clear_forgets_everything() -> None:
    cache: PrefixCache[Prefix] = PrefixCache(4)
    _insert(cache, _blocks(1, 2))
    cache.clear()
    assert len(cache) == 0 and cache.match(_blocks(1, 2, rest=1)) == []
    assert _insert(cache, _blocks(1)) == [(0, BLOCK)]


def test_a_block_that_cannot_be_saved_leaves_a_cache_that_is_no_larger() -> None:
    cache: PrefixCache[Prefix] = PrefixCache(3)
    _insert(cache, _blocks(1, 1, 1))

    def keep(start: int, stop: int) -> Prefix:
        if start:
            raise MemoryError
        return ()

    with pytest.raises(MemoryError):
        cache.insert(_blocks(2, 2), keep)
    assert len(cache) <= cache.capacity
