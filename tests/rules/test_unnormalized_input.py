"""When an input counts as not normalised."""

from __future__ import annotations

import math

import pytest

from gradscope.records import Hit
from gradscope.records import ModuleInfo
from gradscope.records import Severity
from gradscope.records import StepQuality
from gradscope.rules.unnormalized_input import UnnormalizedInput
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import Net
from tests.timelines import Values
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import module
from tests.timelines import norm
from tests.timelines import one_loss
from tests.timelines import parameter
from tests.timelines import poisoned
from tests.timelines import regressed

STUCK = {"loss": 1.4}
BLOWN_UP = {"loss": lambda step: 1.4 if step < 3 else math.nan}


def hits(timeline: Timeline) -> list[Hit]:
    return list(UnnormalizedInput().check(timeline))


def pixels(**kinds: Values) -> dict[str, Values]:
    """Inputs like these, as the first layer takes them."""
    return {f"input.{name}": value for name, value in kinds.items()} | taken(kinds["rms"])


def taken(rms: Values) -> dict[str, Values]:
    """What the first layer puts out of inputs of this size."""
    return {"activation.rms": {"layers.0": rms}}


def test_raw_pixels_are_named_with_the_remedy_worked_out() -> None:
    (hit,) = hits(build(columns=pixels(rms=math.hypot(33.0, 78.0), mean=33.0, signal=60.0), pulses=STUCK))
    assert hit.modules == ("x",)
    assert hit.first_step == 0
    assert "84.7" in hit.message
    assert hit.remedy.code is not None
    assert "(x - 33) / 78" in hit.remedy.code
    assert hit.evidence["std"] == pytest.approx(78.0, rel=1e-4)


def test_it_is_critical_where_training_blew_up_or_stands_still_and_an_aside_where_it_works() -> None:
    raw = pixels(rms=100.0)
    assert hits(build(columns=raw, pulses=BLOWN_UP))[0].severity is Severity.CRITICAL
    assert hits(build(columns=raw, pulses=STUCK))[0].severity is Severity.CRITICAL
    assert hits(build(columns=raw, pulses=STUCK, steps=range(5)))[0].severity is Severity.WARNING
    assert hits(build(columns=raw))[0].severity is Severity.INFO


def test_a_measured_remedy_makes_it_sure_and_smaller_inputs_count() -> None:
    def of(rms: float, without: float) -> list[Hit]:
        probe = StepQuality(0, 9.9, 3.0, 30.0, -50.0, 0.1, {"unnormalized-input": without})
        return hits(build(columns=pixels(rms=rms), pulses=STUCK, probes=(probe,)))

    assert not of(2.9, 0.2) and not of(3.1, 1.2)
    (hit,) = of(3.1, 0.2)
    assert (hit.strength, hit.evidence["overshoot_without"]) == (5.0, 0.2)


def test_boundaries_of_scale() -> None:
    assert not hits(build(columns=pixels(rms=9.9), pulses=STUCK, steps=range(5)))
    assert hits(build(columns=pixels(rms=10.1), pulses=STUCK, steps=range(5)))
    assert not hits(build(columns=pixels(rms=0.011), pulses=STUCK))
    assert hits(build(columns=pixels(rms=0.009), pulses=STUCK))


def test_a_smaller_scale_counts_where_training_blew_up() -> None:
    assert hits(build(columns=pixels(rms=7.7), pulses=BLOWN_UP))
    assert not hits(build(columns=pixels(rms=4.9), pulses=BLOWN_UP))


def test_a_mean_far_from_zero_counts() -> None:
    assert hits(build(columns=pixels(rms=math.hypot(5.1, 1.0), mean=-5.1), pulses=STUCK, steps=range(5)))
    assert not hits(build(columns=pixels(rms=math.hypot(4.9, 1.0), mean=4.9), pulses=STUCK, steps=range(5)))


def test_a_mean_that_drowns_the_spread_in_float32_takes_the_spread_over_the_batch() -> None:
    (hit,) = hits(build(columns=pixels(rms=1e6, mean=1e6, signal=20.0), pulses=STUCK))
    assert hit.evidence["std"] == 20.0


def test_a_first_layer_that_takes_any_scale_is_left_alone() -> None:
    embedding = module("embedding", "Embedding", "embedding")
    for first in (norm("norm", 16), embedding):
        assert not hits(build(first + SMALL, columns=pixels(rms=100.0), pulses=STUCK))
    assert hits(build(SMALL + norm("norm", 4), columns=pixels(rms=100.0), pulses=STUCK))


def test_a_model_that_scales_its_input_itself_is_left_alone() -> None:
    raw = {"input.rms": 20.0}
    assert not hits(build(columns=raw | taken(1.0), pulses=STUCK))
    assert not hits(build(columns={"input.rms": 0.004, "input.signal": 0.004} | taken(1.0), pulses=STUCK))
    small = {"input.rms": 0.004, "input.signal": 0.004, "activation.signal": {"layers.0": 0.004}}
    assert hits(build(columns=small | taken(0.2), pulses=STUCK))  # the biases' doing
    assert hits(build(columns=raw | taken(10.0), pulses=STUCK))
    assert hits(build(columns=raw | {"activation.rms": {"layers.0": 1.0, "layers.2": 20.0}}, pulses=STUCK))  # a branch
    assert hits(build(columns=raw | taken(1.0), steps=range(5, 20), pulses=STUCK))  # of weights that are trained already
    two = build(columns=raw | taken(1.0), inputs=("x", "z"), pulses=STUCK)
    assert hits(two)


