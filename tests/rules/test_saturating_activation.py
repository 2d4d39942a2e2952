"""When the activation function itself counts as the cause."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.saturating_activation import SaturatingActivation
from gradscope.timeline import Timeline
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import factors_in
from tests.timelines import linear
from tests.timelines import mlp
from tests.timelines import norm
from tests.timelines import poisoned

SIGMOIDS = mlp(20, *[64] * 8, 4, activation="sigmoid", kind="Sigmoid")
TANH = mlp(16, 32, 32, 4, activation="tanh", kind="Tanh")
STUCK = {"loss": 1.386}


def hits(timeline: Timeline) -> list[Hit]:
    return list(SaturatingActivation().check(timeline))


def shrinking(slope: float, net: Net) -> Any:
    """A gradient that shrinks by so many decades from one matrix layer to the one in front."""
    depth = np.arange(len(net.modules)) / 2
    return lambda step: 10.0 ** (-2 - slope * (depth[-1] - depth))


def run(slope: float = 0.82, *, net: Net = SIGMOIDS, pulses: Any = STUCK, **more: Any) -> list[Hit]:
    columns = {"activation_gradient.rms": shrinking(slope, net), "activation.saturated": 0.0}
    return hits(build(net, columns=columns, pulses=pulses, **more))


def flat(share: Any, *, net: Net = TANH, norms: float = 1.0, pulses: Any = STUCK, **more: Any) -> list[Hit]:
    sizes = np.array([norms * math.sqrt(p.size / p.fan_in) for p in net.parameters])
    columns = {"activation.saturated": share, "weight.norm": lambda step: sizes, "activation.rms": 5.5}
    return hits(build(net, columns=columns, pulses=pulses, **more))


def test_a_stack_of_sigmoids_that_takes_the_gradient_away_is_named() -> None:
    (hit,) = run()
    assert hit.modules == tuple(f"layers.{2 * i}" for i in range(8))
    assert (hit.first_step, hit.severity, hit.strength) == (0, Severity.CRITICAL, 4.0)
    assert hit.evidence["decades_per_layer"] == pytest.approx(0.82, rel=1e-3)
    assert "torch.nn.ReLU()" in (hit.remedy.code or "")


def test_severity_follows_what_becomes_of_the_training() -> None:
    assert run(steps=range(6))[0].severity is Severity.WARNING
    assert run(pulses={})[0].severity is Severity.INFO
    biases_alone = {"loss": lambda step: 1.15 + 0.3 * math.exp(-step / 10)}
    assert run(pulses=biases_alone)[0].severity is Severity.WARNING


def test_an_output_that_does_not_vary_over_the_batch_was_brought_down_by_biases() -> None:
    def works(signal: float) -> Severity:
        columns = {"activation_gradient.rms": shrinking(0.82, SIGMOIDS), "loss.input_signal": signal}
        return hits(build(SIGMOIDS, columns=columns))[0].severity

    assert (works(0.0009), works(0.0011)) == (Severity.WARNING, Severity.INFO)


@pytest.mark.parametrize(("share", "severity"), [(0.88, Severity.INFO), (0.93, Severity.WARNING)])
def test_a_hundred_steps_at_the_start_are_what_it_cost(share: float, severity: Severity) -> None:
    def course(end: float) -> Any:
        return {"loss": lambda step: 1.386 if step < 50 else share * 1.386 if step < 150 else end}

    assert run(total=200, pulses=course(0.6))[0].severity is severity
    assert run(total=200, pulses=course(0.01))[0].severity is Severity.INFO  # it has converged all the same


def test_boundaries_of_slope_total_and_depth() -> None:
    assert run(0.58)  # 7 times that is 4.06 decades
    assert not run(0.56)
    deep = mlp(20, *[64] * 20, 4, activation="sigmoid", kind="Sigmoid")
    assert run(0.31, net=deep)
    assert not run(0.29, net=deep)
    assert run(0.85, net=mlp(20, *[64] * 6, 4, activation="sigmoid", kind="Sigmoid"))
    assert not run(0.85, net=mlp(20, *[64] * 5, 4, activation="sigmoid", kind="Sigmoid"))


SOFTMAXES = mlp(64, 64, 48, 32, 6, activation="softmax", kind="Softmax")


def test_hidden_layers_that_end_in_a_softmax_are_named() -> None:
    (hit,) = run(2.1, net=SOFTMAXES)
    assert hit.modules == ("layers.0", "layers.2", "layers.4")
    assert hit.evidence["decades"] == pytest.approx(6.3, rel=1e-3)
    assert "for name in ['layers.1', 'layers.3', 'layers.5']" in (hit.remedy.code or "")
    compile(hit.remedy.code or "", "remedy", "exec")
    assert run(1.1, net=mlp(64, 64, 48, 6, activation="softmax"))
    assert not run(0.9, net=mlp(64, 64, 48, 6, activation="softmax"))
    assert not run(2.1, net=mlp(64, 64, 6, activation="softmax"))


def test_a_softmax_that_weighs_something_and_one_at_the_output_are_not_meant() -> None:
    gates = linear("a", 16, 4, activation="softmax") + linear("b", 16, 4, activation="softmax") + linear("c", 32, 4)
    columns = {"activation_gradient.rms": lambda step: [1e-8, 1e-4, 1.0]}
    assert not hits(build(gates, columns=columns, pulses=STUCK))
    assert not hits(build(linear("a", 4, 4) + linear("b", 4, 4, activation="softmax"), pulses=STUCK))


def test_other_activations_are_a_matter_of_initial_weights() -> None:
    for activation in ("relu", "tanh", "gelu"):
        assert not run(net=mlp(20, *[64] * 8, 4, activation=activation))


def test_normalisation_and_residual_additions_carry_the_gradient_past() -> None:
    assert not run(net=SIGMOIDS + norm("n", 4))
    assert not run(wiring=classification(SIGMOIDS, residual_additions=4))


def test_only_the_state_before_any_update_counts() -> None:
    assert not run(steps=range(5, 50))


def test_tanh_that_begins_at_its_ends_is_named_where_training_stands_still() -> None:
    (hit,) = flat(0.8)
    assert hit.modules == ("layers.0", "layers.2")
    assert (hit.severity, hit.first_step) == (Severity.WARNING, 0)
    factors = factors_in(hit.remedy.code or "")
    assert factors["layers.0"] == pytest.approx(0.2)  # from an rms of 5.5 to 1.1


def test_a_start_at_the_ends_is_an_aside_until_then() -> None:
    assert flat(0.8, steps=range(6))[0].severity is Severity.INFO
    assert flat(0.8, pulses={})[0].severity is Severity.INFO


def test_boundary_of_the_share() -> None:
    assert flat(0.51)
    assert not flat(0.49)
    assert flat({"layers.0": 0.8, "layers.2": 0.0})
    assert not flat({"layers.0": 0.8, "layers.2": 0.0, "layers.4": 0.0}, net=mlp(8, 8, 8, 8, 8, 4, activation="tanh"))


def test_saturation_that_comes_later_is_a_symptom() -> None:
    assert not flat(lambda step: 0.8 if step else 0.1)


def test_weights_that_are_too_large_are_to_blame_themselves() -> None:
    assert flat(0.8, norms=1.0)
    assert not flat(0.8, norms=3.0)


def test_the_output_may_saturate() -> None:
    assert not flat({"layers.0": 0.1, "layers.2": 0.1, "layers.4": 0.9})


def test_it_explains_the_rules_that_blame_the_weights_of_a_sigmoid_net() -> None:
    assert {"init-too-small", "vanishing-gradients", "saturated-units"} <= set(SaturatingActivation.explains)


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for net in (SIGMOIDS, TANH):
        timelines = (build(net), build(net, steps=(), total=50), poisoned(math.nan, net=net), poisoned(math.inf, net=net))
        for timeline in (*timelines, build(), empty()):
            assert not hits(timeline)
