"""What drifts apart unseen, and harms all at once: a second moment that has fallen behind the gradients."""

from __future__ import annotations

from statistics import median

import torch
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

LIFTED = 100  # the step from which the limit on the gradient is 1, a thousand times as high
AROUND = 20  # steps before and after it, whose losses are compared


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
)
