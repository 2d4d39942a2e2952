from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from gradscope.memory.thinning import APPEARED
from gradscope.memory.thinning import FEWEST_PLACES
from gradscope.memory.thinning import Marks
from gradscope.memory.thinning import highest
from gradscope.memory.thinning import lowest
from gradscope.memory.thinning import outgrowing
from gradscope.memory.thinning import ranked
from gradscope.memory.thinning import thinned

NOTHING = np.zeros(0, dtype=np.intp)


def marks(rising, *, extremes=NOTHING, worth=None, wanted=(), fixed=NOTHING):
    worth = np.zeros(len(rising)) if worth is None else worth
    return Marks(rising, extremes, worth, np.array(wanted, dtype=np.int64), fixed)


def flat(count):
    return np.ones((count, 1))


def runs(seed, count):
    """Steps that rise by chance, with numbers of any sort."""
    rng = np.random.default_rng(seed)
    table = np.exp(rng.normal(scale=rng.choice([0.1, 3]), size=(count, 2)))
    odd = rng.random(table.shape) < rng.choice([0, 0.3, 1])
    table[odd] = rng.choice([0.0, -1.0, np.nan, np.inf], size=int(odd.sum()))
    return np.cumsum(rng.integers(1, rng.choice([2, 1000]), size=count)), table, rng


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(FEWEST_PLACES, 200))
def test_never_more_than_there_are_places_and_the_ends_always(seed, count, places):
    steps, table, rng = runs(seed, count)
    marked = marks(
        table,
        extremes=rng.integers(0, count, size=rng.integers(1, 300)),
        worth=rng.choice([steps % 8 == 0, steps]),
        wanted=rng.integers(0, 2 * steps[-1], size=rng.integers(0, 300)),
        fixed=rng.integers(0, count, size=rng.integers(1, 300)),
    )
    kept = thinned(steps, marked, places=places)
    assert kept.shape == steps.shape
    if count <= places:
        assert kept.all()
        return
    assert places / 3 < np.count_nonzero(kept) <= places
    assert kept[: places // 8].all() and kept[-(places // 4) :].all()
    assert kept[marked.extremes[0]] and kept[marked.fixed[0]]


@pytest.mark.parametrize("places", [64, 512])
def test_what_is_left_of_a_long_even_run_is_spread_over_all_of_it(places):
    steps = np.arange(20_000)
    kept = steps[thinned(steps, marks(flat(len(steps))), places=places)]
    middle = kept[(kept >= places) & (kept < 20_000 - places)]
    assert np.diff(middle).max() < 4 * 20_000 / (places / 8)
    assert len(kept) > places / 2


def test_what_stays_falls_in_with_no_period():
    steps = np.arange(16_384)
    kept = steps[thinned(steps, marks(flat(len(steps))), places=1024)]
    middle = kept[(kept > 1000) & (kept < 16_000)]
    for period in (2, 3, 8, 64, 100):
        phases = np.bincount(middle % period, minlength=period)
        assert phases.max() < 6 * len(middle) / period


def test_what_appears_or_grows_at_once_stays_with_its_neighbours():
    table = np.ones((4000, 2))
    table[2000:, 0] = 30.0  # for good
    table[1000, 1] = 5.0  # for a step
    kept = np.flatnonzero(thinned(np.arange(4000), marks(table), places=96))
    for step in (2000, 1000):
        assert {step - 2, step - 1, step, step + 1} <= set(kept.tolist())


def test_around_wanted_steps_neighbours_stay_the_first_of_them_first():
    kept = np.flatnonzero(thinned(np.arange(4000), marks(flat(4000), wanted=range(1000, 3000, 10)), places=96))
    assert {998, 999, 1000, 1001, 1008, 1009, 1010, 1011} <= set(kept.tolist())


def test_of_each_stretch_the_step_with_most_captured_stays():
    steps = np.arange(4096)
    worth = (steps % 16 == 5).astype(int)
    kept = thinned(steps, marks(flat(4096), worth=worth), places=256)
    middle = kept & (steps > 300) & (steps < 3700)
    assert np.count_nonzero(middle & (worth > 0)) > 0.4 * np.count_nonzero(middle)


def test_steps_of_long_stretches_are_those_of_shorter_ones():
    steps = np.arange(10_000)
    once = steps[thinned(steps, marks(flat(len(steps))), places=256)]
    first = steps[thinned(steps, marks(flat(len(steps))), places=1024)]
    again = first[thinned(first, marks(flat(len(first))), places=256)]
    middle = slice(np.searchsorted(once, 300), np.searchsorted(once, 9500))
    assert set(once[middle].tolist()) <= {*again.tolist(), *first.tolist()}


def test_outgrowing_counts_e_folds_over_those_before():
    nan, inf = np.nan, np.inf
    scores = outgrowing(np.array([[1, nan, 0], [3, 7, 0], [5, 7, 0], [2, 7, 0], [1, 7, 4], [1, 7, inf], [1, 7, inf]]))
    expected = np.zeros((7, 3))
    expected[1, 0], expected[4:6, 2] = 2 * np.log(3), 2 * APPEARED
    np.testing.assert_allclose(scores, expected)
    np.testing.assert_array_equal(ranked(scores), [1, 4, 5])
    assert outgrowing(np.zeros((0, 3))).shape == (0, 3)
    assert ranked(np.zeros((0, 3))).shape == (0,)


def test_what_rises_from_where_it_had_settled_stands_out_below_its_start():
    settled = np.array([100.0] + [1.0] * 50 + [20.0] * 10)[:, None]
    np.testing.assert_array_equal(ranked(outgrowing(settled)), [51])


def test_what_comes_and_goes_all_the_time_takes_no_place_from_what_came_once():
    table = np.zeros((500, 2))
    table[20::40, 0] = 1.0  # a validation, say
    table[450, 1] = 0.5
    assert 450 in ranked(outgrowing(table))[:2]


def test_extremes_are_the_first_of_their_sort_and_nothing_is_found_in_nothing():
    table = np.array([[1.0, np.nan, 5.0], [3.0, np.nan, np.inf], [3.0, np.nan, 2.0]])
    np.testing.assert_array_equal(highest(table), [1, 1])
    np.testing.assert_array_equal(lowest(table), [0, 2])
    assert len(highest(np.zeros((0, 3)))) == 0
