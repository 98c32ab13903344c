"""The cache of things by key: what leaves first, and how much stays."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dart_gui.byte_cache import ByteCache


def test_the_least_recently_used_thing_leaves_first():
    cache = ByteCache[bytes](10, len)
    cache.put("a", b"1234")
    cache.put("b", b"1234")
    assert cache.get("a") == b"1234"
    cache.put("c", b"1234")
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (b"1234", None, b"1234")
    assert cache.num_bytes == 8


def test_a_thing_beyond_the_bound_stays_until_the_next_one():
    cache = ByteCache[bytes](3, len)
    cache.put("big", b"1234")
    assert cache.get("big") == b"1234"
    cache.put("next", b"1")
    assert cache.get("big") is None
    assert cache.num_bytes == 1


def test_what_is_not_there_is_made_once():
    cache, made = ByteCache[bytes](10, len), []

    def make() -> bytes:
        made.append(1)
        return b"1234"

    assert cache.get_or("a", make) == cache.get_or("a", make) == b"1234"
    assert (len(made), cache.num_bytes) == (1, 4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 9)), max_size=40))
def test_the_cache_never_exceeds_its_bound_by_more_than_one_thing(puts):
    cache = ByteCache[bytes](20, len)
    for key, size in puts:
        cache.put(key, bytes(size))
        assert cache.get(key) is not None
        assert cache.num_bytes <= 20
