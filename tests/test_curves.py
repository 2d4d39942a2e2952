from __future__ import annotations

import numpy as np

from gradscope.curves import POINTS
from gradscope.curves import Curves
from gradscope.records import PULSE_FIELDS


def points_of(losses, *, chunk=64):
    rows = np.zeros((len(losses), len(PULSE_FIELDS)))
    rows[:, PULSE_FIELDS.index("step")] = np.arange(len(losses))
    rows[:, PULSE_FIELDS.index("loss")] = losses
    rows[:, PULSE_FIELDS.index("backwards")] = 1
    rows[:, PULSE_FIELDS.index("seconds")], rows[:, PULSE_FIELDS.index("own_seconds")] = 0.102, 0.002
    curves = Curves()
    return [point for start in range(0, len(rows), chunk) for point in curves.of_pulses(rows[start : start + chunk])]


def test_every_step_at_first_and_then_ever_fewer():
    found = points_of(np.ones(20_000))
    steps = [step for step, _ in found]
    assert steps[: 2 * POINTS] == list(range(2 * POINTS))
    assert len(steps) < 12 * POINTS
    assert all(abs(values["gradscope/overhead"] - 0.02) < 1e-9 for _, values in found)


def test_of_the_steps_between_two_points_the_one_that_spiked_is_drawn():
    losses = np.ones(10_000)
    losses[7123], losses[8456], losses[9210] = 50.0, np.nan, 2.0
    found = {step: values["gradscope/loss"] for step, values in points_of(losses)}
    assert found[7123] == 50.0
    assert np.isnan(found[8456])
    assert set(found.values()) - {1.0, 50.0, 2.0} == {found[8456]}
