"""When a learning rate counts as too high."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.records import StepQuality
from gradscope.rules.lr_too_high import LrTooHigh
from gradscope.timeline import Timeline
from tests.timelines import CLASSES
from tests.timelines import SMALL
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import mlp
from tests.timelines import one_loss
from tests.timelines import poisoned

DENSE = range(12)


def hits(timeline: Timeline) -> list[Hit]:
    return list(LrTooHigh().check(timeline))


def run(
    loss: Any, *, ratio: Any = 0.3, norm: Any = 1.0, columns: Any = None, rate: Any = 0.1, net: Net = SMALL, **more: Any
) -> list[Hit]:
    pulses = {"loss": loss, "gradient_norm": norm, "learning_rate": rate}
    return hits(build(net, columns={"update.ratio": ratio, **(columns or {})}, pulses=pulses, **more))


def jump(step: int) -> float:
    """A loss that jumps at the first update and stays up."""
    return 1.4 if step == 0 else 50.0


def test_a_jump_after_a_large_step_is_named_with_a_lower_rate() -> None:
    (hit,) = run(jump, ratio=lambda step: 2.0 if step == 0 else 0.0, rate=50.0)
    assert (hit.first_step, hit.severity) == (0, Severity.CRITICAL)
    assert hit.evidence["update_ratio"] == pytest.approx(2.0)
    assert hit.modules == ("layers.0", "layers.2", "layers.4")
    assert hit.remedy.code is not None
    assert 'group["lr"] = 0.2 ' in hit.remedy.code  # 50 * 0.01 / 2, to one digit


def probed(step: int = 0, overshoot: float = 4.0, **more: Any) -> StepQuality:
    return StepQuality(step, overshoot, 1.4, 12.0, more.pop("slope", -20.0), 0.1, more)


def test_a_measured_overshoot_makes_it_sure_and_gives_the_rate() -> None:
    (hit,) = run(jump, probes=(probed(),))
    assert (hit.strength, hit.severity) == (5.0, Severity.CRITICAL)
    assert hit.evidence["overshoot"] == 4.0
    assert 'group["lr"] = 0.006 ' in (hit.remedy.code or "")  # 0.1 / (4 · 4), to one digit
    assert "step 0 is 4 times as long" in hit.message


def test_a_measured_overshoot_is_enough_by_itself_while_training_does_not_work() -> None:
    (hit,) = run(lambda step: 1.5, ratio=0.02, probes=(probed(1),), steps=DENSE, total=60)
    assert (hit.first_step, hit.severity, hit.strength) == (1, Severity.WARNING, 5.0)
    assert "went from 1.4 to 12" in hit.message
    assert hits(build(probes=(probed(),)))[0].severity is Severity.INFO  # the step was short
    long = {"update.ratio": lambda step: 0.5 if step == 0 else 0.005}
    assert hits(build(probes=(probed(),), columns=long))[0].severity is Severity.WARNING
    converged = {"loss": lambda step: 1.4 * 0.5**step}
    assert hits(build(probes=(probed(),), columns=long, pulses=converged))[0].severity is Severity.INFO
    assert not run(lambda step: 1.5, ratio=0.02, probes=(probed(11),), steps=DENSE, total=60)


def test_an_overshoot_that_scale_explains_proves_nothing_of_the_rate() -> None:
    explained = probed(**{"unnormalized-input": 0.2})
    assert not hits(build(probes=(explained,)))
    (hit,) = run(jump, probes=(explained,))
    assert hit.strength == 3.0 and "overshoot" not in hit.evidence
    assert run(jump, probes=(probed(**{"unnormalized-input": 1.5}),))[0].strength == 5.0


def test_a_step_against_the_gradient_says_nothing_of_the_rate() -> None:
    assert not hits(build(probes=(probed(slope=0.5),)))


def test_a_step_by_a_gradient_that_is_not_finite_goes_up_at_any_length() -> None:
    broken = {"gradient_norm": lambda step: math.inf if step == 0 else 1.0}
    found = hits(build(probes=(probed(overshoot=math.inf),), columns={"update.ratio": 0.2}, pulses=broken))
    assert not found


def test_a_step_that_was_right_refutes_it() -> None:
    assert run(jump, probes=(probed(overshoot=0.55),), steps=DENSE)
    assert not run(jump, probes=(probed(overshoot=0.45),), steps=DENSE)
    assert run(jump, probes=(probed(1, overshoot=0.0),))  # after the jump all may be dead


def test_an_overshoot_without_end_leaves_the_rate_to_the_size_of_steps() -> None:
    (hit,) = run(jump, probes=(probed(overshoot=math.inf),))
    assert hit.evidence["overshoot"] is None and "more than 65,000 times" in hit.message
    assert 'group["lr"] = 0.003 ' in (hit.remedy.code or "")


def test_the_remedy_divides_by_eight_at_least() -> None:
    (hit,) = run(jump, ratio=0.11, rate=1.0, norm=lambda step: 10.0**step)
    assert 'group["lr"] = 0.09 ' in (hit.remedy.code or "")
    (hit,) = hits(build(columns={"update.ratio": 0.11}, pulses={"loss": jump, "learning_rate": 0.08}))
    assert 'group["lr"] = 0.007 ' in (hit.remedy.code or "")


def test_boundaries_of_step_and_jump() -> None:
    assert not run(jump, ratio=0.09)
    assert run(lambda step: 1.4 if step == 0 else 1.4 * 3.1)
    assert not run(lambda step: 1.4 if step == 0 else 1.4 * 2.9, steps=DENSE)


def lost(step: int) -> float:
    """A loss that falls, grows to far above its start and ends at a constant prediction's."""
    return (1.4 * 0.7**step if step < 20 else 2.0 ** (step - 20)) if step < 40 else math.log(4)


