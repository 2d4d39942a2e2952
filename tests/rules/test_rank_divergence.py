"""When ranks that should hold the same weights are said not to."""

from __future__ import annotations

import math

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.rank_divergence import RankDivergence
from gradscope.timeline import Timeline
from tests.timelines import build

LAYER = "layers.2.weight"


def hits(timeline: Timeline) -> list[Hit]:
    return list(RankDivergence().check(timeline))


def run(ranks: int, values: object, rank: int = 1) -> Timeline:
    names = {"weight.ranks_apart": {LAYER: values}, "weight.ranks_apart_rank": {LAYER: float(rank)}}
    return build(columns=names, ranks=ranks)  # type: ignore[arg-type]


@pytest.mark.parametrize("ranks", [2, 8, 1000])
def test_names_the_first_step_the_parameter_and_the_rank(ranks: int) -> None:
    (hit,) = hits(run(ranks, lambda step: 0.003 if step >= 40 else 0.0, rank=ranks - 1))
    assert hit.severity is Severity.CRITICAL
    assert (hit.first_step, hit.evidence["rank"], hit.evidence["parameters"]) == (40, ranks - 1, [LAYER])
    assert hit.modules == ("layers.2",)
    assert ("both ranks" in hit.message) == (ranks == 2)
    assert "0.003" in hit.message


def test_steps_without_a_comparison_are_no_agreement() -> None:
    (hit,) = hits(run(8, lambda step: (0.1 if step >= 5 else 0.0) if step % 5 == 0 else math.nan))
    assert hit.severity is Severity.CRITICAL and hit.first_step == 5


def test_weights_that_agree_are_left_alone() -> None:
    assert not hits(run(8, 0.0))


def test_one_process_has_nothing_to_compare() -> None:
    assert "one process" in str(RankDivergence().obstacle(build()))


def test_weights_that_are_averaged_now_and_then_are_an_aside() -> None:
    (hit,) = hits(run(8, lambda step: 0.0 if step % 10 == 5 else 0.01))
    assert hit.severity is Severity.INFO
    assert "agreed again" in hit.message


def test_the_remedy_is_code() -> None:
    (hit,) = hits(run(2, 0.1))
    compile(str(hit.remedy.code), "remedy", "exec")
