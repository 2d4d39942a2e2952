"""When one rank is said to stand apart from the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.rank_outlier import RankOutlier
from gradscope.timeline import Timeline
from tests.timelines import build


def hits(timeline: Timeline) -> list[Hit]:
    return list(RankOutlier().check(timeline))


def run(
    ranks: int, kind: str, decades: Any, *, rank: Any = 1.0, spread: float = 0.02, more: Mapping[str, Any] | None = None
) -> Timeline:
    columns = {
        "step.loss_apart": 0.1,
        f"{kind}.apart": decades,
        f"{kind}.apart_rank": rank,
        f"{kind}.apart_spread": math.nan if ranks == 2 else spread,
        **(more or {}),
    }
    return build(columns=columns, ranks=ranks)


@pytest.mark.parametrize("ranks", [2, 8, 1000])
@pytest.mark.parametrize("kind", ["input", "activation", "activation_gradient"])
def test_names_the_rank_the_steps_and_the_place(ranks: int, kind: str) -> None:
    (hit,) = hits(run(ranks, kind, lambda step: 2.0 if step >= 40 else 0.02, rank=float(ranks - 1)))
    assert hit.severity is Severity.WARNING
    assert (hit.first_step, hit.last_step, hit.evidence["rank"]) == (40, 95, ranks - 1)
    assert "100 times as large" in hit.message
    assert ("which of the two" in hit.message) == (ranks == 2)


def test_small_is_told_as_well_as_large() -> None:
    (hit,) = hits(run(8, "input", -3.0))
    assert "1e+03 times as small" in hit.message
    assert hit.evidence["times"] == pytest.approx(1e-3)


def test_two_ranks_have_to_be_ten_times_apart() -> None:
    assert not hits(run(2, "input", 0.9))
    assert hits(run(2, "input", 1.1))


def test_ranks_that_spread_widely_have_no_outlier() -> None:
    assert not hits(run(1000, "input", 1.5, spread=0.3))
    assert hits(run(1000, "input", 1.5, spread=0.1))


def test_one_step_is_a_batch_and_no_rank() -> None:
    assert not hits(run(8, "input", lambda step: 3.0 if step in (5, 40) else 0.01))


def test_another_rank_each_time_is_chance() -> None:
    ranks = iter(np.tile([1.0, 2.0], 100))
    assert not hits(run(8, "input", 2.0, rank=lambda _: next(ranks)))


def test_a_single_layer_is_not_enough() -> None:
    sites = build().site_names("activation")
    table = np.zeros((len(build().steps), len(sites)))
    table[:, 0] = 2.0
    assert not hits(run(8, "activation", table))


@pytest.mark.parametrize("ranks", [3, 8, 1000])
def test_healthy_ranks_are_left_alone(ranks: int) -> None:
    rng = np.random.default_rng(ranks)
    steps, sites = len(build().steps), len(build().site_names("activation"))
    draws = rng.normal(0, 0.05, (steps, sites, ranks))
    worst = np.abs(draws - draws.mean(2, keepdims=True)).argmax(2)
    rest = np.ma.masked_array(draws, mask=np.arange(ranks) == worst[..., None])
    apart = np.take_along_axis(draws, worst[..., None], 2)[..., 0] - rest.mean(2).data
    more = {"activation.apart_spread": rest.std(2).data}
    assert not hits(run(ranks, "activation", apart, rank=worst.astype(float), more=more))


def test_nan_on_one_rank_alone_names_it() -> None:
    more = {
        "input.broken_ranks": lambda step: float(step >= 40),
        "input.broken_rank": lambda step: 3.0 if step >= 40 else math.nan,
    }
    (hit,) = hits(run(8, "input", 0.01, more=more))
    assert "rank 3 alone of 8" in hit.message and hit.first_step == 40


def test_nan_on_all_ranks_at_once_is_nobody_s() -> None:
    assert not hits(run(8, "input", 0.01, more={"input.broken_ranks": 8.0, "input.broken_rank": 7.0}))


def test_one_process_has_nothing_to_compare() -> None:
    assert "one process" in str(RankOutlier().obstacle(build()))


def test_the_remedy_is_code() -> None:
    compile(str(hits(run(8, "input", 2.0))[0].remedy.code), "remedy", "exec")