def test_a_training_that_worked_and_lost_it_to_longer_and_longer_steps_is_named() -> None:
    (hit,) = run(lost, ratio=lambda step: 0.2 if 18 <= step < 40 else 0.04, steps=range(60))
    assert (hit.severity, hit.evidence["onset"]) == (Severity.CRITICAL, 23)
    assert "blew up at step 23, to a loss of 5.24e+05, and is back at 1.39" in hit.message


def test_what_is_lost_with_no_long_step_before_has_another_cause() -> None:
    assert not run(lost, ratio=lambda step: 0.2 if 24 <= step < 40 else 0.04, steps=range(60))
    at_once = {"ratio": lambda step: 0.2 if 23 <= step < 40 else 0.04, "steps": range(60)}
    assert not run(lambda step: 0.01 if step < 23 else lost(step), **at_once)


def test_where_the_loss_had_climbed_the_step_of_the_blow_up_counts() -> None:
    (hit,) = run(lost, ratio=lambda step: 0.2 if step >= 23 else 0.04, steps=range(60))
    assert (hit.first_step, hit.evidence["onset"]) == (23, 23)


def test_what_a_lost_model_does_later_is_no_second_blow_up() -> None:
    def echoing(step: int) -> float:
        return 1e7 if step == 50 else lost(step)

    (hit,) = run(echoing, ratio=lambda step: 0.2 if 18 <= step < 40 else 0.001, steps=range(60))
    assert hit.evidence["onset"] == 23


def test_a_training_that_regains_what_it_lost_or_never_worked_is_left_alone() -> None:
    def quiet(loss: Any) -> bool:
        return not run(loss, ratio=lambda step: 0.2 if 18 <= step < 40 else 0.04, steps=range(60))

    assert quiet(lambda step: lost(step) if step < 40 else 0.9)
    assert quiet(lambda step: max(lost(step), 1.2))


def test_large_steps_after_the_jump_prove_nothing() -> None:
    assert not run(jump, ratio=lambda step: 0.001 if step == 0 else 0.3, steps=DENSE)


def test_a_jump_that_is_overcome_is_an_aside() -> None:
    assert run(lambda step: 10.0 if step == 1 else 1.4 * math.exp(-step / 30))[0].severity is Severity.INFO


def test_a_jump_is_a_warning_until_training_has_converged() -> None:
    assert run(lambda step: 10.0 if step == 1 else (1.4 if step < 5 else 0.1))[0].severity is Severity.WARNING
    assert run(lambda step: 10.0 if step == 1 else (1.4 if step < 5 else 0.05))[0].severity is Severity.INFO


def test_a_loss_that_falls_from_the_jump_but_stays_at_the_constant_prediction_is_not_overcome() -> None:
    assert run(lambda step: (13.0, 700.0)[step] if step < 2 else math.log(4))[0].severity is Severity.CRITICAL


