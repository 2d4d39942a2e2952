"""What was worked out once is kept as long as there is room for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Hashable
from dataclasses import dataclass
from threading import Lock
from typing import Generic
from typing import TypeVar
from typing import final

T = TypeVar("T")


@dataclass(frozen=True)
class _Entry(Generic[T]):
    value: T
    size: int
    version: Hashable


@final
class Shelf(Generic[T]):
    """Holds values up to a total size; what was not asked for longest goes first. Each value is made by one thread only."""

    def __init__(self, room: int, size: Callable[[T], int]) -> None:
        self._room, self._size = room, size
        self._lock = Lock()
        self._held: OrderedDict[Hashable, _Entry[T]] = OrderedDict()
        self._making: dict[Hashable, Lock] = {}
        self._total = 0

    def get(self, key: Hashable, make: Callable[[], T], *, version: Hashable = None) -> T:
        """The value of ``key``, made where it is not held or of another version."""
        found = self._find(key, version)
        if found is not None:
            return found.value
        with self._lock:
            making = self._making.setdefault(key, Lock())
        try:
            with making:
                found = self._find(key, version)
                return found.value if found is not None else self._keep(key, make(), version)
        finally:
            with self._lock:
                self._making.pop(key, None)

    def holds(self, key: Hashable, *, version: Hashable = None) -> bool:
        """Whether ``get`` would have nothing to make."""
        return self._find(key, version) is not None

    def held(self, key: Hashable) -> T | None:
        """The value of ``key`` where one is held, of whatever version."""
        with self._lock:
            found = self._held.get(key)
        return None if found is None else found.value

    def _find(self, key: Hashable, version: Hashable) -> _Entry[T] | None:
        with self._lock:
            found = self._held.get(key)
            if found is None or found.version != version:
                return None
            self._held.move_to_end(key)
            return found

    def _keep(self, key: Hashable, value: T, version: Hashable) -> T:
        size = self._size(value)
        with self._lock:
            before = self._held.pop(key, None)
            self._held[key] = _Entry(value, size, version)
            self._total += size - (before.size if before is not None else 0)
            while self._total > self._room and len(self._held) > 1:
                _, oldest = self._held.popitem(last=False)
                self._total -= oldest.size
        return value
