"""What can be told of a blow-up: steps that no frame was taken of, rates that rose, losses that climbed or leapt."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradscope.blowup import climbed
from gradscope.blowup import compounded
from gradscope.blowup import leaps
from gradscope.blowup import lost_at
from gradscope.blowup import reaches
from gradscope.blowup import reckoned_sizes
from gradscope.blowup import risen_before
from gradscope.depth import step_sizes
from gradscope.records import OptimizerInfo
from gradscope.timeline import Timeline
from tests.timelines import CLASSES
from tests.timelines import SMALL
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import mlp
from tests.timelines import poisoned

DENSE = range(12)


def sgd(momentum: float) -> OptimizerInfo:
    return OptimizerInfo("SGD", 0.1, tuple(p.name for p in SMALL.parameters), 0, {"momentum": momentum})


def test_steps_compound_over_all_layers_as_they_are() -> None:
    deep = mlp(16, *[32] * 5, CLASSES)
    ratios = np.array([0.1, 0.2, 0.0, 0.05, 0.1, 0.3])
    whole = compounded(build(deep, columns={"update.ratio": lambda step: ratios}, steps=DENSE))
    assert whole[0] == pytest.approx(np.prod(1 + ratios) - 1)
    assert np.isnan(compounded(build(deep, wiring=classification(deep, norms=3)))).all()
    assert np.isnan(compounded(build())).all()


def test_a_step_reaches_by_its_median_or_by_all_layers() -> None:
    sizes, together = np.array([0.1, 0.05, 0.05, 0.05]), np.array([math.nan, math.nan, 0.47, 0.46])
    assert reaches(sizes, together, 0.1).tolist() == [True, False, True, False]  # 1.1^4 = 1.464


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_are_reckoned_as_momentum_makes_them(momentum: float) -> None:
    norms = 1.0 + 0.5 * np.sin(np.arange(40.0))
    rates = np.where(np.arange(40) < 30, 0.1, 0.2)
    pushes, push = [], 0.0
    for norm in norms:
        push = momentum * push + norm
        pushes.append(push)
    true = 0.01 * rates * np.array(pushes)
    timeline = build(
        columns={"update.ratio": lambda step: true[step]},
        pulses={"gradient_norm": lambda step: norms[step], "learning_rate": lambda step: rates[step]},
        steps=DENSE,
        total=40,
        optimizers=[sgd(momentum)],
    )
    assert reckoned_sizes(timeline) == pytest.approx(true, rel=1e-5)


def test_what_is_not_known_is_not_reckoned() -> None:
    def last(norm: Any, **more: Any) -> float:
        return float(reckoned_sizes(build(pulses={"gradient_norm": norm}, steps=DENSE, total=60, **more))[-1])

    assert math.isfinite(last(1.0))
    assert math.isnan(last(lambda step: math.nan if step == 59 else 1.0))
    assert math.isfinite(last(lambda step: math.nan if step == 50 else 1.0))
    gap = lambda step: math.nan if step == 50 else 1.0  # noqa: E731
    assert math.isnan(last(gap, optimizers=[sgd(0.9)]))  # the last 20 gradients count, of which one is not known
    assert math.isfinite(last(gap, optimizers=[sgd(0.5)]))
    assert math.isnan(last(1.0, optimizers=[OptimizerInfo("Adam", 0.1, ("layers.0.weight",), 0, {"eps": 1e-8})]))
    assert math.isnan(last(1.0, optimizers=[sgd(0.0), sgd(0.0)]))


def rising(loss: Any, norm: Any = math.nan) -> bool:
    return climbed(build(pulses={"loss": loss, "gradient_norm": norm}), 80)


def test_a_climb_is_a_rise_in_the_last_three_losses_or_in_two_norms() -> None:
    assert rising(lambda step: 1.6 if step == 77 else 1.0)
    assert not rising(lambda step: 1.6 if step in (76, 80) else 1.0)
    assert not rising(lambda step: 1.4 if step == 79 else 1.0)
    assert not rising(lambda step: 1.0 if step < 30 else (0.09 if step == 79 else 0.01))  # any batch may do that
    assert rising(1.0, lambda step: 1.6 if step in (77, 79) else 1.0)
    assert not rising(1.0, lambda step: 1.6 if step == 79 else 1.0)


def risen(rate: Any) -> bool:
    climbing = lambda step: 1.0 if step < 78 else 5.0  # noqa: E731
    timeline = build(pulses={"learning_rate": rate, "loss": climbing})
    return risen_before(timeline, step_sizes(timeline), 80) is not None


def test_a_rate_has_to_rise_at_once_and_soon_before() -> None:
    assert risen(lambda step: 0.1 if step < 60 else 0.31)
    assert not risen(lambda step: 0.1 if step < 60 else 0.29)
    assert not risen(lambda step: 0.1 if step < 49 else 0.31)
    assert not risen(lambda step: 0.1 * 1.1**step)


def test_a_training_is_lost_where_it_first_rose_after_it_had_last_worked() -> None:
    def lost(loss: Any) -> int | None:
        return lost_at(build(pulses={"loss": loss}), worked=0.5, ceiling=4.0)

    assert lost(lambda step: 0.1 if step < 50 else 9.0) == 50
    assert lost(lambda step: 0.1 if step < 50 else {60: 9.0, 80: 99.0}.get(step, 2.0)) == 60
    assert lost(lambda step: 0.1 if step < 50 or 70 < step < 80 else 9.0) == 80
    assert lost(2.0) is lost(lambda step: 9.0 if step > 20 else 2.0) is None


def test_broken_and_empty_runs_tell_nothing() -> None:
    for timeline in (empty(), poisoned(math.nan), poisoned(math.inf), poisoned(0.0), build()):
        assert _tells_nothing(timeline)


def _tells_nothing(timeline: Timeline) -> bool:
    sizes = step_sizes(timeline)
    return not len(leaps(timeline)) and not climbed(timeline, 50) and risen_before(timeline, sizes, 50) is None
