"""Slopes, trends, spikes and medians, against slow forms that are plain to see and against values known by hand."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from gradscope.trends import as_high_before
from gradscope.trends import falls
from gradscope.trends import geometric
from gradscope.trends import largest_before
from gradscope.trends import lasting
from gradscope.trends import median_of
from gradscope.trends import smoothed
from gradscope.trends import spike_scores
from gradscope.trends import theil_sen

NAN, INF = math.nan, math.inf


def noise(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count)


# -- slopes


def slow_theil_sen(values):
    known = [(i, float(value)) for i, value in enumerate(values) if math.isfinite(value)]
    return float(np.median([(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(known, 2)]))


def test_the_slope_of_a_line_is_its_own_whatever_is_missing_or_broken():
    line = 3.0 - 0.25 * np.arange(20)
    assert theil_sen(line) == pytest.approx(-0.25)
    line[[2, 9]] = NAN
    line[11] = INF
    line[[4, 15]] = 1e6
    assert theil_sen(line) == pytest.approx(-0.25)


@pytest.mark.parametrize("count", [2, 3, 10, 41])
def test_the_slope_is_the_median_over_all_pairs(count):
    values = noise(count).astype(np.float32)
    values[3::7] = NAN
    assert theil_sen(values) == pytest.approx(slow_theil_sen(values), rel=1e-12)


@pytest.mark.parametrize("values", [[], [1.0], [NAN, INF, 1.0], [NAN, NAN]])
def test_fewer_than_two_values_have_no_slope(values):
    assert math.isnan(theil_sen(np.array(values)))


# -- trends


def mann_kendall(values):
    """The test's z, by the definition; for values that all differ."""
    n = len(values)
    s = sum(math.copysign(1, later - earlier) for earlier, later in combinations(values, 2))
    return s / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)


def test_a_trend_is_seen_through_noise_and_only_downwards():
    ramp = np.linspace(1, 0, 100)
    assert falls(ramp + 0.5 * noise(100))
    assert not falls(-ramp + 0.5 * noise(100))
    assert not falls(noise(100))
    assert not falls(np.ones(100))


@pytest.mark.parametrize("seed", range(20))
def test_falling_is_decided_by_the_mann_kendall_test(seed):
    values = noise(12, seed=seed) - 0.15 * np.arange(12)
    z = mann_kendall(values)
    assert falls(values) == (z < -1.645)
    assert falls(values, z=-z + 1e-9) is False
    assert falls(values, z=-z - 1e-9) is True


def test_the_seeds_above_decide_both_ways():
    assert {falls(noise(12, seed=seed) - 0.15 * np.arange(12)) for seed in range(20)} == {True, False}


def test_eight_values_are_the_least_and_only_finite_ones_count():
    assert falls(np.arange(8.0)[::-1])
    assert not falls(np.arange(7.0)[::-1])
    assert not falls(np.array([*np.arange(7.0)[::-1], NAN, INF, -INF]))
    assert falls(np.array([NAN, *np.arange(8.0)[::-1], INF]))


# -- spikes


def test_the_largest_before_looks_back_on_thirty_values_and_needs_ten():
    series = np.array([5.0, *np.arange(1.0, 41.0)])
    before = largest_before(series)
    assert np.isinf(before[:10]).all()
    assert before[10] == 9.0
    assert before[[30, 31]].tolist() == [29.0, 30.0]
    assert largest_before(np.zeros(12))[-1] == np.inf
    assert not len(largest_before(np.zeros(0)))


def slow_spike_scores(series):
    logs = [math.log(value) if value > 0 and math.isfinite(value) else NAN for value in series]
    scores = []
    for i, value in enumerate(logs):
        window = [past for past in logs[max(0, i - 30) : i] if not math.isnan(past)]
        if len(window) < 10 or math.isnan(value):
            scores.append(0.0)
            continue
        middle = np.median(window)
        spread = 1.4826 * np.median(np.abs(np.array(window) - middle))
        scores.append((value - middle) / max(spread, 0.1))
    return np.array(scores)


