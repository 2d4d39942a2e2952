"""When a loss that is a sum is to blame for steps that are too long."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.records import StepQuality
from gradscope.rules.loss_reduction_sum import LossReductionSum
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import one_loss
from tests.timelines import poisoned
from tests.timelines import regressed

ADAM = OptimizerInfo("Adam", 1e-3, tuple(p.name for p in SMALL.parameters), 0, {"eps": 1e-8, "beta1": 0.9, "beta2": 0.999})
STUCK = {"loss": 64 * math.log(10)}


def hits(timeline: Timeline) -> list[Hit]:
    return list(LossReductionSum().check(timeline))


def run(ratio: Any = 0.5, *, weight: float = 1.0, count: float = 64.0, reduction: str = "sum", **given: Any) -> Timeline:
    columns = {"update.ratio": ratio, "loss.weight": weight, "loss.target_count": count}
    wiring = one_loss("cross_entropy", reduction=reduction, classes=10, baseline=math.log(10))
    return build(columns=columns, wiring=wiring, **{"pulses": STUCK, **given})


def probe(overshoot: float, **without: float) -> StepQuality:
    return StepQuality(0, overshoot, 147.0, 150.0, -1.0, 0.1, {name.replace("_", "-"): o for name, o in without.items()})


def test_blames_a_sum_for_long_steps_and_works_the_rate_out() -> None:
    (hit,) = hits(run())
    assert hit.severity is Severity.CRITICAL
    assert (hit.evidence["terms"], hit.evidence["factor"]) == (64.0, 64.0)
    assert "from 0.1 to 0.002" in hit.remedy.text


def test_the_remedy_averages() -> None:
    torch = pytest.importorskip("torch")
    names: dict[str, Any] = {"torch": torch, "model": torch.nn.Linear(3, 10), "x": torch.randn(4, 3), "y": torch.arange(4)}
    exec(str(hits(run())[0].remedy.code), names)
    assert torch.equal(names["loss"], torch.nn.functional.cross_entropy(names["model"](names["x"]), names["y"]))


def test_is_a_warning_at_first_and_an_aside_where_training_works() -> None:
    assert hits(run(steps=range(3)))[0].severity is Severity.WARNING
    assert hits(run(pulses={"loss": lambda step: 64 * 2.3 * math.exp(-step / 30)}))[0].severity is Severity.INFO


def test_a_loss_that_only_came_down_to_a_guess_does_not_work() -> None:
    assert hits(run(pulses={"loss": lambda s: 640.0 if s == 0 else 64 * 2.3}))[0].severity is Severity.CRITICAL


@pytest.mark.parametrize("ratio", [0.01, 7.0])
def test_is_an_aside_where_steps_are_short_or_would_be_too_long_anyway(ratio: float) -> None:
    assert hits(run(ratio))[0].severity is Severity.INFO


def test_the_first_step_tells_what_a_mean_would_have_done_where_later_ones_blow_up() -> None:
    assert hits(run(lambda step: 0.7 * 30 ** min(step, 9)))[0].severity is Severity.CRITICAL
    assert hits(run(lambda step: 7.0 * 30 ** min(step, 9)))[0].severity is Severity.INFO


def test_is_an_aside_where_the_optimizer_makes_up_for_it() -> None:
    (hit,) = hits(run(optimizers=(ADAM,)))
    assert hit.severity is Severity.INFO and "makes up for" in hit.message


def test_a_measured_overshoot_decides() -> None:
    (hit,) = hits(run(0.05, probes=(probe(9.87, loss_reduction_sum=0.154),)))
    assert hit.severity is Severity.CRITICAL and hit.strength == 5
    assert "9.87 times, and 0.154" in hit.message
    assert hits(run(0.05, probes=(probe(9.87),)))[0].evidence["overshoot_of_the_mean"] == pytest.approx(0.154, rel=0.01)
    assert hits(run(0.5, probes=(probe(300.0, loss_reduction_sum=4.7),)))[0].severity is Severity.INFO
    assert hits(run(0.5, probes=(probe(0.2),)))[0].severity is Severity.INFO


@pytest.mark.parametrize(("weight", "count", "found"), [(1 / 64, 64.0, 0), (1.0, 7.0, 0), (0.4, 64.0, 0), (0.6, 64.0, 1)])
def test_sums_that_are_divided_or_small_are_left_alone(weight: float, count: float, found: int) -> None:
    assert len(hits(run(weight=weight, count=count))) == found


def test_sums_of_a_regression_count_elements() -> None:
    columns = {**regressed(), "loss.target_count": 640.0, "update.ratio": 0.5}
    (hit,) = hits(build(columns=columns, wiring=one_loss(reduction="sum"), pulses={"loss": 640.0}))
    assert hit.evidence["terms"] == 640
    assert "mse_loss(output, y)" in str(hit.remedy.code)


def by_hand(ratio: float = 0.68, *, reduction: str | None = "sum", **given: Any) -> list[Hit]:
    columns = {"update.ratio": ratio}
    wiring = one_loss("other", reduction=reduction, input_shape=(200,), target_shape=None)
    return hits(build(columns=columns, wiring=wiring, losses=(), **{"pulses": {"loss": 1500.0}, **given}))


def test_a_bare_sum_of_ones_own_is_blamed_for_long_steps() -> None:
    (hit,) = by_hand()
    assert hit.severity is Severity.CRITICAL
    assert hit.message.startswith("The loss is a sum over 200 terms")
    names = {"loss": 1500.0}
    exec(str(hit.remedy.code), names)
    assert names["loss"] == 7.5
    assert not by_hand(reduction="mean") and not by_hand(reduction=None)
    assert not by_hand(shared_process=True)


def test_a_bare_sum_is_given_time_unless_the_loss_jumps() -> None:
    assert by_hand(steps=range(19))[0].severity is Severity.INFO
    assert by_hand(steps=range(20))[0].severity is Severity.WARNING
    jump = {"loss": lambda step: 354.0 if step == 0 else 3.4e4}
    assert by_hand(steps=range(5), pulses=jump)[0].severity is Severity.CRITICAL
    assert by_hand(0.01)[0].severity is Severity.INFO
    assert by_hand(pulses={})[0].severity is Severity.INFO


def test_means_are_left_alone() -> None:
    assert not hits(run(reduction="mean"))
    assert not hits(run(shared_process=True))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), build(steps=()), poisoned(math.nan), poisoned(math.inf)):
        assert not hits(timeline)
    hits(run(math.nan, pulses={"loss": math.nan}))


def one_by_one(
    ratio: Any = 0.5, *, count: int = 8, weight: Any = 1.0, target: tuple[int, ...] = (1,), **given: Any
) -> list[Hit]:
    """A cross-entropy of each sample, added up; eight of them are looked at."""
    wiring = one_loss("cross_entropy", classes=10, input_shape=(1, 10), target_shape=target, baseline=math.log(10))
    columns = {"update.ratio": ratio, "loss.weight": weight, "loss.target_count": 1.0}
    names = [f"(loss {i})" for i in range(count)]
    return hits(build(columns=columns, wiring=wiring, losses=names, **{"pulses": {"loss": 147.0}, **given}))


def test_a_loss_that_is_added_up_sample_by_sample_is_a_sum() -> None:
    (hit,) = one_by_one()
    assert hit.severity is Severity.CRITICAL and "a sum over at least 8 terms" in hit.message
    names = {"loss": 147.0, "y": range(64)}
    exec(str(hit.remedy.code), names)
    assert names["loss"] == pytest.approx(147 / 64)  # there may be more than the eight that are known
    assert one_by_one(0.81)[0].severity is Severity.INFO  # an eighth of it is too long as well
    assert not one_by_one(count=7)
    assert not one_by_one(weight=1 / 64)  # a mean
    assert not one_by_one(weight=[1.0] * 7 + [0.5])


def test_a_loss_that_is_added_up_over_whole_batches_has_no_number_to_divide_by() -> None:
    (hit,) = one_by_one(target=(64,))
    assert "by the number of calls of cross_entropy" in hit.remedy.text and hit.remedy.code is None
    assert one_by_one(target=())[0].remedy.code is not None  # a sample's label without a batch


def test_a_cross_entropy_that_is_written_out_is_judged_by_the_classes_of_its_logits() -> None:
    def written(level: float) -> Severity:
        wiring = one_loss("cross_entropy", reduction="sum", input_shape=(64, 10), target_shape=None)
        columns = {"update.ratio": 0.5, "loss.weight": 1.0, "loss.target_count": math.nan}
        losses = {"loss": lambda step: 64 * (10.0 if step < 5 else level)}
        (hit,) = hits(build(columns=columns, wiring=wiring, pulses=losses))
        return hit.severity

    assert written(2.3) is Severity.CRITICAL  # ln 10
    assert written(0.5) is Severity.INFO


def test_probabilities_of_classes_are_one_term() -> None:
    wiring = one_loss("cross_entropy", reduction="sum", classes=10, input_shape=(64, 10), target_shape=(64, 10))
    columns = {"update.ratio": 0.5, "loss.target_count": 640.0}
    (hit,) = hits(build(columns=columns, wiring=wiring, pulses=STUCK))
    assert hit.evidence["terms"] == 64.0


def test_a_sum_whose_weight_is_not_known_may_have_been_divided() -> None:
    wiring = one_loss("cross_entropy", reduction="sum", classes=10, input_shape=(64, 10), target_shape=(64,))
    columns = {"update.ratio": 0.5, "loss.weight": math.nan}
    assert not hits(build(columns=columns, wiring=wiring, pulses=STUCK))
