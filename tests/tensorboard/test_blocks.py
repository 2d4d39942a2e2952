"""Which records stand where a run went back to an earlier step, and which are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.data.provider import TensorDatum

from gradscope.tensorboard.blocks import Anchor
from gradscope.tensorboard.blocks import Block
from gradscope.tensorboard.blocks import block_of
from gradscope.tensorboard.blocks import surviving


def block(steps, *, wall=0.0):
    """Records of these steps, one a second from ``wall`` on; each holds its number."""
    steps = np.array(steps, dtype=np.int64)
    return Block(steps, wall + np.arange(len(steps)), np.arange(len(steps), dtype=np.float32)[:, None], len(steps))


@pytest.mark.parametrize(
    ("steps", "standing"),
    [
        ([], []),
        ([0, 1, 2], [0, 1, 2]),
        ([0, 1, 2, 1, 2, 3], [0, 3, 4, 5]),
        ([5, 5, 5], [2]),
        ([9, 8, 7, 0], [3]),
        ([0, 10, 20, 15], [0, 1, 3]),
    ],
)
def test_a_record_replaces_all_from_its_step_on(steps, standing):
    assert np.flatnonzero(surviving(np.array(steps, dtype=np.int64))).tolist() == standing


def test_rows_of_one_step_may_stand_side_by_side():
    assert surviving(np.array([0, 1, 1, 2]), tied=True).all()
    assert surviving(np.array([0, 1, 2, 1]), tied=True).tolist() == [True, True, False, True]


def test_a_restart_with_other_sites_replaces_what_came_after_its_first_step():
    first, second = block([0, 10, 20, 30]), block([15, 25], wall=100)
    anchor = Anchor.of([first, second])
    assert anchor.steps.tolist() == [0, 10, 15, 25]
    assert anchor.parts.tolist() == [0, 0, 1, 1]
    assert anchor.standing(first).steps.tolist() == [0, 10]
    assert anchor.standing(second).steps.tolist() == [15, 25]


def test_a_tag_that_the_new_part_lacks_loses_what_was_replaced():
    anchor = Anchor.of([block([0, 10, 20, 30]), block([15, 25], wall=100)])
    assert anchor.standing(block([0, 20])).steps.tolist() == [0]


def test_both_loaders_ways_of_keeping_come_to_the_same():
    everything = Anchor.of([block([0, 1, 2, 3, 1, 2])])
    walls = [0.0, 4.0, 5.0]
    preempted = Anchor.of([Block(np.array([0, 1, 2]), np.array(walls), np.zeros((3, 1)), 3)])
    assert everything.steps.tolist() == preempted.steps.tolist()
    assert everything.walls.tolist() == preempted.walls.tolist() == walls


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12), st.booleans()), max_size=40))
def test_what_stands_is_what_was_not_written_anew_whichever_loader_kept_it(events):
    """``events``: part, step, and whether another tag has a record of it too."""
    standing = []
    for wall, event in enumerate(events):
        standing = [(before, kept) for before, kept in standing if kept[1] < event[1]] + [(wall, event)]
    for keeps_all in (True, False):
        anchor = Anchor.of([held(events, part, keeps_all=keeps_all) for part in range(3)])
        assert anchor.steps.tolist() == [step for _, (_, step, _) in standing]
        assert anchor.parts.tolist() == [part for _, (part, _, _) in standing]
        for part in range(3):
            found = anchor.standing(held(events, part, keeps_all=keeps_all, also=True))
            assert found.walls.tolist() == [wall for wall, (of, _, also) in standing if of == part and also]


def held(events, part, *, keeps_all, also=False):
    """The records of a part's anchor, or of its other tag, as a loader holds them."""
    chosen = [(wall, step) for wall, (of, step, has) in enumerate(events) if of == part and (has or not also)]
    steps, walls = np.array([step for _, step in chosen], dtype=np.int64), np.array([float(wall) for wall, _ in chosen])
    kept = np.ones(len(steps), dtype=bool) if keeps_all else surviving(steps)
    return Block(steps[kept], walls[kept], np.zeros((int(kept.sum()), 1)), len(chosen))


def test_records_that_are_not_what_the_tag_says_are_left_out_and_counted():
    sound = np.array([1.0, 2.0], dtype=np.float32)
    datums = [
        TensorDatum(step=0, wall_time=0.0, numpy=sound),
        TensorDatum(step=1, wall_time=1.0, numpy=sound.astype(np.float64)),
        TensorDatum(step=2, wall_time=2.0, numpy=sound[:1]),
        TensorDatum(step=-3, wall_time=3.0, numpy=sound),
        TensorDatum(step=2**60, wall_time=4.0, numpy=sound),
    ]
    found = block_of("a/tag", datums, "<f4", (2,))
    assert (found.steps.tolist(), found.table.tolist(), found.records) == ([0], [[1.0, 2.0]], 5)
    assert found.fault == "a/tag: 4 of 5 records are not what their tag says and were left out."
