"""Loops whose parts are joined wrongly: gradients kept, parameters missed, graphs cut, weights written to, losses misfed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo import tasks
from tests.zoo.models import convnet
from tests.zoo.models import he
from tests.zoo.models import mlp
from tests.zoo.program import Batches
from tests.zoo.program import Fault
from tests.zoo.program import Loop
from tests.zoo.program import Loss
from tests.zoo.program import Outcome
from tests.zoo.program import Proof
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import both
from tests.zoo.proofs import learned_nothing
from tests.zoo.proofs import still
from tests.zoo.proofs import worse

STEPS = 250


class TwoParts(nn.Module):
    """A trunk and a head, with or without a cut between them."""

    def __init__(self, *, cut: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, data.CLASSES)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        features = self.trunk(x)
        return self.head(features.detach() if self.cut else features)


def no_zero_grad_sgd(watch: Watch, faulty: bool) -> Outcome:
    model = mlp(20, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return fit(watch, model, data.batches(*data.clusters(), steps=STEPS), functional.cross_entropy, optimizer, clear=not faulty)


def no_zero_grad_adam(watch: Watch, faulty: bool) -> Outcome:
    model = mlp(20, 64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return fit(watch, model, data.batches(*data.clusters(), steps=STEPS), functional.cross_entropy, optimizer, clear=not faulty)


def no_zero_grad_per_sample(watch: Watch, faulty: bool) -> Outcome:
    """The loop of many first tutorials: one linear layer, one sample at a time."""
    x, y = torch.randn(200, 10), torch.randn(200, 1)
    y = x @ torch.randn(10, 1) + 0.1 * y
    model = nn.Linear(10, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return fit(watch, model, zip(x, y, strict=True), functional.mse_loss, optimizer, clear=not faulty)


def optimizer_on_last_layer(watch: Watch, faulty: bool) -> Outcome:
    model = mlp(20, 64, 64, 10)
    optimizer = torch.optim.Adam((model[-1] if faulty else model).parameters(), lr=3e-3)
    return fit(watch, model, data.batches(*data.clusters(), steps=STEPS), functional.cross_entropy, optimizer)


def optimizer_on_old_model(watch: Watch, faulty: bool) -> Outcome:
    model = mlp(20, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if faulty:
        model = mlp(20, 64, 10)
    return fit(watch, model, data.batches(*data.clusters(), steps=STEPS), functional.cross_entropy, optimizer)


def optimizer_on_replaced_layer(watch: Watch, faulty: bool) -> Outcome:
    model = mlp(20, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if faulty:
        model[0] = nn.Linear(20, 64)
    return fit(watch, model, data.batches(*data.clusters(), steps=STEPS), functional.cross_entropy, optimizer)


def cut_before_head(watch: Watch, faulty: bool) -> Outcome:
    model = TwoParts(cut=faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(watch, model, data.batches(*data.clusters(), steps=STEPS), functional.cross_entropy, optimizer)


def learning_rate_zero(watch: Watch, faulty: bool) -> Outcome:
    return tasks.see(watch, convnet(), tasks.adam, lr=0.0 if faulty else 3e-3)


def cleared_before_the_step(watch: Watch, faulty: bool) -> Outcome:
    """backward(), zero_grad(), step(): there is nothing left to step by."""
    model = he(mlp(20, 64, 64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return _cleared(watch, model, optimizer, data.batches(*data.clusters(), steps=STEPS), early=faulty, to_none=True)


def cleared_to_zero_before_the_step(watch: Watch, faulty: bool) -> Outcome:
    """The same with gradients that are set to zero, by which AdamW steps: its weight decay still moves the weights."""
    x, y = data.digits()
    model = convnet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    return _cleared(watch, model, optimizer, data.batches(data.standardised(x), y, steps=120), early=faulty, to_none=False)


def _cleared(
    watch: Watch, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, *, early: bool, to_none: bool
) -> Outcome:
    loop = Loop(watch, model, functional.cross_entropy, optimizer)
    for x, y in batches:
        loss = loop.forward(x, y)
        if loop.stepped_by_remedy():
            continue
        loss.backward()
        if early:
            optimizer.zero_grad(set_to_none=to_none)
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
    return loop.outcome()


def weights_scaled_as_clipping(watch: Watch, faulty: bool) -> Outcome:
    """Weights multiplied by 0.99 after each step, meant as gradient clipping."""
    model = mlp(10, 32, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def clip(step: int) -> None:
        for parameter in model.parameters() if faulty else ():
            parameter.data *= 0.99

    return fit(watch, model, data.batches(*data.taught(), steps=400), functional.mse_loss, optimizer, each=clip)


def target_of_another_shape(watch: Watch, faulty: bool) -> Outcome:
    return _regression(watch, functional.mse_loss, flat=faulty)


def difference_of_other_shapes(watch: Watch, faulty: bool) -> Outcome:
    return _regression(watch, lambda output, target: ((output - target) ** 2).mean(), flat=faulty)


def _regression(watch: Watch, loss: Loss, *, flat: bool) -> Outcome:
    x, y = data.taught()
    model = mlp(10, 64, 64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    outcome = fit(watch, model, data.batches(x, y[:, 0] if flat else y, steps=400), loss, optimizer)
    with torch.no_grad():
        return Outcome(outcome.course, facts={"error": float(functional.mse_loss(model(x), y))})


def softmax_before_cross_entropy(watch: Watch, faulty: bool) -> Outcome:
    model = nn.Sequential(*mlp(20, 64, 64, 10), *([nn.Softmax(dim=1)] if faulty else []))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return fit(watch, model, data.batches(*data.clusters(), steps=STEPS), functional.cross_entropy, optimizer)


def sigmoid_before_bce_with_logits(watch: Watch, faulty: bool) -> Outcome:
    x, y = data.clusters()
    target = (y < 5).float().unsqueeze(1)
    model = mlp(20, 64, 64, 1)
    activated = nn.Sequential(model, nn.Sigmoid()) if faulty else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return fit(watch, activated, data.batches(x, target, steps=STEPS), nn.BCEWithLogitsLoss(), optimizer)


def _learned_a_constant(fault: Outcome, twin: Outcome) -> bool:
    """Over all data the faulty model's error is about the targets' variance, 1, and the twin's is not."""
    return fault.facts["error"] > 0.8 > 2 * twin.facts["error"]