def test_nan_after_growth_is_named() -> None:
    grows = {"norm": lambda step: 10.0**step, "steps": DENSE}
    (hit,) = run(lambda step: 1.4 if step < 3 else math.nan, **grows)
    assert hit.evidence["onset"] == 3
    assert hit.evidence["worst_loss"] is None


def test_nan_out_of_the_blue_takes_steps_larger_than_the_weights() -> None:
    assert not run(lambda step: 1.4 if step < 3 else math.nan, steps=DENSE)
    assert run(lambda step: 1.4 if step < 3 else math.nan, ratio=1.1, steps=DENSE)


def test_nan_that_comes_with_the_data_is_not_named() -> None:
    bad = {"input.nonfinite": lambda step: 0.01 if step == 3 else 0.0}
    assert not run(lambda step: 1.4 if step < 3 else math.nan, ratio=1.1, columns=bad, steps=DENSE)


def test_gradients_that_are_not_cleared_are_another_cause() -> None:
    assert not run(lambda step: 1.4 if step < 3 else 1.4 * 2.0**step, columns={"weight_gradient.carried": 1.0})


def test_gradients_that_were_not_cleared_in_the_first_step_that_tells_were_not_before() -> None:
    def seen_since(carried: float) -> list[Hit]:
        growing = lambda step: 1.4 if step < 3 else 1.4 * 2.0**step  # noqa: E731
        return run(growing, columns={"weight_gradient.carried": carried}, steps=[0, 2, 6, 9, 10, 11], total=12)

    assert seen_since(0.0) and not seen_since(1.0)


def test_growth_proves_little_where_it_is_not_known_whether_gradients_are_cleared() -> None:
    def growing(steps: Any) -> Hit:
        (hit,) = run(lambda step: 1.4 if step < 5 else 1.4 * 1.5**step, steps=steps)
        return hit

    assert growing(range(20)).strength == 3.0
    assert growing(range(0, 20, 2)).strength == 1.0
    assert run(jump, steps=range(0, 20, 2))[0].strength == 3.0  # at the first update there was nothing to clear


def test_steps_that_weight_decay_alone_makes_large_are_another_cause() -> None:
    decaying = OptimizerInfo("AdamW", 0.01, tuple(p.name for p in SMALL.parameters), 0, {"weight_decay": 20.0})
    assert not run(jump, rate=0.01, optimizers=(decaying,))


def test_a_loss_far_above_a_constant_prediction_before_any_update_is_another_cause() -> None:
    assert run(lambda step: 9.9 * math.log(4) if step == 0 else math.nan, ratio=2.0)
    assert not run(lambda step: 10.1 * math.log(4) if step == 0 else math.nan, ratio=2.0)


def test_a_loss_that_is_far_off_after_the_first_steps_own_updates_is_the_rates() -> None:
    lbfgs = (OptimizerInfo("LBFGS", 5.0, tuple(p.name for p in SMALL.parameters), 0, {}),)
    for forwards, named in ((4.0, True), (1.0, False)):
        columns = {"step.forwards": forwards}
        found = run(lambda step: 1e4 * 50.0**step, ratio=3.0, columns=columns, optimizers=lbfgs)
        assert bool(found) is named
        assert all('1.0, "strong_wolfe"' in (hit.remedy.code or "") for hit in found)


def test_an_overshoot_beyond_what_the_scale_explains_is_the_rates() -> None:
    def off(overshoot: float, **more: Any) -> list[Hit]:
        return run(lambda step: 20.0 if step == 0 else math.nan, ratio=2.0, probes=(probed(overshoot=overshoot),), **more)

    assert off(210.0) and not off(200.0)  # (20 / ln 4)² = 208
    squares = one_loss(baseline=math.log(4))
    assert off(14.5, wiring=squares) and not off(14.4, wiring=squares)  # 20 / ln 4


def test_an_outlier_after_steps_of_ordinary_size_is_left_alone() -> None:
    assert not run(lambda step: 1.4 if step < 60 else 90.0, ratio=lambda step: 0.5 if step == 60 else 0.003)


def test_a_late_blow_up_after_large_steps_is_named_where_it_happens() -> None:
    (hit,) = run(lambda step: 1.0 if step < 62 else 90.0, ratio=lambda step: 0.3 if step >= 55 else 0.003)
    assert (hit.first_step, hit.evidence["onset"]) == (55, 62)


