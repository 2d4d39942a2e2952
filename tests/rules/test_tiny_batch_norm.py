"""When a batch norm counts as one over too few values."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.tiny_batch_norm import TinyBatchNorm
from gradscope.timeline import Timeline
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import norm
from tests.timelines import poisoned

STUCK = {"loss": lambda step: 1.4 + 0.01 * math.sin(7 * step)}
HAMPERED = {"loss": lambda step: 0.6 + 0.8 * math.exp(-step / 20)}  # of a constant prediction's 1.39


def net(samples: int | None, *, kind: str = "BatchNorm2d") -> Net:
    made = linear("a", 16, 32, norm_follows=True) + norm("n", 32, kind=kind) + linear("b", 32, 4)
    return Net(tuple(replace(m, samples=samples) if m.path == "n" else m for m in made.modules), made.parameters)


def hits(timeline: Timeline) -> list[Hit]:
    return list(TinyBatchNorm().check(timeline))


def run(samples: int | None = 2, *, kind: str = "BatchNorm2d", pulses: Any = HAMPERED, **more: Any) -> list[Hit]:
    return hits(build(net(samples, kind=kind), pulses=pulses, **more))


def test_statistics_over_two_values_are_named() -> None:
    (hit,) = run()
    assert hit.modules == ("n",)
    assert hit.severity is Severity.WARNING
    assert hit.evidence["values"] == 2
    assert "71 %" in hit.message  # 1 / sqrt(2)


def test_boundary_of_the_count() -> None:
    assert run(15)
    assert not run(16)
    assert not run(None)


def test_more_than_four_values_take_a_training_that_fails() -> None:
    assert run(4)[0].severity is Severity.WARNING
    assert run(5)[0].severity is Severity.INFO
    assert run(5, pulses=STUCK)[0].severity is Severity.WARNING


def test_a_training_that_learns_well_gets_an_aside() -> None:
    assert run(pulses={"loss": lambda step: 0.3 + 1.1 * math.exp(-step / 10)})[0].severity is Severity.INFO


def test_a_blow_up_has_another_cause() -> None:
    assert run(pulses={"loss": lambda step: 1.4 if step < 80 else math.nan})[0].severity is Severity.INFO
    jumped = {"loss": lambda step: 9.0 if step == 3 else 1.4 + 0.01 * math.sin(7 * step)}
    assert run(8, pulses=jumped)[0].severity is Severity.INFO


def test_young_trainings_and_games_get_an_aside() -> None:
    assert run(steps=range(99))[0].severity is Severity.INFO
    assert run(shared_process=True)[0].severity is Severity.INFO


@pytest.mark.parametrize(("kind", "groups"), [("BatchNorm1d", "1, features"), ("BatchNorm2d", "math.gcd(8, features)")])
def test_the_remedy_suits_the_norm(kind: str, groups: str) -> None:
    assert groups in (run(kind=kind)[0].remedy.code or "")


def test_other_norms_do_not_look_at_the_batch() -> None:
    assert not run(kind="LayerNorm")
    assert TinyBatchNorm().obstacle(build()) is not None
    assert TinyBatchNorm().obstacle(build(net(2))) is None


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    timelines = (build(net(64)), build(), empty(), build(net(2), steps=(), total=50))
    for timeline in (*timelines, poisoned(math.nan, net=net(64)), poisoned(math.inf, net=net(64))):
        assert not hits(timeline)
    for value in (math.nan, math.inf):
        list(TinyBatchNorm().check(poisoned(value, net=net(2))))
