"""What is told of a step before it is made."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from gradscope.capture.probe import probe
from gradscope.capture.probe import replay
from gradscope.capture.probe.foresight import ahead
from gradscope.capture.probe.forward_again import Forward
from gradscope.capture.probe.replay import Seen
from gradscope.capture.roles import describe_parameters
from gradscope.records import RunInfo
from tests.capture.watching import watching

OPTIMIZERS = {
    "SGD": lambda held: torch.optim.SGD(held, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda held: torch.optim.Adam(held, lr=0.01, amsgrad=True),
    "AdamW": lambda held: torch.optim.AdamW(held, lr=0.01, foreach=False),
    "fused": lambda held: torch.optim.AdamW(held, lr=0.01, fused=True),
    "NAdam": lambda held: torch.optim.NAdam(held, lr=0.01),
    "RAdam": lambda held: torch.optim.RAdam(held, lr=0.01),
    "Adamax": lambda held: torch.optim.Adamax(held, lr=0.01),
    "Adagrad": lambda held: torch.optim.Adagrad(held, lr=0.01),
    "Adadelta": lambda held: torch.optim.Adadelta(held, lr=1.0),
    "RMSprop": lambda held: torch.optim.RMSprop(held, lr=0.01, centered=True, momentum=0.5),
    "Rprop": lambda held: torch.optim.Rprop(held, lr=0.01),
    "ASGD": lambda held: torch.optim.ASGD(held, lr=0.1),
    "a rate on the device": lambda held: torch.optim.Adam(held, lr=torch.tensor(0.01), foreach=False),
}


def net(*, width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))


def forth_and_back(model, x, y):
    """A forward and a backward pass, as the probe sees them."""
    forward = Forward(model)
    forward.began((x,))
    out = model(x)
    forward.ended((x,), {}, out)
    model.zero_grad()
    loss = F.cross_entropy(out, y)
    loss.backward()
    return Seen(forward, lambda made: loss, loss.detach(), None)


def median_ratio(before, model):
    ratios = [
        float((p.detach() - before[name]).norm() / before[name].norm()) for name, p in model.named_parameters() if p.dim() > 1
    ]
    return sorted(ratios)[len(ratios) // 2]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_step_to_come_is_as_long_as_it_is_told_to_be_and_nothing_is_changed(kind):
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    info = RunInfo(name="m", model="Sequential", parameters=describe_parameters(model))
    for index in range(4):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(index))
        seen = forth_and_back(model, x, torch.arange(16) % 3)
        held = copy.deepcopy((optimizer.state_dict(), [p.grad for p in model.parameters()], list(model.parameters())))
        versions = [(p._version, p.grad._version) for p in model.parameters()]
        told = ahead(seen, optimizer, model, info)
        assert repr(held) == repr((optimizer.state_dict(), [p.grad for p in model.parameters()], list(model.parameters())))
        assert versions == [(p._version, p.grad._version) for p in model.parameters()]
        norm = math.hypot(*(float(p.grad.norm()) for p in model.parameters()))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
        assert told.update_ratio == pytest.approx(median_ratio(before, model), rel=1e-4)
        assert told.gradient_norm == pytest.approx(norm)
        assert told.loss == pytest.approx(float(seen.loss))
        assert told.input_rms == pytest.approx(float(x.square().mean().sqrt()))


def test_of_large_matrices_a_few_elements_tell_about_how_long_it_will_be():
    model = net(width=300)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    seen = forth_and_back(model, torch.randn(16, 6), torch.arange(16) % 3)
    told = ahead(seen, optimizer, model, RunInfo(name="m", model="Sequential", parameters=describe_parameters(model)))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    assert told.update_ratio == pytest.approx(median_ratio(before, model), rel=0.2)


def test_of_an_optimizer_that_looks_at_whole_matrices_anything_may_come():
    class Own(torch.optim.SGD):
        pass

    model = net()
    seen = forth_and_back(model, torch.randn(16, 6), torch.arange(16) % 3)
    info = RunInfo(name="m", model="Sequential", parameters=describe_parameters(model))
    assert ahead(seen, Own(model.parameters(), lr=0.1), model, info).update_ratio == math.inf


def train(model, optimizer, schedule=None):
    with watching(model) as seen:
        for index in range(8):
            x = torch.randn(16, 6, generator=torch.Generator().manual_seed(index))
            optimizer.zero_grad()
            F.cross_entropy(model(x), torch.arange(16) % 3).backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
    return seen.facts


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_of_a_healthy_training_nothing_is_copied(kind, monkeypatch):
    def never(*_, **__):
        raise AssertionError("copies were taken")

    monkeypatch.setattr(replay, "SMALL", 0)
    monkeypatch.setattr(probe, "Replay", never)  # what it raises would stand in the note
    model = net()
    assert train(model, OPTIMIZERS[kind](model.parameters())).probe.startswith("not needed")
    model = net()
    facts = train(model, torch.optim.SGD(model.parameters(), lr=30.0))
    assert facts.probe == "could not run at step 0: the step could not be remembered (AssertionError: copies were taken)"


@pytest.mark.parametrize("late", [1, 3, 5])
def test_a_step_that_is_longer_than_those_before_is_remembered(late, monkeypatch):
    monkeypatch.setattr(replay, "SMALL", 0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1000.0 if step >= late else 1.0)
    assert [found.step for found in train(model, optimizer, schedule).probes][:1] == [late]


def test_what_is_sparse_is_no_obstacle(monkeypatch):
    monkeypatch.setattr(replay, "SMALL", 0)
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    model[2].requires_grad_(False)
    optimizer = torch.optim.SparseAdam([model[0].weight], lr=0.01)
    with watching(model) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.arange(8).reshape(4, 2)), torch.arange(4) % 3).backward()
            optimizer.step()
    assert "could not be remembered" not in seen.facts.probe