def test_what_is_not_known_to_be_scaled_counts() -> None:
    for kind, role in (("MultiheadAttention", "attention"), ("Own", "other")):
        weight = parameter("first.weight", (48, 16))
        first = Net((ModuleInfo("first", kind, role, (weight.name,)),), (weight,))
        assert hits(build(first + SMALL, columns={"input.rms": 20.0} | taken(1.0), pulses=STUCK))


def test_what_recurrent_layers_take_is_told_by_their_gradients() -> None:
    weight, bias = parameter("cell.weight_ih_l0", (32, 16)), parameter("cell.bias_ih_l0", (32,))
    cell = Net((ModuleInfo("cell", "GRU", "recurrent", (weight.name, bias.name)),), (weight, bias))

    def of(weights: float, mean: float) -> list[Hit]:
        norms = {"weight_gradient.norm": {weight.name: 4 * weights, bias.name: 1.0}}
        columns = {"input.rms": 100.0, "input.mean": mean} | taken(1.0) | norms
        return hits(build(cell + SMALL, columns=columns, pulses=STUCK, steps=range(5)))

    assert not of(1.0, 99.0)
    assert of(50.0, 99.0)
    assert of(1.0, 0.0)  # such gradients may have cancelled out


def test_a_loss_that_only_fell_does_not_make_it_work() -> None:
    """It fell by a third; half of a constant prediction's is 0.69."""
    fallen = {"loss": lambda step: 0.8 + 0.6 * math.exp(-step / 10)}
    numb = {"activation.saturated": {"layers.1": 0.9}}
    assert hits(build(columns=pixels(rms=100.0), pulses=fallen))[0].severity is Severity.INFO
    assert hits(build(columns=pixels(rms=100.0) | numb, pulses=fallen))[0].severity is Severity.WARNING
    far = {"loss": lambda step: 1e6 * math.exp(-step / 10) + 3}
    assert hits(build(columns=pixels(rms=100.0), pulses=far))[0].severity is Severity.WARNING
    assert hits(build(columns=pixels(rms=100.0) | numb))[0].severity is Severity.INFO


def test_an_absolute_error_above_what_the_mean_costs_does_not_work() -> None:
    def of(last: float, total: int = 150) -> Severity:
        fallen = {"loss": lambda step: last + 500 * math.exp(-step / 10)}
        columns = pixels(rms=100.0) | regressed() | {"loss.input_rms": 500.0}
        return hits(build(columns=columns, wiring=one_loss("l1"), pulses=fallen, total=total))[0].severity

    assert of(8.0) is Severity.WARNING
    assert of(0.7) is Severity.INFO  # one standard deviation is the most that the mean costs
    assert of(8.0, total=99) is Severity.INFO


def test_columns_that_lie_apart_are_standardised_one_by_one() -> None:
    (hit,) = hits(build(columns=pixels(rms=780.0, mean=400.0, signal=120.0), pulses=STUCK))
    assert "x.mean(0)" in (hit.remedy.code or "")
    (hit,) = hits(build(columns=pixels(rms=780.0, mean=400.0, signal=600.0), pulses=STUCK))
    assert "(x - 400)" in (hit.remedy.code or "")


def test_constant_inputs_and_masks_are_left_alone() -> None:
    assert not hits(build(columns=pixels(rms=128.0, mean=128.0, signal=0.0), pulses=STUCK))
    assert not hits(build(columns=pixels(rms=0.0, mean=0.0, signal=0.0), pulses=STUCK))
    assert not hits(build(columns=pixels(rms=1e30, absmax=3e38), pulses=STUCK))
    times = {"input.rms": {"t": 4.8e8}, "input.absmax": {"t": 1.6e9}, "input.signal": {"t": 1e6}}
    assert hits(build(columns=times | taken(4.8e8), inputs=("t",), pulses=STUCK))
    assert not hits(build(columns=times | taken(4.8e8), inputs=("x", "t"), pulses=STUCK))
    assert not hits(build(columns=pixels(rms=0.3, mean=0.3, signal=1e-8), pulses=STUCK))


def test_the_mean_of_one_input_among_several_says_nothing() -> None:
    columns = {"input.mean": {"mask": 0.99}, "input.rms": {"mask": 0.995}}
    assert not hits(build(columns=columns, inputs=("x", "mask"), pulses=STUCK, steps=range(5)))


def test_one_bad_batch_does_not_count() -> None:
    assert not hits(build(columns=pixels(rms=lambda step: 1e4 if step == 4 else 1.0), pulses=STUCK))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), poisoned(math.nan), poisoned(math.inf)):
        assert not hits(timeline)
