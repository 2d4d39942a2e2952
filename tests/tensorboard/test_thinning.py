"""Fewer columns than steps lose nothing that stands out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradscope.tensorboard.thinning import columns_of
from gradscope.tensorboard.thinning import extremes
from gradscope.tensorboard.thinning import most_telling
from gradscope.tensorboard.thinning import usual_of

STEPS = np.arange(0, 1000, 10)


def thinned(values, *, scale="log", most=10):
    table = np.asarray(values, dtype=np.float32).reshape(len(STEPS), -1)
    return most_telling(table, columns_of(STEPS, most, 0, 990), scale=scale, usual=usual_of(table))


def series(usual=1.0, **special):
    values = np.full(len(STEPS), usual, dtype=np.float32)
    for place, value in special.items():
        values[int(place.removeprefix("at"))] = value
    return values


def test_as_many_columns_as_steps_are_the_steps():
    columns = columns_of(STEPS, len(STEPS), 0, 990)
    assert columns.facts == {"first": STEPS.tolist(), "last": STEPS.tolist(), "count": [1] * 100, "thinned": False}


@pytest.mark.parametrize(
    ("scale", "value"),
    [("log", 50.0), ("log", 1e-9), ("log", 0.0), ("log", np.inf), ("share", 1.5), ("linear", -4.0), ("linear", np.inf)],
)
def test_one_step_in_a_hundred_is_seen(scale, value):
    found = thinned(series(at37=value), scale=scale)[:, 0]
    assert len(found) == 10
    assert found[3] == np.float32(value)
    assert np.delete(found, 3).tolist() == [1.0] * 9


def test_what_is_not_finite_is_shown_before_all_and_a_gap_after_all():
    assert np.isinf(thinned(series(at31=0.0, at32=np.inf, at33=1e9))[3, 0])
    assert thinned(series(np.nan, at34=2.0))[3, 0] == 2.0
    assert np.isnan(thinned(series(np.nan, at34=2.0))[4, 0])


def test_a_collapse_among_spikes_is_judged_by_the_sites_own_median():
    values = np.stack([series(1e-6, at5=1e-3), series(100.0, at5=1e-3)], axis=1)
    assert thinned(values)[0].tolist() == [np.float32(1e-3), np.float32(1e-3)]


def test_stretches_are_of_one_length_whatever_was_sampled():
    steps = np.array([*range(100), 500, 900])
    columns = columns_of(steps, 10, 0, 999)
    assert columns.facts == {"first": [0, 500, 900], "last": [99, 500, 900], "count": [100, 1, 1], "thinned": True}


def test_numbers_of_steps_that_no_browser_counts_do_no_harm():
    steps = np.array([0, 1, 2**52, 2**53 - 1])
    assert columns_of(steps, 2, 0, 2**53 - 1).facts["first"] == [0, 2**52]


def test_a_series_keeps_both_ends_of_each_stretch():
    values = np.array([1.0, 5.0, 2.0, np.nan, np.inf, 3.0, np.inf, np.inf], dtype=np.float32)
    low, high = extremes(values, columns_of(np.arange(8), 4, 0, 7))
    np.testing.assert_array_equal(low, [1.0, 2.0, 3.0, np.inf])
    np.testing.assert_array_equal(high, [5.0, 2.0, np.inf, np.inf])


numbers = st.floats(width=32) | st.sampled_from([0.0, float("inf"), float("nan")])


@given(
    st.lists(st.tuples(st.integers(0, 500), st.tuples(numbers, numbers)), min_size=1, unique_by=lambda row: row[0]),
    st.integers(1, 40),
    st.sampled_from(["log", "share", "linear"]),
)
def test_every_column_shows_one_of_its_own_numbers(rows, most, scale):
    rows = sorted(rows)
    steps = np.array([step for step, _ in rows])
    table = np.array([values for _, values in rows], dtype=np.float32)
    columns = columns_of(steps, most, int(steps[0]), int(steps[-1]))
    shown = most_telling(table, columns, scale=scale, usual=usual_of(table))
    assert len(shown) == len(columns.starts) <= most
    for number, (start, end) in enumerate(zip(columns.starts, columns.ends, strict=True)):
        for site in range(2):
            stretch, found = table[start:end, site], shown[number, site]
            assert any(found == value or (np.isnan(found) and np.isnan(value)) for value in stretch)
            assert np.isinf(found) == np.isinf(stretch).any()
            assert np.isnan(found) == np.isnan(stretch).all()
    assert columns.facts["count"] == [
        int(((steps >= a) & (steps <= b)).sum()) for a, b in zip(columns.facts["first"], columns.facts["last"], strict=True)
    ]
