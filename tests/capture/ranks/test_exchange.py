"""Ranks that exchange what they have seen, each at its own pace."""

from __future__ import annotations

import random

import pytest

from gradscope.capture.ranks.exchange import Exchanges
from gradscope.capture.ranks.link import Link
from gradscope.records import PULSE_FIELDS
from gradscope.records import Schema
from gradscope.records import Site
from tests.capture.ranks.fabric import Ear
from tests.capture.ranks.fabric import Fabric
from tests.capture.ranks.fabric import frame
from tests.capture.ranks.fabric import row

LOSS, NORM = PULSE_FIELDS.index("loss"), PULSE_FIELDS.index("gradient_norm")


def members(ranks: int, *, cadence: int = 0) -> tuple[list[Exchanges], list[Ear], Fabric]:
    fabric = Fabric(ranks)
    ears = [Ear(cadence=cadence if place == 0 else 99) for place in range(ranks)]
    links: list[Link] = [fabric.link() for _ in range(ranks)]
    return [Exchanges(links[place], ears[place], place=place, ranks=ranks) for place in range(ranks)], ears, fabric


def see(member: Exchanges, step: int, loss: float, *, sampled: bool = True, rms: float = 1.0) -> None:
    if sampled:
        member.frame(frame(step, rms=rms))
    member.pulse(row(step, loss, sampled=sampled))


@pytest.mark.parametrize("ranks", [2, 8])
def test_the_first_rank_alone_hears_the_mean_loss_of_every_step(ranks: int) -> None:
    made, ears, _ = members(ranks)
    for step in range(130):
        for place, member in enumerate(made):
            see(member, step, float(step + place), sampled=step % 10 == 0)
            member.advance()
    for member in made:
        member.advance()
    told = ears[0]
    assert [one.step for one in told.frames] == list(range(0, 130, 10))
    expected = [step + (ranks - 1) / 2 for step in range(128)]  # the last exchange was after step 127
    assert [found[LOSS] for found in told.rows] == pytest.approx(expected)
    assert [found[NORM] for found in told.rows] == pytest.approx([1.0] * 128)
    assert not any(ear.rows or ear.frames for ear in ears[1:])


def test_ranks_may_be_far_from_one_another() -> None:
    """Whoever comes first goes on; nothing waits, and all comes out in the order of the steps."""
    rng = random.Random(0)
    made, ears, _ = members(3)
    at = [0, 0, 0]
    while min(at) < 200:
        place = rng.choices(range(3), weights=[10, 1, 3])[0]
        if at[place] < 200:
            see(made[place], at[place], 1.0, sampled=at[place] % 3 == 0)
            at[place] += 1
        made[place].advance()
    for _ in range(300):
        for member in made:
            member.advance()
    assert [one.step for one in ears[0].frames] == list(range(0, 200, 3))


def test_frames_that_arrive_after_their_pulse_are_waited_for() -> None:
    made, ears, _ = members(2)
    for place, member in enumerate(made):
        member.pulse(row(0, float(place)))
        member.advance()
    assert not ears[0].rows
    for member in made:
        member.frame(frame(0))
        member.advance()
    for _ in range(3):
        for member in made:
            member.advance()
    assert len(ears[0].frames) == 1


def test_all_hear_the_first_rank_s_cadence_and_anybody_s_alarm() -> None:
    made, ears, _ = members(3, cadence=7)
    ears[2].alarmed = True
    for member in made:
        see(member, 0, 1.0)
        member.advance()
    for _ in range(2):
        for member in made:
            member.advance()
    assert [ear.heard for ear in ears] == [[(0, 7, True)]] * 3


def test_ranks_at_different_steps_part_and_say_so() -> None:
    made, ears, _ = members(2)
    see(made[0], 4, 1.0)
    see(made[1], 5, 1.0)
    for _ in range(3):
        for member in made:
            member.advance()
    assert all("one at step 4 where another was at step 5" in ear.why[0] for ear in ears)
    assert ears[0].left == 1  # what it has is not lost


def test_ranks_that_see_different_sites_leave_the_frame_to_the_first() -> None:
    made, ears, _ = members(2)
    other = Schema((Site("x"),), (Site("a"),), (Site("a.weight"), Site("b.weight")), (Site("loss"),), ())
    made[0].frame(frame(0, rms=3.0))
    made[1].frame(frame(0, rms=5.0, schema=other))
    for member in made:
        member.pulse(row(0, 1.0))
    for _ in range(4):
        for member in made:
            member.advance()
    assert ears[0].frames[0].columns["activation.rms"].tolist() == [3.0, 3.0]
    assert not ears[0].why


def test_a_rank_that_is_gone_ends_it_and_what_is_there_is_kept() -> None:
    made, ears, _ = members(2)
    see(made[0], 0, 1.0)
    made[0].advance()
    made[1].leave()
    made[0].advance()
    assert "closed by peer" in ears[0].why[0]
    assert ears[0].left == 1
    made[0].advance()
    assert len(ears[0].why) == 1


def test_the_end_brings_what_no_exchange_has_brought() -> None:
    (alone,), (ear,), _ = members(1)
    for step in range(5):
        see(alone, step, 2.0, sampled=False)
    alone.advance()
    assert not ear.rows
    alone.finish(1.0)
    assert [found[LOSS] for found in ear.rows] == [2.0] * 5
    assert not alone.open


def test_one_that_ends_before_the_others_is_no_failure() -> None:
    made, ears, _ = members(2)
    see(made[0], 0, 1.0)
    made[0].advance()
    made[1].finish(0.0)  # has made no step
    made[0].advance()
    assert ears[0].why and ears[0].quietly
