"""Sampled steps that are held back and reduced together show what they would have shown one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gradscope.capture import sampled
from tests.capture.watching import step
from tests.capture.watching import watching
from tests.models import KINDS
from tests.models import mlp

STEPS = 45


def frames_of(kind, monkeypatch, *, most):
    monkeypatch.setattr(sampled, "MOST_HELD", most)
    monkeypatch.setattr(sampled, "MOST_SECONDS", math.inf)
    torch.manual_seed(0)
    make, data, loss_of = KINDS[kind]
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watching(model) as seen:
        for _ in range(STEPS):
            batch = data()
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    return seen.frames


@pytest.mark.parametrize("kind", KINDS)
def test_they_show_what_they_would_show_one_by_one(kind, monkeypatch):
    alone, together = (frames_of(kind, monkeypatch, most=most) for most in (1, 8))
    assert [frame.step for frame in together] == [frame.step for frame in alone] == list(range(STEPS))
    for one, other in zip(alone, together, strict=True):
        assert one.columns.keys() == other.columns.keys()
        for name, column in one.columns.items():
            np.testing.assert_allclose(other.columns[name], column, rtol=1e-6, err_msg=f"{name} of step {one.step}")


def test_in_the_middle_of_a_step_they_can_be_asked_for():
    torch.manual_seed(0)
    model = mlp(40, 48, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model) as seen:
        for _ in range(40):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 40)).square().mean()
            seen.watch.settle()
            loss.backward()
            seen.watch.settle()
            optimizer.step()
    assert [frame.step for frame in seen.frames] == list(range(40))
    for frame in seen.frames[1:]:
        for name in ("activation.rms", "activation_gradient.rms", "weight_gradient.norm", "update.outside_change"):
            matrices = [site.path.endswith("weight") for site in frame.schema.sites(name.partition(".")[0])]
            column = frame.columns[name][matrices] if "weight" in name or "update" in name else frame.columns[name]
            assert np.isfinite(column).all(), (frame.step, name)
    assert all((frame.columns["update.outside_change"][::2] == 0).all() for frame in seen.frames[1:])


def test_a_loss_that_jumps_is_looked_at_by_the_instruments_at_once():
    torch.manual_seed(0)
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with watching(model) as seen:
        for number in range(45):
            target = torch.randn(8, 1) + 100 * (number == 42)
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(torch.randn(8, 4)), target).backward()
            optimizer.step()
    highest = [frame.columns.get("loss.target_high", [math.nan])[0] for frame in seen.frames]
    assert highest[42] > 90
    assert math.isnan(highest[41])


def test_parameters_that_are_replaced_meanwhile_are_followed():
    torch.manual_seed(0)
    model = mlp(40, 48, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with watching(model) as seen:
        for number in range(40):
            if number == 30:
                model[0].weight.data = torch.randn(48, 20)
                optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            step(model, optimizer, torch.randn(8, 40 if number < 30 else 20))
    assert [frame.step for frame in seen.frames] == list(range(40))
    assert all(frame.columns["update.ratio"][0] > 0 for frame in seen.frames)
