"""What drifts unseen, and harms all at once: a second moment that falls behind the gradients, logits that rise together."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.models import ViT
from tests.zoo.models import he
from tests.zoo.models import mlp
from tests.zoo.program import Batches
from tests.zoo.program import Fault
from tests.zoo.program import Loop
from tests.zoo.program import Loss
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.proofs import fact
from tests.zoo.proofs import worse

LIFTED = 100  # the step from which the limit on the gradient is 1, a thousand times as high
AROUND = 20  # steps before and after it, whose losses are compared
ENERGY = 0.005  # what the logits' free energy counts beside the cross-entropy
LEAST_ENERGY = -10.0  # to which that of the training's samples is pushed down, and no further


def limit_lifted_regression(watch: Watch, faulty: bool) -> Outcome:
    """Gradients are clipped to a thousandth in a warm-up, which Adam does not notice, and then at 1."""
    batches = data.batches(*data.taught(), size=256, steps=200)
    return _lifted(watch, he(mlp(10, 64, 64, 64, 1, activation=nn.GELU)), batches, functional.mse_loss, faulty=faulty, lr=3e-3)


def limit_lifted_transformer(watch: Watch, faulty: bool) -> Outcome:
    x, y = data.digits()
    batches = data.batches(data.standardised(x), y, steps=160)
    return _lifted(watch, ViT(), batches, functional.cross_entropy, faulty=faulty, lr=6e-3)


def _lifted(watch: Watch, model: nn.Module, batches: Batches, loss: Loss, *, faulty: bool, lr: float) -> Outcome:
    """With a beta2 of 0.999, whose memory goes back to the clipped gradients, or of 0.95, whose memory is 20 steps long."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.999 if faulty else 0.95))
    loop = Loop(watch, model, loss, optimizer)
    for step, (x, y) in enumerate(batches):
        loop.turn(x, y, clip=1e-3 if step < LIFTED else 1.0)
    losses = loop.outcome().course
    before, after = losses[LIFTED - AROUND : LIFTED], losses[LIFTED + 1 : LIFTED + 1 + AROUND]
    return loop.outcome(setback=median(after) / median(before))


def energy_without_a_margin(watch: Watch, faulty: bool) -> Outcome:
    """The free energy -log Z of what is known is pushed down, to tell it from what is not: to a margin, or for ever.

    In bfloat16 the logits of ten classes are one and the same number once they are in the thousands. The course is the
    cross-entropy alone.
    """
    x, y = data.digits()
    batches = data.batches(data.standardised(x).flatten(1), y, steps=300)
    entropies: list[float] = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        entropy = functional.cross_entropy(output, target)
        entropies.append(float(entropy.detach()))
        energy = -torch.logsumexp(output, dim=1)
        return entropy + ENERGY * (energy if faulty else energy.clamp(min=LEAST_ENERGY)).mean()

    def half(names: dict[str, Any]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output: Tensor = names["model"](names["x"])
        return output.float()

    model = mlp(x[0].numel(), 256, 256, 10)
    loop = Loop(watch, model, loss, torch.optim.Adam(model.parameters(), lr=0.01), forward=half)
    for x, y in batches:
        loop.turn(x, y)
    return replace(loop.outcome(), course=tuple(entropies))


PROGRAMS = (
    Fault(
        limit_lifted_regression,
        ("adam-second-moment-lag",),
        fact("setback", least=1.3, most=1.2),
        begins=LIFTED,
        aside=True,
        remedy="start",
    ),
    Fault(
        limit_lifted_transformer,
        ("adam-second-moment-lag",),
        fact("setback", least=1.4, most=1.3),
        begins=LIFTED,
        remedy="start",
    ),
    Fault(energy_without_a_margin, ("output-logit-drift",), worse(3), begins=60, remedy="loss"),
)