def test_a_rate_that_rises_between_samples_is_reckoned_with() -> None:
    (hit,) = run(
        lambda step: 1.0 if step < 82 else 90.0,
        ratio=0.004,
        rate=lambda step: 0.05 if step < 80 else 10.0,
        steps=DENSE,
        total=100,
    )
    assert hit.first_step == 81
    assert hit.evidence["learning_rate_raised"] == pytest.approx(200.0)
    assert hit.evidence["update_ratio"] == pytest.approx(0.8)


def climbing(step: int) -> float:
    """A loss that falls, and from step 80 on grows by three times in every step."""
    return 1.4 * 0.95**step if step < 80 else min(0.05 * 3.0 ** (step - 80), 1e6)


def test_a_rate_that_rose_at_once_is_named_where_the_loss_climbed_from_then_on() -> None:
    def risen(loss: Any, **more: Any) -> list[Hit]:
        rate = {"rate": lambda step: 0.05 if step < 75 else 2.0, "ratio": 0.0001}
        return run(loss, **rate, **{"steps": DENSE, "total": 110, "norm": math.nan, **more})

    (hit,) = risen(climbing, steps=(*DENSE, 78))
    assert (hit.first_step, hit.severity) == (75, Severity.CRITICAL)
    assert hit.message.startswith("At step 75 the learning rate rose from 0.05 to 2 at once, after it the loss climbed")
    assert 'group["lr"] = 0.05 ' in (hit.remedy.code or "") and "had borne" in hit.remedy.text
    assert not risen(lambda step: 0.05 if step < 85 else 1e6, steps=(*DENSE, 78))
    assert not risen(lambda step: climbing(step) if step < 80 else climbing(max(step - 60, 80)), steps=DENSE, total=170)


def test_steps_that_no_frame_was_taken_of_are_reckoned_from_their_gradients() -> None:
    steep: dict[str, Any] = {"norm": lambda step: 1.0 if step < 82 else 40.0, "ratio": 0.005, "steps": DENSE, "total": 110}
    (hit,) = run(climbing, **steep)
    assert (hit.first_step, hit.last_step, hit.evidence["onset"]) == (82, 85, 85)
    assert hit.evidence["update_ratio"] == pytest.approx(0.2)
    assert "by 20 % of its norm, by its gradient's norm" in hit.message
    adam = OptimizerInfo("Adam", 0.1, tuple(p.name for p in SMALL.parameters), 0, {"eps": 1e-8})
    assert not run(climbing, **steep, optimizers=(adam,))


def test_steps_compound_over_the_layers_of_a_deep_plain_net() -> None:
    deep = mlp(16, *[32] * 13, CLASSES)
    blown_up: dict[str, Any] = {"ratio": 0.04, "steps": range(110), "net": deep}
    (hit,) = run(climbing, **blown_up)
    assert "by 4 % of its norm, where 0.1 to 1 % is usual, and what the net computes by up to 73.2 % over its 14" in hit.message
    assert not run(climbing, ratio=0.04, steps=range(110))
    assert not run(climbing, **blown_up, wiring=classification(deep, residual_additions=5))
    assert not run(climbing, **{**blown_up, "ratio": 0.02})


def test_a_loss_that_grows_geometrically_is_named_though_the_first_steps_are_small() -> None:
    (hit,) = run(
        lambda step: 1.0 * 1.3**step,
        norm=lambda step: 1.14**step,
        ratio=lambda step: min(2.0, 0.01 * 1.3**step),
        steps=DENSE,
        wiring=classification(losses=()),
    )
    assert hit.first_step == 0  # where it began to grow
    assert "grew by a factor 1.3 in every step" in hit.message
    assert hit.evidence["update_ratio"] == pytest.approx(0.106, rel=0.01)


def test_large_steps_that_lead_nowhere_are_a_warning_after_a_while() -> None:
    (hit,) = run(lambda step: 1.4 + 0.01 * math.sin(step), ratio=0.2)
    assert hit.severity is Severity.WARNING
    assert not run(lambda step: 1.4 + 0.01 * math.sin(step), ratio=0.2, steps=DENSE)
    assert not run(lambda step: 1.4 + 0.01 * math.sin(step), ratio=0.09)


def test_large_steps_of_a_training_that_works_are_left_alone() -> None:
    assert not hits(build(columns={"update.ratio": 0.35}))


