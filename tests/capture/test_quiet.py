"""Stretches of plain steps that a stand-in listens to show what the watch itself would have shown."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import mse_loss

from gradscope.capture import schedule
from gradscope.capture.schedule import ATTENTIVE_STEPS
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
            asleep.append(watched.watch.asleep)
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
    assert sum(asleep[ATTENTIVE_STEPS:]) > 60
    monkeypatch.setattr(schedule, "MOST_QUIET", 0)
    alone, never = train(default_budget, rate=lambda number: 1e-3 / (1 + number))
    assert not any(never)
    for name in ("step", "loss", "learning_rate", "backwards"):
        assert with_stand_in.field(name) == alone.field(name)
    norms = dict(zip(alone.field("step"), alone.field("gradient_norm"), strict=True))
    taken = [(s, n) for s, n in zip(with_stand_in.field("step"), with_stand_in.field("gradient_norm"), strict=True) if n == n]
    assert len([step for step, _ in taken if step >= ATTENTIVE_STEPS]) >= 1
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


def test_light_steps_that_a_stand_in_takes_are_those_that_the_watch_takes(monkeypatch):
    with_stand_in, asleep = train(watching, rate=lambda number: 1e-3 / (1 + number))
    assert sum(asleep[ATTENTIVE_STEPS:]) > 60
    monkeypatch.setattr(schedule, "ATTENTIVE_STEPS", STEPS)
    alone, never = train(watching, rate=lambda number: 1e-3 / (1 + number))
    assert not any(never)
    assert [frame.step for frame in with_stand_in.frames] == [frame.step for frame in alone.frames] == list(range(STEPS))
    for one, other in zip(alone.frames, with_stand_in.frames, strict=True):
        assert one.columns.keys() == other.columns.keys()
        for name, column in one.columns.items():
            found = other.columns[name]
            if name.startswith("update.outside_") and np.isnan(found).all():  # a light step's, see the tests below
                continue
            np.testing.assert_allclose(found, column, rtol=1e-6, err_msg=f"{name} of step {one.step}")
    for name in ("step", "loss", "gradient_norm", "learning_rate", "backwards", "sampled"):
        assert with_stand_in.field(name) == alone.field(name)


def outside_changes(write):
    """Train, each step sampled, and ``write`` to the weights before each step: how much of them changed so, by step."""
    torch.manual_seed(0)
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with watching(model) as seen:
        for number in range(STEPS):
            write(model[0].weight, number)
            optimizer.zero_grad()
            mse_loss(model(torch.randn(8, 4)), torch.randn(8, 1)).backward()
            optimizer.step()
    return {frame.step: float(frame.columns["update.outside_change"][0]) for frame in seen.frames}


def test_light_steps_do_not_look_at_what_nothing_wrote_to():
    changes = outside_changes(lambda weight, number: None)
    later = [change for step, change in changes.items() if step >= ATTENTIVE_STEPS]
    assert sum(math.isnan(change) for change in later) > len(later) / 2
    assert set(later) - {change for change in later if math.isnan(change)} == {0.0}


def test_a_single_write_between_two_light_steps_is_seen_in_its_step():
    for wanted in range(ATTENTIVE_STEPS + 10, ATTENTIVE_STEPS + 18):

        def write(weight, number, wanted=wanted):
            if number == wanted:
                with torch.no_grad():
                    weight.mul_(1.5)

        changes = outside_changes(write)
        assert changes[wanted] == pytest.approx(0.5, rel=1e-3)
        assert {change for step, change in changes.items() if step > wanted and not math.isnan(change)} == {0.0}


def test_writes_past_autograd_are_seen_within_a_stretch_and_then_at_every_step():
    def write(weight, number):
        if number >= ATTENTIVE_STEPS + 3:
            weight.data.mul_(1.01)

    seen = [step for step, change in outside_changes(write).items() if change > 0]
    assert seen[0] <= ATTENTIVE_STEPS + 3 + schedule.WEIGHED_EVERY
    assert seen == list(range(seen[0], STEPS))


@pytest.mark.parametrize("amid", [False, True])
def test_light_steps_that_are_asked_for_half_way_are_all_there(amid):
    torch.manual_seed(0)
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    asleep = 0
    with watching(model) as seen:
        for number in range(STEPS):
            optimizer.zero_grad()
            loss = mse_loss(model(torch.randn(8, 4)), torch.randn(8, 1))
            asleep += seen.watch.asleep
            if amid and number % 5 == 0:
                seen.watch.settle()
            loss.backward()
            optimizer.step()
            if not amid and number % 5 == 0:
                seen.watch.settle()
    assert asleep > 40
    assert [frame.step for frame in seen.frames] == seen.field("step") == list(range(STEPS))
    for frame in seen.frames[1:]:
        for name in ("activation.rms", "activation_gradient.rms", "weight_gradient.norm"):
            assert np.isfinite(frame.columns[name]).all(), (frame.step, name)


def test_a_parameter_that_is_replaced_amid_light_steps_is_followed():
    torch.manual_seed(0)
    model = mlp(4, 8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with watching(model) as seen:
        for number in range(STEPS):
            if number % 9 == 4:
                model[0].weight.data = model[0].weight.data.clone()
            optimizer.zero_grad()
            mse_loss(model(torch.randn(8, 4)), torch.randn(8, 1)).backward()
            optimizer.step()
    assert [frame.step for frame in seen.frames] == list(range(STEPS))
    ratios = [seen.get("update.ratio", "0.weight", step=i) for i in range(STEPS)]
    assert all(0 < ratio < 0.1 for ratio in ratios)
