"""Which optimizers make one step together: those that step with no backward pass between them."""

from __future__ import annotations

from typing import final

from torch.optim.optimizer import Optimizer


@final
class Ensemble:
    """Learns from the loop whose steps belong to one step of the training, as of two optimizers over one model."""

    def __init__(self) -> None:
        self._stepped: list[int] = []  # since the last step ended
        self._leader: int | None = None  # who began the last step
        self._followers: dict[int, frozenset[int]] = {}  # whom to wait for after each leader
        self._held: list[tuple[str, ...]] = []  # the parameters of those that have stepped

    @property
    def parameters(self) -> frozenset[str]:
        """Held by those that have stepped."""
        return frozenset(name for names in self._held for name in names)

    @property
    def playing(self) -> bool:
        """Whether a step has begun and waits for an optimizer that stepped with its leader before."""
        return bool(self._stepped)

    def comes_late(self, optimizer: Optimizer) -> bool:
        """Whether this one, stepping with no backward pass since the last step, belongs to it; it is waited for from now on."""
        if self._stepped or self._leader is None or self._leader == id(optimizer):
            return False
        self._followers[self._leader] = self._followers.get(self._leader, frozenset()) | {id(optimizer)}
        return True

    def add(self, optimizer: Optimizer, parameters: tuple[str, ...]) -> bool:
        """An optimizer has stepped; whether the step is complete with it."""
        self._stepped.append(id(optimizer))
        self._held.append(parameters)
        awaited = self._followers.get(self._stepped[0])
        return awaited is None or awaited <= set(self._stepped)

    def give_up(self) -> None:
        """Someone who was waited for did not come, and is waited for no more."""
        self._followers[self._stepped[0]] = frozenset(self._stepped[1:])

    def end_step(self) -> None:
        self._leader = self._stepped[0] if self._stepped else None
        self._stepped = []
        self._held = []
