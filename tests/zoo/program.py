"""What a program of the zoo is: a small real training that says itself whether it went well."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from itertools import chain
from itertools import islice
from itertools import repeat
from statistics import median
from typing import Any
from typing import TypeAlias
from typing import final

import torch
from torch import Tensor
from torch import nn

from tests.zoo.treatment import UNTREATED
from tests.zoo.treatment import Treatment

Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Forward: TypeAlias = Callable[[dict[str, Any]], Tensor]
# What a program calls once with each of its models, as a user calls attach(); may return a Treatment.
Watch: TypeAlias = Callable[..., Any]


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
    rules: tuple[str, ...]  # the truth, then what else may be named with right, a symptom where no cause can be shown
    proof: Proof
    falls_to: float = 0.7  # share of its start under which the twin's course has to end
    begins: int = 0  # the step at which the fault sets in
    aside: bool = False  # the finding is for information: it has to be there, and need not be the diagnosis
    remedy: str | None = None  # where in the loop the remedy's code stands, see treatment.PLACES; None: it isn't tried

    @property
    def name(self) -> str:
        return self.train.__name__

    @property
    def truth(self) -> str:
        return self.rules[0]


@final
class Loop:
    """The usual loop over batches of ``x`` and ``y``, and what it measures. A treatment may stand in it."""

    def __init__(
        self,
        watch: Watch,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        loader: Batches = (),
        forward: Forward = lambda names: names["model"](names["x"]),
        **more: Any,
    ) -> None:
        """``forward`` makes the output of the loop's names, to which ``more`` belong: a scaler, a state that is carried on."""
        self._treatment: Treatment = watch(model) or UNTREATED
        self.names: dict[str, Any] = {"model": model, "optimizer": optimizer, "criterion": loss, "loader": loader, **more}
        self._treatment.apply("start", self.names)
        self.model: nn.Module = self.names["model"]
        self.batches: Batches = self.names["loader"]
        self._forward = forward
        self._start = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        self._gradients: dict[str, float] = {}
        self._losses: list[float] = []
        self._carried = 0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch, to be handed to ``backward``."""
        names = self.names
        names.update(x=x, y=y, target=y)
        self._treatment.apply("batch", names)
        target = names["target"] if names["target"] is not y else names["y"]
        names["target"] = target
        if not self._treatment.apply("forward", names):
            names["output"] = self._forward(names)
        names["loss"] = names["criterion"](names["output"], target)
        self._treatment.apply("loss", names)
        loss: Tensor = names["loss"]
        self._losses.append(float(loss.detach()))
        return loss

    def turn(self, x: Tensor, y: Tensor, *, clear: bool = True, clip: float | None = None) -> None:
        """One step. ``clear=False`` forgets zero_grad()."""
        optimizer = self.names["optimizer"]
        if clear and not self._treatment.stands_at("step"):
            optimizer.zero_grad()
        loss = self.forward(x, y)
        self._carried += any(bool(p.grad.any()) for p in self.model.parameters() if p.grad is not None)
        if not self.stepped_by_remedy():
            loss.backward()
            if clip is not None and not self._treatment.stands_at("gradients"):
                nn.utils.clip_grad_norm_(self.model.parameters(), clip)
            self._treatment.apply("gradients", self.names)
            optimizer.step()
        self._gradients = self._gradients or gradient_norms(self.model)

    def stepped_by_remedy(self) -> bool:
        """Whether a remedy's code stands in place of backward() and step(); it has then run."""
        return self.treated("step")

    def treated(self, place: str) -> bool:
        """Whether a remedy's code stands at this place; it has then run."""
        return self._treatment.apply(place, self.names)

    def stands_at(self, place: str) -> bool:
        """Whether a remedy's code belongs at this place."""
        return self._treatment.stands_at(place)

    def step(self) -> None:
        self.names["optimizer"].step()

    def outcome(self, **facts: float) -> Outcome:
        return Outcome(tuple(self._losses), moved(self._start, self.model), self._gradients, self._carried, facts)


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
    steps: int | None = None,
) -> Outcome:
    """The usual loop. ``each`` is called after each step with its number; ``clear=False`` forgets zero_grad().

    With ``steps`` the batches are gone through again and again until so many steps are made.
    """
    loop = Loop(watch, model, loss, optimizer, loader=batches)
    epochs = 1 if steps is None else steps
    for step, (x, y) in enumerate(islice(chain.from_iterable(repeat(loop.batches, epochs)), steps)):
        loop.turn(x, y, clear=clear, clip=clip)
        if not loop.stands_at("step"):
            each(step)
    return loop.outcome()


def gradient_norms(model: nn.Module) -> dict[str, float]:
    return {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in model.named_parameters()}


def moved(start: Mapping[str, Tensor], model: nn.Module) -> dict[str, float]:
    after = dict(model.named_parameters())
    return {
        name: float((after[name].detach().float() - w.float()).norm() / w.float().norm().clamp_min(1e-12))
        for name, w in start.items()
    }
