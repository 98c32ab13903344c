"""A cache of things by key, bounded by the bytes that they take."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class ByteCache(Generic[T]):
    """What was used least recently leaves first. The newest stays even where it alone exceeds the
    bound, because whoever has just put it is about to use it.

    The bound is in bytes, not in things: a screenshot of 1920 x 1080 takes fifty times the memory of
    one of MiniWoB++.
    """

    def __init__(self, max_bytes: int, size: Callable[[T], int]) -> None:
        self._max_bytes = max_bytes
        self._size = size
        self._things: OrderedDict[str, T] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._things)

    def put(self, key: str, thing: T) -> None:
        """Things are named by their content: what is there under ``key`` already stays."""
        if key in self._things:
            self._things.move_to_end(key)
            return
        self._things[key] = thing
        self.num_bytes += self._size(thing)
        while self.num_bytes > self._max_bytes and len(self._things) > 1:
            _, evicted = self._things.popitem(last=False)
            self.num_bytes -= self._size(evicted)

    def get(self, key: str) -> T | None:
        thing = self._things.get(key)
        if thing is not None:
            self._things.move_to_end(key)
        return thing

    def get_or(self, key: str, make: Callable[[], T]) -> T:
        """What is there under ``key``, else what ``make`` gives, which then is."""
        thing = self.get(key)
        if thing is None:
            thing = make()
            self.put(key, thing)
        return thing

    def clear(self) -> None:
        self._things.clear()
        self.num_bytes = 0
