"""Which steps are sampled: the same on all ranks, from what all have heard."""

from __future__ import annotations

from gradscope.capture.ranks.timetable import LEAD
from gradscope.capture.ranks.timetable import Timetable
from gradscope.capture.ranks.timetable import affordable
from gradscope.capture.ranks.timetable import is_meeting

FIRST = frozenset((0, 1, 5))


def run(steps: int, said: dict[int, tuple[int, bool]], *, early: bool) -> list[int]:
    """The sampled steps of a rank that hears what exchanges say at once, or as late as it may."""
    waiting: list[int] = []

    def hear(upto: int) -> None:
        while waiting and waiting[0] <= upto:
            step = waiting.pop(0)
            every, alarm = said.get(step, (0, False))
            table.learn(step, every, alarm=alarm)

    table = Timetable(FIRST, dense=3, alarms=1, catch_up=hear)
    sampled = []
    for step in range(steps):
        on = table.is_sampled(step)
        sampled += [step] if on else []
        if is_meeting(step, sampled=on):
            waiting.append(step)
        if early:
            hear(step)
    return sampled


def test_first_steps_then_the_cadence_from_the_lead_on() -> None:
    found = run(40, {5: (7, False)}, early=True)
    assert found == [0, 1, 5, *(step for step in range(5 + LEAD, 40) if step % 7 == 0)]


def test_a_rank_that_hears_late_samples_the_same() -> None:
    said = {5: (4, False), 16: (9, True), 27: (2, False), 36: (31, False), 62: (5, True)}
    assert run(300, said, early=True) == run(300, said, early=False)


def test_an_alarm_is_followed_by_a_few_in_a_row_and_the_next_by_none() -> None:
    found = run(100, {5: (0, True), 63: (0, True)}, early=True)
    assert found == [0, 1, 5, 5 + LEAD, 6 + LEAD, 7 + LEAD]


def test_quiet_steps_end_before_anything_that_is_not_known() -> None:
    table = Timetable(FIRST, dense=3, alarms=1, catch_up=lambda _: None)
    for step in range(6):
        table.is_sampled(step)
    assert table.quiet(6, 16) == LEAD - 6  # step 0's exchange was not heard
    for step in (0, 1, 5):
        table.learn(step, 20 if step == 5 else 0, alarm=False)
    assert table.quiet(6, 16) == 14
    assert table.quiet(20, 16) == 0


def test_a_meeting_that_has_passed_unheard_ends_quiet_steps_too() -> None:
    """Else one rank would sleep past the step before which another waits for it."""
    table = Timetable(frozenset((0,)), dense=3, alarms=1, catch_up=lambda _: None)
    table.is_sampled(0)
    table.learn(0, 0, alarm=False)
    assert table.quiet(60, 16) == 63 + LEAD - 60
    assert table.quiet(66, 16) == 63 + LEAD - 66
    table.learn(63, 0, alarm=False)
    assert table.quiet(66, 16) == 16


def test_where_nobody_answers_any_more_nobody_waits() -> None:
    asked: list[int] = []
    table = Timetable(FIRST, dense=3, alarms=1, catch_up=asked.append)
    assert [step for step in range(30) if table.is_sampled(step)] == [0, 1, 5]
    assert asked == [0, 1, 5]


def test_what_can_be_afforded() -> None:
    assert affordable(0.01, 0.02, 0.1) == 5
    assert affordable(0.0, 0.02, 0.1) == 0
    assert affordable(1e-9, 0.02, 0.1) == 1
