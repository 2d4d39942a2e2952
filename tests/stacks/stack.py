"""What a stack is: a small real training in one of the ways that people train, as its author would write it.

A stack's program gets an ``Eye``, which stands for the one line. Where the training is to be watched, ``eye.attach`` is
``gradscope.attach`` with a log directory and a cadence; where it is not, it does nothing. The program knows nothing else of
gradscope, and says itself what its steps were and what their losses were.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from time import perf_counter
from typing import Any
from typing import final

import torch

import gradscope

RUN = ""  # of a program that trains one model


@final
class Nothing:
    """Stands for the scope of a training that is not watched."""

    def step(self) -> None:
        pass

    def observe(self, **_: Any) -> None:
        pass

    def close(self) -> None:
        pass


@final
class Eye:
    """The place of the one line in a program, and the program's own account of its training."""

    def __init__(self, logdir: Path | None, **options: Any) -> None:
        self.logdir = logdir  # None: nobody watches
        self.options = options
        self.losses: dict[str, list[float]] = {}  # run -> the loss of each optimizer step, by the program's own account
        self.ends: list[float] = []  # when each of these steps was over, in seconds of ``perf_counter``
        self.asked: list[str] = []  # what of gradscope the program used
        self.scopes: list[Any] = []

    @property
    def on(self) -> bool:
        return self.logdir is not None

    def attach(self, model: torch.nn.Module, **options: Any) -> Any:
        """The one line. Gives the scope, or what stands for it."""
        self.asked.append("attach")
        if self.logdir is None:
            return Nothing()
        scope = gradscope.attach(model, self.logdir, **{**self.options, **options})
        self.scopes.append(scope)
        return scope

    def arguments(self, **options: Any) -> dict[str, Any]:
        """The one line's arguments, for those who have a callback instead; only where somebody watches."""
        self.asked.append("callback")
        return {"logdir": self.logdir, **self.options, **options}

    def uses(self, what: str) -> None:
        """Say that the program needs something of gradscope beside the one line: ``scope.step()``, say."""
        if what not in self.asked:
            self.asked.append(what)

    def stepped(self, loss: float | torch.Tensor, *, run: str = RUN) -> None:
        """An optimizer step is over, and this was its loss: without a loss scale, the mean of its micro-batches."""
        self.losses.setdefault(run, []).append(float(loss.detach()) if isinstance(loss, torch.Tensor) else float(loss))
        self.ends.append(perf_counter())

    def close(self) -> None:
        for scope in self.scopes:
            scope.close()


Train = Callable[[Eye, str, int], Mapping[str, torch.Tensor]]  # with a fault ("" for none), so many steps; the state at the end


@dataclass(frozen=True)
class Stack:
    """One way to train, and what is to hold there."""

    name: str  # kebab-case
    title: str  # of its row in docs/integrations.md
    section: str  # in which it stands there
    train: Train
    faults: Mapping[str, str]  # a fault that the program can be given -> the rule that stands on top of its report
    steps: int = 40
    ranks: int = 1  # processes, each of which runs the program within a gloo process group
    differs: str = ""  # why the numbers are not those of the unwatched training, where they are not
    tolerance: float = 1e-5  # of the losses, relative
    quiet: frozenset[str] = field(default_factory=frozenset)  # slugs of the warnings that this way of training gets


def state_of(*models: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of the models."""
    return {f"{number}.{name}": value for number, model in enumerate(models) for name, value in model.state_dict().items()}