def _carried(count: int) -> Proof:
    """So many backward calls found a gradient other than zero, and none of the twin's."""
    return lambda fault, twin: fault.carried >= count and not twin.carried


PROGRAMS = (
    Fault(no_zero_grad_sgd, ("missing-zero-grad",), _carried(STEPS - 1), remedy="step"),
    Fault(no_zero_grad_adam, ("missing-zero-grad",), _carried(STEPS - 1), remedy="step"),
    Fault(no_zero_grad_per_sample, ("missing-zero-grad",), _carried(190), remedy="step"),
    Fault(optimizer_on_last_layer, ("optimizer-misses-parameters",), still("0.weight", "2.weight"), remedy="start"),
    Fault(optimizer_on_old_model, ("optimizer-misses-parameters",), still("0.weight", "2.weight"), remedy="start"),
    Fault(optimizer_on_replaced_layer, ("optimizer-misses-parameters",), still("0.weight"), remedy="start"),
    Fault(cut_before_head, ("detached-parameters",), still("trunk.0.weight", "trunk.2.weight")),
    Fault(learning_rate_zero, ("weights-not-moving",), still("0.weight", "9.weight"), remedy="start"),
    Fault(
        cleared_before_the_step,
        ("weights-not-moving",),
        both(still("0.weight", "2.weight"), learned_nothing),
        falls_to=0.4,
        remedy="step",
    ),
    Fault(cleared_to_zero_before_the_step, ("weights-not-moving",), learned_nothing, falls_to=0.4, remedy="step"),
    Fault(weights_scaled_as_clipping, ("weights-changed-outside-optimizer",), worse(1.2), remedy="step"),
    Fault(target_of_another_shape, ("loss-shape-broadcast",), _learned_a_constant, remedy="loss"),
    Fault(difference_of_other_shapes, ("loss-shape-broadcast",), _learned_a_constant, remedy="loss"),
    Fault(
        softmax_before_cross_entropy,
        ("double-softmax",),
        lambda fault, twin: fault.end > 1.4 > 2 * twin.end,
        remedy="start",
    ),
    Fault(
        sigmoid_before_bce_with_logits,
        ("double-softmax",),
        lambda fault, twin: fault.end > 0.4 > 2 * twin.end,
        remedy="start",
    ),
)
