"""When Adam's second moment counts as having fallen behind."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import ModuleInfo
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.rules.adam_second_moment_lag import AdamSecondMomentLag
from gradscope.timeline import Timeline
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import mlp
from tests.timelines import parameter
from tests.timelines import poisoned

NET = mlp(32, 64, 64, 4)  # 2,048 and 4,096 elements, and 256
STEPS = range(100)


def adam(net: Net = NET, *, beta2: float = 0.999) -> OptimizerInfo:
    return OptimizerInfo("Adam", 1e-3, tuple(p.name for p in net.parameters), 0, {"beta1": 0.9, "beta2": beta2, "eps": 1e-8})


def hits(timeline: Timeline) -> list[Hit]:
    return list(AdamSecondMomentLag().check(timeline))


def spike(at: int, *, level: float = 1.3) -> Any:
    """A loss that stands, and is eight times as high for three steps."""
    return lambda step: level * (8 if at <= step < at + 3 else 1 + 0.01 * math.sin(9 * step))


SPIKE = spike(63)


def ratio(value: float, *, at: int = 60, quiet: float = 0.3) -> Any:
    """A ratio of ``quiet`` from step 30 to the one at which it is ``value``, and of 1 elsewhere."""
    return lambda step: value if step == at else (quiet if 30 < step < at else 1.0)


def run(
    ratios: Any, *, loss: Any = SPIKE, tensor: str = "layers.2.weight", net: Net = NET, columns: Any = None, **more: Any
) -> list[Hit]:
    given = {"update.second_moment_ratio": {tensor: ratios}, **(columns or {})}
    optimizers = more.pop("optimizers", (adam(net),))
    return hits(build(net, steps=STEPS, columns=given, pulses={"loss": loss}, optimizers=optimizers, **more))


def test_a_spike_soon_after_a_gradient_that_the_moment_did_not_know_is_named() -> None:
    (hit,) = run(ratio(12.0))
    assert (hit.modules, hit.first_step, hit.last_step) == (("layers.2",), 60, 63)
    assert hit.evidence["ratio"] == pytest.approx(12.0)
    assert hit.severity is Severity.WARNING


def test_the_remedy_shortens_the_memory() -> None:
    (hit,) = run(ratio(12.0))
    assert '(group["betas"][0], 0.95)  # was 0.999' in (hit.remedy.code or "")
    (hit,) = run(ratio(12.0), optimizers=(adam(beta2=0.95),))
    assert "clip_grad_norm_" in (hit.remedy.code or "")


def test_boundaries_of_ratio_size_and_step() -> None:
    assert run(ratio(5.1))
    assert not run(ratio(4.9))
    assert not run(ratio(12.0), tensor="layers.4.weight")
    assert not run(ratio(12.0, at=20), loss=spike(23))
    assert run(ratio(12.0, at=21), loss=spike(23))


def test_the_loss_must_spike_after_the_step_and_soon() -> None:
    assert not run(ratio(12.0), loss=1.3)
    assert not run(ratio(12.0), loss=spike(69))
    assert run(ratio(12.0), loss=spike(68))
    assert not run(ratio(12.0), loss=spike(59))  # before the step: the batch's fault


def leapt_at(step: int) -> dict[str, Any]:
    """A gradient norm that is a hundred times as large from a step on."""
    return {"gradient_norm": lambda at: 100.0 if at >= step else 1.0}


def test_the_loss_has_to_be_ordinary_at_the_step_where_the_gradient_leapt() -> None:
    (hit,) = hits(with_norms(leapt_at(60), spike=61, sampled=64))
    assert (hit.first_step, hit.last_step, hit.evidence["leap_step"]) == (60, 61, 60)
    assert not hits(with_norms(leapt_at(61), spike=61, sampled=64))  # the loss made the gradient large
    assert hits(with_norms(leapt_at(60), spike=61, sampled=67))
    assert not hits(with_norms(leapt_at(60), spike=61, sampled=68))  # too late to be its ratio


def with_norms(norms: dict[str, Any], *, spike: int, sampled: int) -> Timeline:
    high = {"update.second_moment_ratio": {"layers.2.weight": lambda step: 12.0 if step == sampled else 1.0}}
    loss = {"loss": lambda step: 1.3 * (8 if spike <= step < spike + 9 else 1 + 0.01 * math.sin(9 * step))}
    return build(NET, steps=STEPS, columns=high, pulses={**loss, **norms}, optimizers=(adam(),))


def test_a_loss_that_stays_high_for_twenty_steps_is_no_aside() -> None:
    def severity(lasting: int) -> Severity:
        falling = lambda step: 1.3 * math.exp(-step / 50) * (4 if 63 <= step < 63 + lasting else 1)  # noqa: E731
        return run(ratio(12.0), loss=falling)[0].severity

    assert severity(3) is Severity.INFO
    assert severity(20) is Severity.WARNING


def test_an_outlier_in_the_data_is_not_the_moments_fault() -> None:
    leap = {"input.absmax": lambda step: 3000.0 if step == 60 else 3.0}
    assert not run(ratio(12.0), columns=leap)


def test_sparse_gradients_and_embeddings_are_not_judged() -> None:
    assert not run(ratio(12.0), columns={"weight_gradient.zero": 0.9})
    words = parameter("words.weight", (500, 16))
    net = Net((ModuleInfo("words", "Embedding", "embedding", ("words.weight",)),), (words,)) + linear("head", 16, 4)
    assert not run(ratio(12.0), net=net, tensor="words.weight")


def test_where_training_works_it_is_an_aside() -> None:
    falling = lambda step: 1.3 * math.exp(-step / 50) * (8 if 63 <= step < 66 else 1)  # noqa: E731
    assert run(ratio(12.0), loss=falling)[0].severity is Severity.INFO


def test_players_against_one_another_are_left_alone() -> None:
    assert not run(ratio(12.0), shared_process=True)


def test_a_blow_up_soon_after_makes_it_critical_and_what_comes_later_proves_nothing() -> None:
    broken = lambda step: math.nan if step > 70 else spike(63)(step)  # noqa: E731
    assert run(ratio(12.0), loss=broken)[0].severity is Severity.CRITICAL
    earlier = lambda step: math.nan if step > 50 else 1.3  # noqa: E731
    assert not run(ratio(12.0), loss=earlier)


def test_columns_with_gaps_are_read_where_they_were_captured() -> None:
    assert run(lambda step: ratio(12.0)(step) if step % 4 == 0 else math.nan)


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    assert not run(3.5)
    assert not hits(build(NET))
    assert not hits(empty())
    for value in (math.nan, math.inf, 0.0):
        assert not hits(poisoned(value, net=NET))


def test_the_gradient_leapt_where_the_loss_was_given_a_larger_weight() -> None:
    def loss(step: int) -> float:
        return 1e-3 if step < 60 else (12.0 if 61 <= step < 64 else 1.0)

    columns = {"loss.weight": lambda step: 1e-3 if step < 60 else 1.0}
    (hit,) = run(ratio(12.0, at=62), loss=loss, columns=columns)
    assert (hit.first_step, hit.evidence["spike_step"]) == (60, 61)
    assert not run(ratio(12.0, at=62), loss=loss)
