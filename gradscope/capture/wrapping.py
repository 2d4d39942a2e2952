"""Functions of torch's that ours stand around while somebody listens."""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import Any
from typing import Generic
from typing import TypeVar
from typing import final

L = TypeVar("L")


@final
class Wrapping(Generic[L]):
    """One function, looked up in a module or a class whenever it is called, and who listens to its calls."""

    def __init__(self, home: Any, name: str, around: Callable[[Any], Any]) -> None:
        self._home = home
        self._name = name
        self._around = around  # makes ours, which calls the one that was there
        self._lock = RLock()  # models may train in threads of their own
        self._wrapped: tuple[Any, Any] | None = None  # the function that was there, and ours around it
        self.listeners: tuple[L, ...] = ()

    def join(self, listener: L) -> None:
        """Hear of it; of nothing where torch has no such function."""
        with self._lock:
            self.listeners = (*self.listeners, listener)
            there = vars(self._home).get(self._name)
            if len(self.listeners) > 1 or there is None:
                return
            if self._wrapped is None or self._wrapped[0] is not there:
                ours = self._around(there)
                ours.__doc__ = there.__doc__
                ours.__wrapped__ = there
                self._wrapped = (there, ours)
            setattr(self._home, self._name, self._wrapped[1])

    def leave(self, listener: L) -> None:
        with self._lock:
            self.listeners = tuple(held for held in self.listeners if held is not listener)
            there = vars(self._home).get(self._name)
            if not self.listeners and self._wrapped is not None and there is self._wrapped[1]:
                setattr(self._home, self._name, self._wrapped[0])
            # Else somebody wrapped ours since: theirs stays, and calls ours.

    def calls_through(self, ours: Any) -> bool:
        """Whether this is the wrapper in force, and not one that another tool has kept from an earlier watch."""
        return self._wrapped is not None and self._wrapped[1] is ours