def test_first_steps_that_wipe_out_the_initialisation_are_a_warning_where_the_loss_stays_high() -> None:
    half_way = lambda step: math.log(4) * (1.0 - 0.4 * min(step / 60, 1.0))  # noqa: E731
    wiped = lambda step: 0.2 if step < 5 else 0.005  # noqa: E731
    (hit,) = run(half_way, ratio=wiped, total=120)
    assert (hit.first_step, hit.severity) == (0, Severity.WARNING)
    assert not run(half_way, ratio=wiped, total=90)
    assert not run(half_way, ratio=lambda step: 0.1 if step < 5 else 0.005, total=120)
    assert not run(lambda step: math.log(4) * max(1.0 - step / 60, 0.3), ratio=wiped, total=120)
    assert not run(half_way, ratio=wiped, total=120, shared_process=True)
    assert not run(half_way, ratio=wiped, total=120, wiring=classification(losses=()))


def test_a_loss_over_few_numbers_takes_a_hundredfold_jump() -> None:
    one = LossInfo("mse", "MseLossBackward0", "mean", (1, 1), (1, 1))
    wiring = classification(losses=(one,))
    assert not run(lambda step: 0.1 if step == 0 else 5.0, wiring=wiring, steps=DENSE)
    assert run(lambda step: 0.1 if step == 0 else 50.0, wiring=wiring, steps=DENSE)


def test_with_several_objectives_only_what_is_not_finite_counts() -> None:
    assert not run(jump, shared_process=True)
    assert run(lambda step: 1.4 if step == 0 else math.inf, ratio=1.1, shared_process=True)


def test_it_speaks_as_soon_as_the_jump_is_seen() -> None:
    assert not run(jump, steps=range(1))
    assert run(jump, steps=range(2))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), build(steps=[0]), empty(), poisoned(math.nan), poisoned(math.inf), poisoned(0.0)):
        assert not hits(timeline)


def test_infinite_steps_do_not_break_the_remedy() -> None:
    (hit,) = run(lambda step: 1.4 if step == 0 else math.nan, ratio=math.inf)
    assert hit.evidence["update_ratio"] is None
    assert 'group["lr"] = 0.0001 ' in (hit.remedy.code or "")


def test_a_leap_that_ordinary_steps_bring_back_is_an_accident() -> None:
    def after(loss: Any, later: float) -> Severity:
        long = {"ratio": lambda step: 0.12 if step == 0 else later, "steps": DENSE, "total": 60}
        return run(lambda step: 7.0 if step == 1 else loss(step), **long)[0].severity

    def stays(step: int) -> float:
        return 1.4 - 0.001 * step

    def works(step: int) -> float:
        return 1.4 if step < 5 else 0.2

    assert (after(stays, 0.005), after(works, 0.005)) == (Severity.WARNING, Severity.INFO)
    assert (after(stays, 0.05), after(works, 0.05)) == (Severity.CRITICAL, Severity.WARNING)  # the steps go on as they were
    assert after(stays, 0.0) is Severity.CRITICAL  # nothing moves any more
    assert after(lambda step: 2.0 if step else 1.4, 0.005) is Severity.CRITICAL  # it does not come back


def test_a_short_step_that_overshot_is_an_aside_where_the_losses_came_down() -> None:
    def found(loss: Any) -> Severity:
        return run(loss, ratio=0.01, probes=(probed(overshoot=1.35),), steps=range(4), total=4)[0].severity

    assert found(lambda step: 1.4 - 0.02 * step) is Severity.INFO
    assert found(lambda step: 1.4 + 0.02 * step) is Severity.WARNING
    assert found(lambda step: 8.0 if step == 2 else 1.3) is not Severity.INFO


@pytest.mark.parametrize(("first", "least", "named"), [(0, 0.2, True), (8, 0.2, True), (8, 0.14, False), (40, 0.2, False)])
def test_five_long_steps_in_a_row_wipe_out_the_start(first: int, least: float, named: bool) -> None:
    def ratio(step: int) -> float:
        return least if first <= step < first + 5 else 0.01

    assert bool(run(lambda step: 1.2 - 0.0005 * step, ratio=ratio, steps=range(120), total=120)) is named
    assert not run(lambda step: 1.2 if step < 50 else 0.5, ratio=ratio, steps=range(120), total=120)


