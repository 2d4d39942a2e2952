"""What forward passes show of modules: the type of their output, and how much a batch norm's statistics are taken over."""

from __future__ import annotations

import torch
from torch import nn

from tests.capture.watching import seen_of
from tests.capture.watching import step
from tests.capture.watching import watching
from tests.models import mlp


def facts_of(seen, path):
    return next(module for module in seen.facts.modules if module.path == path)


def test_the_type_of_a_modules_output():
    model = mlp(4, 8, 2)
    assert facts_of(seen_of(model, torch.randn(3, 4)), "0").dtype == "float32"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(torch.randn(3, 4)).float().square().mean()
        loss.backward()
        optimizer.step()
    assert facts_of(seen, "0").dtype == "bfloat16"


def test_the_fewest_values_of_a_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(4), nn.BatchNorm1d(4))
    model(torch.randn(2, 3, 6, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for batch in (6, 2, 6):
            step(model, optimizer, torch.randn(batch, 3, 6, 6))
    assert facts_of(seen, "1").samples == 2 * 4 * 4
    assert facts_of(seen, "4").samples == 2
    assert facts_of(seen, "0").samples is None


def test_a_batch_norm_that_evaluates_takes_none():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).eval()
    assert facts_of(seen_of(model, torch.randn(3, 4)), "1").samples is None


def test_what_was_seen_stays_known_where_parameters_change():
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for number in range(8):
            if number == 5:
                model[2] = nn.Linear(8, 3)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            step(model, optimizer, torch.randn(3, 4))
    assert facts_of(seen, "0").dtype == "float32"
