"""Scale against depth, and medians that NaN cannot disturb."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradscope.depth import begins_tiny
from gradscope.depth import decades
from gradscope.depth import depth_sites
from gradscope.depth import init_ratios
from gradscope.depth import largest
from gradscope.depth import one_digit
from gradscope.depth import plain
from gradscope.depth import slopes
from gradscope.depth import step_sizes
from gradscope.trends import row_medians
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import linear
from tests.timelines import mlp


def test_slopes_are_those_of_lines_and_shrug_off_outliers_and_nan() -> None:
    lines = np.array([[0.5], [-2.0], [0.0]]) * np.arange(9)
    lines[0, 3] = 100.0
    lines[1, [0, 4]] = math.nan
    assert slopes(lines) == pytest.approx([0.5, -2.0, 0.0])


def test_slopes_of_too_little_are_not_known() -> None:
    assert np.isnan(slopes(np.ones((3, 1)))).all()
    assert np.isnan(slopes(np.full((2, 6), math.nan))).all()
    assert slopes(np.ones((0, 6))).shape == (0,)


def test_row_medians_leave_nan_out_and_count_infinity() -> None:
    nan, inf = math.nan, math.inf
    table = np.array([[1.0, 2.0, 3.0, 4.0], [nan, 2.0, nan, 5.0], [nan] * 4, [inf, inf, 1.0, nan], [7.0, nan, nan, nan]])
    assert row_medians(table) == pytest.approx([2.5, 3.5, nan, inf, 7.0], nan_ok=True)
    assert row_medians(np.zeros((2, 0))) == pytest.approx([nan, nan], nan_ok=True)


def test_decades_of_what_has_no_logarithm_are_not_known() -> None:
    assert decades(np.array([100.0, 0.0, -1.0, math.inf, math.nan])) == pytest.approx([2.0] + [math.nan] * 4, nan_ok=True)


def test_rho_is_one_for_hes_weights_and_not_known_where_scale_does_not_matter() -> None:
    assert init_ratios(build()) == pytest.approx({"layers.0": 1.0, "layers.2": 1.0}, rel=1e-5)
    normed = linear("a", 8, 8, norm_follows=True) + linear("b", 8, 8) + linear("c", 8, 4)
    assert set(init_ratios(build(normed))) == {"b"}
    assert init_ratios(build(columns={"weight.norm": {"layers.0.weight": 0.0}})) == pytest.approx({"layers.2": 1.0}, rel=1e-5)
    assert init_ratios(build(steps=range(1, 5))) == {}


def test_depth_is_not_judged_inside_residual_branches() -> None:
    net = mlp(*[8] * 9)
    assert list(depth_sites(build(net))) == list(range(0, 14, 2))
    assert not len(depth_sites(build(net, wiring=classification(net, residual_additions=4))))


def test_step_sizes_are_those_of_the_median_matrix() -> None:
    ratios = {"layers.0.weight": 0.1, "layers.2.weight": 0.2, "layers.4.weight": 9.0}
    assert step_sizes(build(columns={"update.ratio": ratios}, steps=[0])) == pytest.approx([0.2])


def test_the_largest_are_named_first_and_nothing_that_is_not_known() -> None:
    values = np.array([1.0, math.nan, math.inf, 0.0, 2.0])
    assert largest(values, ["a", "b", "c", "d", "e"], most=4) == ("c", "e", "a")


def test_numbers_for_people_and_for_json() -> None:
    assert (one_digit(0.01234), one_digit(0.0)) == (0.01, 0.0)
    assert (plain(1.23456789), plain(math.inf), plain(math.nan)) == (1.23457, None, None)


def test_weights_begin_tiny_where_no_normalisation_makes_that_good() -> None:
    small = {"weight.norm": lambda step: np.array([1e-2, 1e-2, 1e-2])}
    assert begins_tiny(build(columns=small))
    assert not begins_tiny(build(columns=small, wiring=classification(norms=1)))
    assert not begins_tiny(build(columns={"weight.norm": lambda step: np.array([5.0, 8.0, 3.0])}))
    assert not begins_tiny(build(steps=range(5, 9), columns=small))  # not seen from the start