def test_long_steps_by_a_gradient_that_leapt_are_the_batchs() -> None:
    def norm(step: int) -> float:
        return 500.0 if step == 8 else 1.0

    long = {"ratio": lambda step: 0.3 if 8 <= step < 13 else 0.01, "steps": range(120), "total": 120}
    assert run(lambda step: 1.2, **long) and not run(lambda step: 1.2, norm=norm, **long)


def test_a_constant_prediction_knows_how_often_each_class_comes() -> None:
    seen = {"loss.label_entropy_seen": 0.7}
    wiped = {"ratio": 0.2, "steps": range(120), "total": 120}
    assert run(lambda step: 0.6 - 0.0001 * step, columns=seen, **wiped)
    assert not run(lambda step: 0.6 - 0.0001 * step, **wiped)


def by(optimizer: str) -> tuple[OptimizerInfo, ...]:
    return (OptimizerInfo(optimizer, 0.1, tuple(p.name for p in SMALL.parameters), 0, {"eps": 1e-8}),)


def test_a_first_step_of_rmsprop_that_overshot_by_less_than_it_is_too_long_is_an_aside() -> None:
    def first(optimizer: str, *, overshoot: float = 4.0, since: float = 0.01) -> Severity:
        ratio = {"update.ratio": lambda step: 0.5 if step == 0 else since}
        loss = {"loss": lambda step: 1.4 if step == 0 else 12.0 if step == 1 else 1.3}
        return hits(build(columns=ratio, pulses=loss, probes=(probed(0, overshoot),), optimizers=by(optimizer), total=60))[
            0
        ].severity

    assert first("RMSprop") is Severity.INFO
    assert first("Adam") is Severity.WARNING
    assert first("RMSprop", overshoot=20.0) is Severity.WARNING  # the steps to come overshoot twice
    assert first("RMSprop", since=0.2) > Severity.INFO


def test_a_first_step_of_rmsprop_may_leap_far_until_three_losses_have_followed() -> None:
    def seen(total: int, *, overshoot: float = 5.0, back: float = 2.3) -> Severity:
        ratio = {"update.ratio": lambda step: 0.5 if step == 0 else 0.01}
        loss = {"loss": lambda step: (2.2, 80.0)[step] if step < 2 else back}
        probes = (probed(0, overshoot),)
        (hit,) = hits(build(columns=ratio, pulses=loss, probes=probes, optimizers=by("RMSprop"), steps=range(total)))
        return hit.severity

    assert [seen(total) for total in (2, 4, 6, 8)] == [Severity.INFO] * 4
    assert seen(2, overshoot=20.0) > Severity.INFO
    assert seen(8, back=4.0) > Severity.INFO


def coasting(shrink: float) -> Severity:
    """The severity of a leap by a step whose velocity shrinks by this factor in each step since."""
    sgd = OptimizerInfo("SGD", 0.1, tuple(p.name for p in SMALL.parameters), 0, {"momentum": 0.9})
    losses = {"loss": lambda step: (1.4, 7.0)[step] if step < 2 else 0.2}
    columns = {"update.ratio": lambda step: 0.12 * shrink**step}
    return hits(build(columns=columns, pulses=losses, optimizers=(sgd,), steps=range(14)))[0].severity


def test_momentum_that_coasts_down_after_a_leap_is_no_long_step() -> None:
    assert coasting(0.9) is Severity.INFO
    assert coasting(0.98) > Severity.INFO


def test_first_steps_of_rmsprop_count_at_the_length_of_those_to_come() -> None:
    def early(optimizer: str, size: float) -> list[Hit]:
        ratio = {"update.ratio": lambda step: size / math.sqrt(1 - 0.99 ** (step + 1))}
        return hits(build(columns=ratio, pulses={"loss": 1.3}, optimizers=by(optimizer), total=120))

    assert early("Adam", 0.03) and not early("RMSprop", 0.03)
    assert early("RMSprop", 0.2)


def test_steps_that_are_long_beside_weights_that_something_clamps_prove_nothing() -> None:
    assert run(1.5, ratio=0.2, steps=range(60))
    assert run(1.5, ratio=0.2, steps=range(60), columns={"update.outside_change": 0.01})
    assert not run(1.5, ratio=0.2, steps=range(60), columns={"update.outside_change": 0.1})


