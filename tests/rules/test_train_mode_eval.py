"""When a validation counts as one in training mode."""

from __future__ import annotations

import math
from typing import Any

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.train_mode_eval import TrainModeEval
from gradscope.timeline import Timeline
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import module
from tests.timelines import norm
from tests.timelines import poisoned

NORMED = linear("a", 16, 32, norm_follows=True) + norm("n", 32, kind="BatchNorm1d") + linear("b", 32, 4)
DROPPED = linear("a", 16, 32) + module("d", "Dropout", "dropout") + linear("b", 32, 4)


def hits(timeline: Timeline) -> list[Hit]:
    return list(TrainModeEval().check(timeline))


def run(idle: Any = lambda step: 8.0 * (step % 25 == 0), *, net: Net = NORMED, **more: Any) -> list[Hit]:
    return hits(build(net, columns={"step.idle_training_forwards": idle}, **({"steps": range(100)} | more)))


def test_passes_at_the_end_of_each_epoch_are_a_validation() -> None:
    (hit,) = run()
    assert hit.severity is Severity.WARNING  # though the training works
    assert hit.modules == ("n",)
    assert (hit.first_step, hit.last_step) == (25, 75)
    assert hit.evidence["passes"] == 8.0
    assert "model.eval()" in (hit.remedy.code or "")


def test_it_takes_two_of_them() -> None:
    assert not run(lambda step: 8.0 * (step == 25))
    assert run(lambda step: 8.0 * (step in (25, 50)))


def test_a_pass_before_the_first_step_is_a_test_of_shapes() -> None:
    assert not run(lambda step: float(step in (0, 25)))


def test_passes_before_most_steps_belong_to_the_step() -> None:
    assert not run(1.0)
    assert not run(lambda step: float(step % 5 != 0))


def test_dropout_alone_is_for_information() -> None:
    (hit,) = run(net=DROPPED)
    assert (hit.severity, hit.modules) == (Severity.INFO, ("d",))


def test_players_that_take_turns_are_left_alone() -> None:
    assert not run(shared_process=True)


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    healthy = (build(NORMED), build(), empty(), build(steps=(), total=50))
    for timeline in (*healthy, poisoned(math.nan, net=NORMED), poisoned(math.inf, net=NORMED)):
        assert not hits(timeline)
