from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from gradscope.memory.frames import LEAST_FRAMES
from gradscope.memory.history import History
from gradscope.memory.layout import Layout
from gradscope.memory.pulses import fewer_pulses
from gradscope.records import PULSE_FIELDS
from gradscope.trends import spans_of

SECONDS, OWN = PULSE_FIELDS.index("seconds"), PULSE_FIELDS.index("own_seconds")
LAYOUT = Layout("net", ("activation.rms", "step.forwards", "update.ratio"), (3, 0, 2))
SMALL = {"most_frames": 64, "most_pulses": 256}


def numbers(step, *, rms=1.0):
    return np.array([rms, rms / 2, np.nan, 1e-3, step], dtype=np.float32)


def pulses(steps, *, loss=1.0):
    rows = np.zeros((len(steps), len(PULSE_FIELDS)))
    rows[:, 0], rows[:, 1], rows[:, 2] = steps, loss, 1.0
    rows[:, PULSE_FIELDS.index("backwards")] = 1
    rows[:, SECONDS], rows[:, OWN] = 0.01 * (1 + np.arange(len(steps)) % 7), 0.001
    return rows


def fed(steps, *, every=1, chunk=1, **options):
    """A history of ``steps`` steps, of which each ``every``-th was sampled, and whose pulses came in chunks."""
    history = History(**(SMALL | options))
    history.begin()
    for step in range(steps):
        if step % every == 0:
            history.frame(step, LAYOUT, numbers(step))
        if (step + 1) % chunk == 0:
            history.pulses(pulses(range(step + 1 - chunk, step + 1)))
    return history


def steps_of(history):
    return [frame.step for frame in history.held_frames()]


def test_a_short_run_is_held_whole():
    history = fed(64)
    assert steps_of(history) == list(range(64))
    np.testing.assert_array_equal(history.held_pulses(), np.concatenate([pulses([step]) for step in range(64)]))
    for frame in history.held_frames():
        np.testing.assert_array_equal(frame.columns["update.ratio"], numbers(frame.step)[3:])
        assert dict(frame.columns).keys() == {"activation.rms", "step.forwards", "update.ratio"}
        assert len(frame.columns["step.forwards"]) == 0


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 9))
def test_however_long_no_more_than_a_number_and_always_both_ends(steps, every):
    history = fed(steps, every=every)
    held = steps_of(history)
    sampled = list(range(0, steps, every))
    assert len(held) <= 64 and len(history.held_pulses()) <= 256
    assert held == sorted(set(held))
    assert held[:4] == sampled[:4] and held[-8:] == sampled[-8:]
    assert history.sampled == len(sampled)
    for frame in history.held_frames():
        np.testing.assert_array_equal(frame.columns.numbers, numbers(frame.step))
    rows = history.held_pulses()[:, 0]
    assert rows[0] == 0 and rows[-1] == steps - 1 and (np.diff(rows) > 0).all()


def test_the_pulses_of_the_frames_that_are_held_stay():
    history = fed(3000, every=10, most_pulses=512)
    recent = [step for step in steps_of(history) if step < 2000]
    assert set(recent) <= set(history.held_pulses()[:, 0].tolist())


def test_chunks_make_no_difference_where_the_order_is_the_same():
    one, other = History(**SMALL), History(**SMALL)
    rows = pulses(range(3000), loss=np.random.default_rng(0).random(3000))
    for start in range(0, 3000, 50):
        for step in range(start, start + 50):
            for history in (one, other):
                history.frame(step, LAYOUT, numbers(step))
        one.pulses(rows[start : start + 50])
        for part in np.array_split(rows[start : start + 50], 7):
            other.pulses(part)
    assert steps_of(one) == steps_of(other)
    np.testing.assert_array_equal(one.held_pulses(), other.held_pulses())


def test_seconds_of_pulses_that_are_let_go_are_counted_in_those_that_stay():
    rows = pulses(range(10_000))
    fewer = fewer_pulses(rows, 300)
    assert len(fewer) <= 300
    for field in (SECONDS, OWN):
        assert (fewer[:, field] * spans_of(fewer[:, 0].astype(int))).sum() == pytest.approx(rows[:, field].sum())
    history = fed(5000)
    held = history.held_pulses()
    total = (held[:, OWN] * spans_of(held[:, 0].astype(int))).sum()
    assert total == pytest.approx(5.0)


def test_what_stood_out_long_ago_is_still_there():
    history = History(most_frames=256, most_pulses=1024)
    for step in range(5000):
        history.frame(step, LAYOUT, numbers(step, rms=100.0 if step == 1234 else 10.0 if step >= 3000 else 1.0))
        history.pulses(pulses([step], loss=50.0 if step == 2222 else 1.0))
    held = steps_of(history)
    assert {1233, 1234, 1235, 2221, 2222, 2223, 2999, 3000, 3001} <= set(held)
    assert {2221, 2222} <= set(history.held_pulses()[:, 0].tolist())


def test_a_frame_stands_out_where_it_shows_what_none_before_it_did():
    history = fed(10)
    assert not history.stands_out(LAYOUT, numbers(5))
    assert history.stands_out(LAYOUT, numbers(5, rms=3.0))
    assert history.stands_out(LAYOUT, numbers(5, rms=np.inf))
    assert not history.stands_out(LAYOUT, numbers(5, rms=np.nan))


def test_frames_of_large_models_are_fewer():
    layout = Layout("large", ("activation.rms",), (1000,))
    history = History(most_frames=2048, room=0)
    for step in range(500):
        history.frame(step, layout, np.full(1000, step, dtype=np.float32))
    assert LEAST_FRAMES // 2 <= len(steps_of(history)) <= LEAST_FRAMES
    roomy = History(most_frames=2048, room=200 * 4000)
    for step in range(500):
        roomy.frame(step, layout, np.full(1000, step, dtype=np.float32))
    assert 100 <= len(steps_of(roomy)) <= 200
    assert all((frame.columns["activation.rms"] == frame.step).all() for frame in roomy.held_frames())


def test_a_record_that_goes_back_replaces_what_came_from_there_on():
    history = fed(3000)
    history.begin()
    for step in range(1000, 1500):
        history.frame(step, LAYOUT, numbers(-step))
        history.pulses(pulses([step], loss=2.0))
    held = list(history.held_frames())
    assert [frame.step for frame in held] == sorted({frame.step for frame in held})
    assert held[-1].step == 1499 and all((frame.columns["update.ratio"][1] < 0) == (frame.step >= 1000) for frame in held)
    rows = history.held_pulses()
    assert rows[-1, 0] == 1499 and (np.diff(rows[:, 0]) > 0).all()
    np.testing.assert_array_equal(rows[:, 1] == 2.0, rows[:, 0] >= 1000)
    assert history.sampled < 1600


def test_frames_of_several_forms_keep_their_own_numbers():
    other = Layout("net", ("activation.rms", "loss.weight"), (3, 1))
    history = History(**SMALL)
    for step in range(1000):
        layout = other if step % 5 == 0 else LAYOUT
        history.frame(step, layout, np.full(layout.width, step, dtype=np.float32))
    for frame in history.held_frames():
        assert frame.columns.layout is (other if frame.step % 5 == 0 else LAYOUT)
        assert (frame.columns["activation.rms"] == frame.step).all()
