"""Stretches of plain steps that a stand-in listens to show what the watch itself would have shown."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import mse_loss

from gradscope.capture import schedule
from gradscope.capture.schedule import DENSE_NORMS
from tests.capture.watching import watching
from tests.models import mlp

STEPS = 220


def train(seen, *, target=lambda number: 0.0, rate=lambda number: 1e-3, poison=None):
    """A plain loop; targets and learning rates by the number of the step. Which steps found a stand-in in the watch's place."""
    torch.manual_seed(0)
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    asleep = []
    with seen(model) as watched:
        for number in range(STEPS):
            optimizer.param_groups[0]["lr"] = rate(number)
            asleep.append(watched.watch._quiet is not None)
            optimizer.zero_grad()
            mse_loss(model(torch.randn(8, 4)), torch.randn(8, 1) + target(number)).backward()
            if number == poison:
                model[0].weight.grad[0, 0] = math.nan
            optimizer.step()
    return watched, asleep


def default_budget(model):
    return watching(model, every=None)


def test_losses_norms_and_rates_are_those_of_the_loop(monkeypatch):
    with_stand_in, asleep = train(default_budget, rate=lambda number: 1e-3 / (1 + number))
    assert sum(asleep[DENSE_NORMS:]) > 60
    monkeypatch.setattr(schedule, "MOST_QUIET", 0)
    alone, never = train(default_budget, rate=lambda number: 1e-3 / (1 + number))
    assert not any(never)
    for name in ("step", "loss", "learning_rate", "backwards"):
        assert with_stand_in.field(name) == alone.field(name)
    norms = dict(zip(alone.field("step"), alone.field("gradient_norm"), strict=True))
    taken = [(s, n) for s, n in zip(with_stand_in.field("step"), with_stand_in.field("gradient_norm"), strict=True) if n == n]
    assert len([step for step, _ in taken if step >= DENSE_NORMS]) >= 3
    assert all(norm == norms[step] for step, norm in taken if norms[step] == norms[step])


def test_a_loss_that_jumps_ends_the_stretch_at_once():
    seen, asleep = train(default_budget, target=lambda number: 1000.0 * (number >= 175))
    assert any(asleep[150:175])
    sampled = [step for step, was in zip(seen.field("step"), seen.field("sampled"), strict=True) if was and step > 175]
    assert sampled[0] <= 177


def test_a_gradient_that_is_not_finite_is_found_in_its_step():
    seen, asleep = train(default_budget, poison=190)
    assert any(asleep[150:190])
    assert any(math.isinf(norm) for norm in seen.field("gradient_norm")[190:])
    assert seen.facts.origin is not None
