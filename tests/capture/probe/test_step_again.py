"""An optimizer's step made again on copies."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gradscope.capture.probe import step_again
from gradscope.capture.probe.step_again import StepAgain
from tests.capture.probe.test_foresight import OPTIMIZERS

MORE = {
    "Adafactor": lambda held: torch.optim.Adafactor(held, lr=0.1),
    "groups": lambda held: torch.optim.Adam([{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(held)]),
}


@pytest.mark.parametrize("at_once", [1, 1 << 24])
@pytest.mark.parametrize("kind", [*OPTIMIZERS, *MORE])
def test_it_is_the_step_that_was_made_and_nothing_is_changed(kind, at_once, monkeypatch):
    monkeypatch.setattr(step_again, "MOST_AT_ONCE", at_once)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    optimizer = {**OPTIMIZERS, **MORE}[kind](list(model.parameters()))
    for _ in range(4):
        model.zero_grad()
        model(torch.randn(5, 6)).square().mean().backward()
        model[1].bias.grad = None
        again = StepAgain(optimizer)
        before = {id(p): p.detach().clone() for p in model.parameters()}
        given = {id(p): p.grad.clone() for p in model.parameters() if p.grad is not None}
        held = copy.deepcopy(optimizer.state_dict())
        found = again.step(before, given)
        assert repr(held) == repr(optimizer.state_dict()) and not given
        optimizer.step()
        for p in model.parameters():
            assert torch.equal(found[id(p)], p.detach())
            assert not found[id(p)].requires_grad
