"""The learning rate of each step, whatever sets it: schedulers, groups, several optimizers, a rate that is a tensor."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.capture.watching import watching
from tests.stacks import schedule_stacks as schedules
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron

STEPS = 40


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize(
    "schedule",
    [
        schedules.one_cycle,
        schedules.warm_restarts,
        schedules.warm_up,
        schedules.in_sequence,
        schedules.in_stairs,
        schedules.there_and_back,
    ],
)
def test_the_rate_is_the_one_that_the_step_was_made_with(schedule, every):
    torch.manual_seed(0)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = schedule(optimizer, STEPS, 0.1)
    rates = []
    with watching(model, every=every) as seen:
        for inputs, labels in classes(STEPS):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), labels).backward()
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    assert len(set(rates)) > 2
    assert seen.field("learning_rate") == pytest.approx(rates)


def trained(model, optimizers):
    for inputs, labels in classes(12):
        for optimizer in optimizers:
            optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("rates", [(0.1, 0.01), (0.01, 0.1)])
def test_of_groups_it_is_the_largest(rates):
    model = perceptron()
    groups = [{"params": layer.parameters(), "lr": rate} for layer, rate in zip((model[0], model[2]), rates, strict=True)]
    with watching(model) as seen:
        trained(model, [torch.optim.SGD(groups, lr=1e-3)])
    assert seen.field("learning_rate") == [0.1] * 12


@pytest.mark.parametrize("rates", [(0.1, 0.01), (0.01, 0.1)])
def test_of_optimizers_that_make_a_step_together_it_is_the_largest(rates):
    model = perceptron()
    optimizers = [torch.optim.SGD(layer.parameters(), lr=rate) for layer, rate in zip((model[0], model[2]), rates, strict=True)]
    with watching(model) as seen:
        trained(model, optimizers)
    assert seen.field("learning_rate")[1:] == [0.1] * 11  # in the first, the second is not known yet


def test_it_may_be_a_tensor():
    model = perceptron()
    with watching(model) as seen:
        trained(model, [torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.5), foreach=False)])
    assert seen.field("learning_rate") == [0.5] * 12
