"""What a program of the zoo is: a small real training that says itself whether it went well."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from statistics import median
from typing import Any
from typing import TypeAlias

import torch
from torch import Tensor
from torch import nn

Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Watch: TypeAlias = Callable[..., Any]  # what a program calls once with each of its models, as a user calls attach()


@dataclass(frozen=True)
class Outcome:
    """What a training came to, measured without gradscope."""

    course: tuple[float, ...]  # losses, or where losses measure nothing (a game) another distance that has to fall
    moved: Mapping[str, float] = field(default_factory=dict)  # by parameter: change over the training / norm at its start
    gradients: Mapping[str, float] = field(default_factory=dict)  # by parameter: norm at the first step, 0 where there is none
    carried: int = 0  # backward calls that found a gradient other than zero
    facts: Mapping[str, float] = field(default_factory=dict)  # what else the program measured

    @property
    def start(self) -> float:
        return median(self.course[:3])

    @property
    def end(self) -> float:
        """Median of the last ten; NaN where the last is."""
        return median(self.course[-10:]) if self.course[-1] == self.course[-1] else self.course[-1]

    def fell(self, share: float) -> bool:
        """Whether the course ended below ``share`` of its start; false for NaN."""
        return self.end < share * self.start


Proof: TypeAlias = Callable[[Outcome, Outcome], bool]  # of the faulty and the healthy: whether the fault did what it should


@dataclass(frozen=True)
class Healthy:
    """A training in which nothing is wrong."""

    train: Callable[[Watch], Outcome]
    falls_to: float = 0.7  # share of its start under which its course has to end, in each seed

    @property
    def name(self) -> str:
        return self.train.__name__


@dataclass(frozen=True)
class Fault:
    """A training with one fault, and without it its healthy twin."""

    train: Callable[[Watch, bool], Outcome]  # the second argument says whether the fault is there
    rules: tuple[str, ...]  # diagnoses that are right
    proof: Proof
    falls_to: float = 0.7  # share of its start under which the twin's course has to end

    @property
    def name(self) -> str:
        return self.train.__name__


def fit(
    watch: Watch,
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    *,
    clear: bool = True,
    clip: float | None = None,
    each: Callable[[int], None] = lambda step: None,
) -> Outcome:
    """The usual loop. ``each`` is called after each step with its number; ``clear=False`` forgets zero_grad()."""
    watch(model)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses: list[float] = []
    gradients: dict[str, float] = {}
    carried = 0
    for step, (x, y) in enumerate(batches):
        if clear:
            optimizer.zero_grad()
        value = loss(model(x), y)
        carried += any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)
        value.backward()
        gradients = gradients or gradient_norms(model)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(float(value.detach()))
        each(step)
    return Outcome(tuple(losses), moved(start, model), gradients, carried)


def gradient_norms(model: nn.Module) -> dict[str, float]:
    return {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in model.named_parameters()}


def moved(start: Mapping[str, Tensor], model: nn.Module) -> dict[str, float]:
    after = dict(model.named_parameters())
    return {name: float((after[name].detach() - w).norm() / w.norm().clamp_min(1e-12)) for name, w in start.items()}