@pytest.mark.parametrize("missing", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("count", [0, 1, 10, 11, 29, 31, 200])
def test_scores_are_the_distance_from_the_windows_median(count, missing):
    series = np.exp(noise(count))
    series[np.random.default_rng(1).random(count) < missing] = NAN
    series[5::17] = 0.0
    series[7::23] = INF
    assert spike_scores(series) == pytest.approx(slow_spike_scores(series), abs=1e-9)


def test_a_flat_series_scores_nothing_and_a_small_step_little():
    assert not spike_scores(np.full(100, 3.0)).any()
    step = np.where(np.arange(100) < 50, 1.0, 1.1)
    assert spike_scores(step).max() == pytest.approx(math.log(1.1) / 0.1)


def test_a_spike_scores_where_it_is_and_leaves_its_successors_alone():
    series = np.exp(0.05 * noise(100))
    series[60] = 20.0
    scores = spike_scores(series)
    assert scores[60] > 20
    assert np.abs(np.delete(scores, 60)).max() < 5


def test_the_first_ten_score_nothing():
    series = np.ones(12)
    series[[3, 9]] = 1e6
    series[[10, 11]] = 1e9
    scores = spike_scores(series)
    assert not scores[:10].any()
    assert (scores[10:] > 100).all()


def test_the_series_given_is_left_as_it_is():
    series = np.array([1.0, NAN, 0.0, INF, -1.0] * 4)
    before = series.copy()
    spike_scores(series)
    assert np.array_equal(series, before, equal_nan=True)


# -- lasting


@pytest.mark.parametrize(("least", "window"), [(1, 1), (1, 3), (3, 3), (3, 5), (4, 40)])
def test_lasting_counts_the_last_samples_of_each_column(least, window):
    held = np.random.default_rng(0).random((25, 4)) < 0.6
    expected = [row & (held[max(0, i - window + 1) : i + 1].sum(axis=0) >= least) for i, row in enumerate(held)]
    assert (lasting(held, least=least, window=window) == np.array(expected)).all()
    assert (lasting(held[:, 0], least=least, window=window) == np.array(expected)[:, 0]).all()


def test_what_has_ended_does_not_last():
    assert lasting(np.array([True, True, True, False]), least=3, window=5).tolist() == [False, False, True, False]


# -- medians


def test_smoothed_is_a_running_median_and_what_is_nan_is_bad():
    assert smoothed(np.array([5.0, 1.0, 9.0, 2.0, 3.0, 4.0]), width=3).tolist() == [5, 5, 5, 2, 3, 3]
    assert smoothed(np.array([1.0, NAN, 2.0, NAN, NAN]), width=3).tolist() == [1, 1, 2, INF, INF]
    assert smoothed(np.ones(4)).tolist() == [1, 1, 1, 1]
    assert smoothed(np.array([])).tolist() == []


def test_few_last_values_are_as_high_as_before_where_one_came_back_from_there():
    series = np.array([1.0, 9.0, 1.0, *[8.0] * 10])
    assert [as_high_before(series[:n], 3, 2.0) for n in (3, 4, 12, 13)] == [False, True, True, False]
    assert as_high_before(np.array([1.0, 4.0, 1.0, 8.0]), 3, 2.0)
    assert not as_high_before(np.array([1.0, 2.5, 1.0, 8.0]), 3, 2.0)
    assert not as_high_before(np.array([1.0, 4.0, 1.0, 8.0]), 3, 5.0)
    assert not as_high_before(np.zeros(0), 0, 1.0)


def test_the_median_is_of_what_is_finite():
    assert median_of(np.array([NAN, 1.0, INF, 2.0, 6.0, -INF])) == 2.0
    assert math.isnan(median_of(np.array([NAN, INF])))
    assert math.isnan(median_of(np.array([])))


def test_geometric_growth_has_its_factor_and_no_stray():
    slope, stray = geometric(np.array([3.0 * 1.5**i for i in range(10)]))
    assert slope == pytest.approx(math.log(1.5))
    assert stray == pytest.approx(0, abs=1e-9)
    assert geometric(np.array([1.0, 9.0, 1.0, 9.0]))[1] > 0.5
