"""When a single batch is to blame for a spike."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.outlier_batch import OutlierBatch
from gradscope.timeline import Timeline
from tests.timelines import Values
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import one_loss
from tests.timelines import poisoned
from tests.timelines import regressed

STEPS = range(100)
AT = 60


def at(step: int, high: float, *, usual: float = 3.0, until: int | None = None) -> Values:
    return lambda now: high if step <= now <= (until or step) else usual + 0.1 * math.sin(now)


SPIKE: dict[str, Values] = {
    "gradient_norm": lambda step: 500.0 if step == AT else 1.0 + 0.05 * math.sin(step),
    "loss": lambda step: 0.5 if step < AT else 1.2,
}
OUTLIER: dict[str, Values] = {"input.absmax": at(AT, 3000.0)}


def hits(timeline: Timeline) -> list[Hit]:
    return list(OutlierBatch().check(timeline))


def run(columns: dict[str, Any] = OUTLIER, pulses: dict[str, Any] = SPIKE, **given: Any) -> Timeline:
    return build(columns=columns, pulses=pulses, **{"steps": STEPS, **given})


def test_names_the_step_and_bounds_the_input() -> None:
    (hit,) = hits(run())
    assert (hit.first_step, hit.last_step, hit.modules) == (AT, AT, ("x",))
    assert hit.evidence["column"] == "input.absmax"
    assert hit.evidence["score"] > 60
    assert hit.severity is Severity.WARNING


def test_the_remedy_clips_where_ordinary_gradients_end() -> None:
    torch = pytest.importorskip("torch")
    (hit,) = hits(run())
    model = torch.nn.Linear(2, 2)
    names = {"torch": torch, "model": model, "x": torch.full((2,), 1e4)}
    exec(str(hit.remedy.code), names)
    assert names["x"].max() == pytest.approx(9.0, rel=0.05)
    assert "max_norm=1" in str(hit.remedy.code)


def test_names_targets() -> None:
    columns = {**regressed(), "loss.target_high": at(AT, 4000.0)}
    (hit,) = hits(run(columns, wiring=one_loss()))
    assert "targets" in hit.message and "y.clamp" in str(hit.remedy.code)


def test_is_an_aside_where_the_loss_takes_no_harm() -> None:
    unharmed = {**SPIKE, "loss": lambda step: 0.5 + (step == AT)}
    assert hits(run(pulses=unharmed))[0].severity is Severity.INFO


def test_is_critical_where_training_blows_up_on_it() -> None:
    blown = {**SPIKE, "loss": lambda step: 0.5 if step <= AT else math.nan}
    assert hits(run(pulses=blown))[0].severity is Severity.CRITICAL


def test_a_spike_over_ordinary_inputs_is_not_the_data_s() -> None:
    assert not hits(run({}))


def test_an_outlier_without_a_spike_is_not_mentioned() -> None:
    assert not hits(run(pulses={"loss": 0.5}))


def test_inputs_that_stay_large_are_no_outlier() -> None:
    assert not hits(run({"input.absmax": at(AT, 3000.0, until=99)}))


def test_weights_that_were_not_finite_before_clear_the_batch() -> None:
    assert not hits(run({**OUTLIER, "weight.nonfinite": 1.0}))


def test_what_follows_within_twenty_steps_is_an_aftershock() -> None:
    twice = {"input.absmax": lambda step: 3000.0 if step in (AT, AT + 9) else 3.0}
    spikes = {**SPIKE, "gradient_norm": lambda step: 500.0 if step in (AT, AT + 9) else 1.0}
    (hit,) = hits(run(twice, spikes))
    assert hit.evidence["events"] == 1


def test_a_jump_that_the_spread_of_the_inputs_explains_does_not_count() -> None:
    varied = {"input.absmax": lambda step: 3000.0 if step == AT else math.exp(3 * math.sin(step * 1.7))}
    assert not hits(run(varied))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), build(steps=()), run({}, {}), poisoned(math.nan), poisoned(math.inf)):
        assert not hits(timeline)