def test_what_a_model_does_that_is_lost_already_is_no_blow_up() -> None:
    """The rate jumps a thousandfold at step 70; the dead model's loss happens to end above three times its start."""

    def loss(step: int) -> float:
        return 0.1 if step < 70 else 1e6 if step == 70 else 6.0 if step > 95 else 3.0

    def rate(step: int) -> float:
        return 0.01 if step < 69 else 10.0

    (hit,) = run(loss, ratio=lambda step: 0.001, rate=rate, steps=[*range(0, 60, 5), *range(75, 100, 5)])
    assert (hit.evidence["onset"], hit.severity) == (70, Severity.CRITICAL)
    (broken,) = run(
        lambda step: loss(step) if step < 98 else math.nan, ratio=0.001, rate=rate, steps=range(0, 60, 5), total=100
    )
    assert broken.evidence["onset"] == 70


def test_a_step_that_overshot_slightly_is_an_aside_until_three_losses_have_followed() -> None:
    def known(losses: int, overshoot: float, *, size: float = 0.01) -> Severity | None:
        seen = {"steps": range(losses), "total": losses}
        return run(lambda step: 1.4 + 0.02 * step, ratio=size, probes=(probed(overshoot=overshoot),), **seen)[0].severity

    assert (known(3, 1.5), known(4, 1.5), known(3, 4.5)) == (Severity.INFO, Severity.WARNING, Severity.WARNING)
    assert (known(3, 3.5), known(4, 3.5), known(3, 3.5, size=0.2)) == (Severity.INFO, Severity.WARNING, Severity.WARNING)


def test_a_slight_overshoot_is_an_aside_where_the_losses_halved_after_the_leap() -> None:
    def found(after: float) -> Severity:
        seen: dict[str, Any] = {"probes": (probed(overshoot=1.6),), "steps": range(8), "total": 8}
        return run(lambda step: (1.4, 3.5)[step] if step < 2 else after, ratio=0.01, **seen)[0].severity

    assert found(0.6) is Severity.INFO
    assert found(1.5) > Severity.INFO


def test_a_late_step_that_overshot_far_is_named_where_training_stands_still_at_a_constants_loss() -> None:
    def found(overshoot: float, *, size: float = 0.03, loss: float = 1.35) -> list[Hit]:
        noisy = np.random.default_rng(1).standard_normal(200)
        probes = (probed(75, overshoot),)
        return run(lambda step: loss + 0.02 * noisy[step], ratio=size, probes=probes, total=200, steps=range(0, 200, 5))

    assert found(9.0)[0].severity is Severity.WARNING
    assert not found(3.0)
    assert not found(9.0, size=0.005)
    assert not found(9.0, loss=0.3)


def test_a_step_by_a_gradient_that_is_not_finite_is_no_long_one() -> None:
    def norm(step: int) -> float:
        return math.inf if step >= 4 else 1.0

    def ratio(step: int) -> float:
        return math.inf if step >= 4 else 0.01

    assert not run(lambda step: math.nan if step > 4 else 1.4, ratio=ratio, norm=norm, steps=DENSE)
    assert run(lambda step: math.nan if step > 4 else 1.4, ratio=ratio, steps=DENSE)


def test_steps_without_any_gradient_are_weight_decays_however_weak_it_is() -> None:
    decaying = OptimizerInfo("Adam", 0.01, tuple(p.name for p in SMALL.parameters), 0, {"weight_decay": 0.01})
    stays = {"loss": 1.4}
    assert hits(build(columns={"update.ratio": 0.3}, pulses=stays, optimizers=(decaying,)))
    assert not hits(build(columns={"update.ratio": 0.3}, pulses={**stays, "gradient_norm": 0.0}, optimizers=(decaying,)))


@pytest.mark.parametrize(("since", "said"), [(0, 1), (4, 0)])
def test_a_record_that_begins_in_the_midst_of_a_blow_up_does_not_tell_its_cause(since: int, said: int) -> None:
    whole = build(
        SMALL, steps=DENSE, columns={"update.ratio": lambda step: 5.0 * 10.0 ** min(step, 6)},
        pulses={"loss": lambda step: 2.3 * 1e3 ** min(step, 8), "gradient_norm": lambda step: 10.0 ** min(step, 8),
                "learning_rate": 0.1},
    )  # fmt: skip
    part = Timeline(whole.info, [frame for frame in whole.frames if frame.step >= since], whole._pulses[since:])
    assert len(hits(part)) == said
