"""The overshoot from losses along a step."""

from __future__ import annotations

import math

import pytest

from gradscope.capture.probe.linesearch import overshoot


class Counted:
    """phi, and how often it was asked."""

    def __init__(self, phi):
        self.phi = phi
        self.calls = 0

    def __call__(self, length):
        self.calls += 1
        return self.phi(length)

    def overshoot(self, **options):
        return overshoot(self, self.phi(0.0), self.phi(1.0), **options)


def quadratic(o):
    """From 1 to a lowest 0.1 at 1/(2 O), and as high as at the start at 1/O."""
    return Counted(lambda s: 1.0 + 3.6 * o * o * s * (s - 1 / o))


@pytest.mark.parametrize("o", [1.01, 1.5, 4.0, 17.0, 900.0, 60_000.0])
def test_of_a_step_that_is_too_long_it_is_known_to_five_percent_in_a_dozen_calls(o):
    phi = quadratic(o)
    assert phi.overshoot() == pytest.approx(o, rel=0.05)
    assert phi.calls <= 12


@pytest.mark.parametrize(("o", "low", "high"), [(0.9, 0.5, 1.0), (0.3, 0.125, 0.5), (0.05, 1 / 64, 0.125)])
def test_of_a_step_that_is_not_it_is_known_roughly_in_few_calls(o, low, high):
    phi = quadratic(o)
    assert low <= phi.overshoot() <= high
    assert phi.calls <= 5


def test_a_line_that_only_falls_has_none_and_one_that_only_rises_has_no_end():
    assert Counted(lambda s: -s).overshoot() == 0.0
    assert Counted(lambda s: s).overshoot() == math.inf


def test_a_loss_that_is_not_finite_lies_above_all():
    assert Counted(lambda s: 1 - s if s < 0.2 else math.nan).overshoot() == pytest.approx(5, rel=0.05)


def test_noise_is_no_rise():
    noisy = Counted(lambda s: 1.0 + 1e-6 * s)
    assert noisy.overshoot() < 1
    assert noisy.overshoot(tolerance=1e-8) > 1


def test_behind_the_valley_a_loss_may_be_flat_again():
    def valley(length):
        return 10 * (1 + length * (30 * length - 6)) if length < 0.5 else 2.3

    assert Counted(valley).overshoot() < 1
    assert Counted(valley).overshoot(inside=(0.25, 0.0625)) == pytest.approx(5, rel=0.05)
