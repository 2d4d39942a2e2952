"""How Adam's second moment fits the gradient: against the formula, worked out over all elements."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.capture.watching import step
from tests.capture.watching import watching
from tests.models import mlp

RATIO, SHARE = "update.second_moment_ratio", "update.epsilon_share"


def expected_ratio(gradient, state, *, beta=0.999, eps=1e-8):
    corrected = state["exp_avg_sq"] / (1 - beta ** float(state["step"]))
    known = state["exp_avg_sq"] > 0
    return (gradient.square() / corrected.clamp_min(eps**2))[known].mean().sqrt().item()


def before_each_step(model, optimizer, inputs, look, *, every=1):
    """Train, and ``look`` at what each step starts from."""
    found = []
    with watching(model, every=every) as seen:
        for x in inputs:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            found.append(look())
            optimizer.step()
    return seen, found


def ratios_of(model, optimizer, name):
    parameter = dict(model.named_parameters())[name]
    state = optimizer.state.get(parameter)
    return expected_ratio(parameter.grad, state) if state else math.nan


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.Adam,
        lambda p, lr: torch.optim.AdamW(p, lr=lr, fused=True),
        lambda p, lr: torch.optim.AdamW(p, lr=lr, foreach=False),
        torch.optim.NAdam,
    ],
    ids=["adam", "fused", "loop", "nadam"],
)
def test_the_ratio_is_that_of_the_formula(make):
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = make(model.parameters(), lr=1e-3)
    inputs = [torch.randn(8, 4) for _ in range(6)]
    seen, expected = before_each_step(model, optimizer, inputs, lambda: ratios_of(model, optimizer, "0.weight"))
    found = [seen.get(RATIO, "0.weight", step=i) for i in range(6)]
    assert math.isnan(found[0])
    assert found[1:] == pytest.approx(expected[1:], rel=1e-4)
    assert math.isnan(seen.get(RATIO, "0.bias"))  # vectors are not looked at


def test_large_matrices_are_sampled():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    inputs = [torch.randn(64, 64) for _ in range(4)]
    seen, expected = before_each_step(model, optimizer, inputs, lambda: ratios_of(model, optimizer, "0.weight"))
    assert seen.get(RATIO, "0.weight") == pytest.approx(expected[-1], rel=0.3)
    assert seen.get(RATIO, "2.weight") > 0


def test_a_stale_second_moment_shows():
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    seen, _ = before_each_step(model, optimizer, [torch.ones(4, 4)] * 8 + [30 * torch.ones(4, 4)], lambda: None)
    assert seen.get(RATIO, "0.weight", step=-2) == pytest.approx(1, abs=0.1)
    assert seen.get(RATIO, "0.weight") > 5


@pytest.mark.parametrize(("scale", "share"), [(1.0, 0.0), (1e-9, 1.0)])
def test_the_share_that_epsilon_dominates(scale, share):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with watching(model) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            (scale * model(torch.randn(8, 4)).square().mean()).backward()
            optimizer.step()
    assert seen.get(SHARE, "weight") == share


def test_elements_without_a_gradient_are_left_out_of_the_share():
    torch.manual_seed(0)
    model = nn.Embedding(6, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    seen, _ = before_each_step(model, optimizer, [torch.tensor([0, 1])] * 3, lambda: None)
    assert seen.get(SHARE, "weight") == 0
    assert seen.get(RATIO, "weight") == pytest.approx(1, abs=0.1)


def test_an_element_without_a_history_is_left_out_of_the_ratio():
    torch.manual_seed(0)
    model = nn.Embedding(6, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    seen, _ = before_each_step(model, optimizer, [torch.tensor([0, 1])] * 3 + [torch.tensor([0, 1, 5])], lambda: None)
    assert seen.get(RATIO, "weight") < 2
    assert seen.get(SHARE, "weight") == 0


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.RMSprop])
def test_other_optimizers_have_none(make):
    model = mlp(4, 8, 2)
    optimizer = make(model.parameters(), lr=1e-3)
    with watching(model) as seen:
        for _ in range(3):
            step(model, optimizer, torch.randn(8, 4))
    assert math.isnan(seen.get(RATIO, "0.weight"))
    assert math.isnan(seen.get(SHARE, "0.weight"))


def test_the_state_of_the_optimizer_is_left_as_it_is():
    model = mlp(4, 8, 2)
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watching(model) as seen:
        for _ in range(3):
            step(model, optimizer, torch.randn(8, 4))
    assert model[0].weight not in optimizer.state
    assert math.isnan(seen.get(RATIO, "0.weight"))
    assert seen.get(RATIO, "2.weight") > 0


def test_several_groups_half_precision_and_other_layouts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    model[2].bfloat16()
    groups = [{"params": model[0].parameters(), "betas": (0.9, 0.5)}, {"params": model[2].parameters(), "eps": 1e3}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    with watching(model) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            model[2](model[1](model[0](torch.randn(2, 3, 6, 6))).bfloat16()).square().mean().backward()
            optimizer.step()
    assert 0 < seen.get(RATIO, "0.weight") < 3
    assert seen.get(SHARE, "0.weight") == 0
    assert seen.get(RATIO, "2.weight") < 1e-2
    assert seen.get(SHARE, "2.weight") == 1


def test_after_the_first_it_is_one_sampled_step_in_four_at_most():
    model = mlp(4, 8, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watching(model) as seen:
        for _ in range(60):
            step(model, optimizer, torch.randn(8, 4))
    there = [not math.isnan(seen.get(RATIO, "0.weight", step=i)) for i in range(60)]
    assert there[1:12] == [True] * 11
    assert np.diff(np.flatnonzero(there[11:])).min() >= 4
    assert there[48]  # the instruments are read at one step in eight at least


def test_under_a_grad_scaler_gradients_are_as_the_optimizer_uses_them():
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    with watching(model) as seen:
        for _ in range(4):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(8, 4)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert seen.get(RATIO, "0.weight") == pytest.approx(1, abs=0.1)


def test_parameters_that_take_anothers_place():
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with watching(model) as seen:
        for number in range(6):
            if number == 3:
                model[2] = nn.Linear(8, 5)
                optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            step(model, optimizer, torch.randn(8, 4))
    assert seen.get(RATIO, "2.weight") > 0
