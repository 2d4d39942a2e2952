"""When a single batch is to blame for a spike."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Origin
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


def test_losses_that_scattered_as_far_before_took_no_harm() -> None:
    def after(high: int) -> Severity:
        """Every fourth loss before is a hundred times the others, and ``high`` of four after."""
        losses = {"loss": lambda step: 50.0 if step % 4 < (1 if step <= AT else high) else 0.5}
        return hits(run(pulses={**SPIKE, **losses}))[0].severity

    assert (after(1), after(3)) == (Severity.INFO, Severity.INFO)
    steady = {"loss": lambda step: 0.5 if step <= AT else 50.0 if step % 4 < 3 else 0.5}
    assert hits(run(pulses={**SPIKE, **steady}))[0].severity is not Severity.INFO


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


def test_what_is_a_few_times_the_usual_is_not_out_of_range() -> None:
    """A last batch of a single sample, whose deviation is NaN."""
    broken = {**SPIKE, "loss": lambda step: 0.5 if step < AT else math.nan}
    assert not hits(run({"input.rms": at(AT, 2.5, usual=1.0)}, broken))
    assert hits(run({"input.rms": at(AT, 9.0, usual=1.0)}, broken))


def test_a_loss_that_broke_over_ordinary_numbers_is_not_the_batchs() -> None:
    def broke(origin: Origin | None) -> list[Hit]:
        losses = {"gradient_norm": 1.0, "loss": lambda step: 0.5 + 0.01 * math.sin(step) if step < AT else math.inf}
        return hits(run({}, losses, origin=origin))

    assert broke(None) and broke(Origin(AT, "loss", node="MseLossBackward0", largest=1e30))
    assert not broke(Origin(AT, "loss", node="DivBackward0", largest=3.0))
    assert not broke(Origin(AT, "target", node="MulBackward0"))


def leapt(step: int) -> float:
    """A loss that falls, leaps at once, and comes down again."""
    return max(200.0 * 0.6 ** (step - AT), 0.2) if step >= AT else 1.4 * math.exp(-step / 30)


def unseen(loss: Any = leapt, **pulses: Any) -> list[Hit]:
    """What is found where the batch was not sampled."""
    steps = [step for step in STEPS if step < 12 or step % 5 == 3]
    return hits(run({}, {"gradient_norm": math.nan, "loss": loss, **pulses}, steps=steps))


def test_a_batch_that_was_not_sampled_is_told_by_a_loss_that_leaps_at_once() -> None:
    (hit,) = unseen()
    assert (hit.first_step, hit.modules, hit.strength) == (AT, (), 3.0)
    assert "from 0.318 to 200 at once" in hit.message
    assert hit.severity is Severity.WARNING
    broken = unseen(lambda step: leapt(step) if step <= AT else math.nan)
    assert broken[0].severity is Severity.CRITICAL


def test_a_leap_that_steps_could_have_made_is_not_the_datas() -> None:
    assert not unseen(lambda step: leapt(step) if step not in (AT - 2, AT - 1) else 3.0)  # it had climbed
    assert not unseen(learning_rate=lambda step: 0.1 if step < AT - 5 else 0.2)
    assert not unseen(gradient_norm=lambda step: 50.0 if step == AT - 1 else 1.0)
    assert not hits(run({"update.ratio": 0.2}, {"gradient_norm": math.nan, "loss": leapt}))


def test_a_leap_has_to_be_high_and_to_pass() -> None:
    assert not unseen(lambda step: leapt(step) if step < AT else 4.1)
    assert not unseen(lambda step: leapt(step) if step < AT else 200.0)  # the data are different from then on
    (hit,) = unseen(lambda step: leapt(step) if step != AT - 30 else 30.0)
    assert hit.last_step == AT - 30  # where it was as high before, a leap says nothing


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), build(steps=()), run({}, {}), poisoned(math.nan), poisoned(math.inf)):
        assert not hits(timeline)


def test_a_step_that_threw_the_weights_out_is_as_grave_as_what_became_of_the_training() -> None:
    early = {**SPIKE, "loss": 1.4}

    def thrown(ratio: float, pulses: dict[str, Any] = early, **given: Any) -> Severity:
        columns = {**OUTLIER, "update.ratio": lambda step: ratio if step == AT else 0.01}
        return hits(run(columns, pulses, **given))[0].severity

    assert (thrown(0.05), thrown(0.5, steps=range(90))) == (Severity.INFO, Severity.WARNING)
    assert thrown(0.5) is Severity.CRITICAL  # nothing has come of a hundred steps
    assert thrown(0.5, {**SPIKE, "loss": lambda step: 1.4 * math.exp(-step / 30)}) is Severity.INFO  # it went on


def test_a_step_as_long_as_the_weights_is_a_warning_until_training_has_converged() -> None:
    def overwritten(ratio: float, end: float) -> Severity:
        columns = {**OUTLIER, "update.ratio": lambda step: ratio if step == AT else 0.01}
        course = {**SPIKE, "loss": lambda step: 1.4 if step <= AT else end}
        return hits(run(columns, course))[0].severity

    assert (overwritten(0.9, 0.4), overwritten(1.1, 0.4)) == (Severity.INFO, Severity.WARNING)
    assert overwritten(1.1, 0.01) is Severity.INFO


def test_a_loss_that_counts_more_from_a_step_on_is_no_outlier() -> None:
    risen = {"gradient_norm": lambda step: 1.0 if step < AT else 1000.0, "loss": lambda step: 0.5 if step < AT else 500.0}
    assert not hits(run({"loss.weight": lambda step: 1.0 if step < AT else 1000.0}, risen))
