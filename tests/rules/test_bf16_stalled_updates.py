"""When updates count as lost to rounding."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.bf16_stalled_updates import Bf16StalledUpdates
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned

STUCK = {"loss": lambda step: 1.4 + 0.01 * math.sin(7 * step), "learning_rate": 1e-4}

FALLING = {"loss": lambda step: 1.4 - 0.0005 * step}


def stored(dtype: str) -> Net:
    return Net(SMALL.modules, tuple(replace(p, dtype=dtype) for p in SMALL.parameters))


BF16 = stored("bfloat16")


def hits(timeline: Timeline) -> list[Hit]:
    return list(Bf16StalledUpdates().check(timeline))


def run(unchanged: Any = 0.987, *, zero: Any = 0.0, net: Net = BF16, pulses: Any = STUCK, **more: Any) -> list[Hit]:
    columns = {"update.unchanged": unchanged, "weight_gradient.zero": zero}
    return hits(build(net, columns=columns, pulses=pulses, **more))


def test_weights_that_rounding_holds_in_place_are_named() -> None:
    (hit,) = run()
    assert hit.modules == ("layers.0", "layers.2", "layers.4")
    assert hit.severity is Severity.CRITICAL
    assert hit.evidence["unchanged"] == pytest.approx(0.987)
    assert "model.float()" in (hit.remedy.code or "")
    assert run(net=stored("float16"))


def test_a_training_that_works_all_the_same_gets_an_aside() -> None:
    assert run(0.67, pulses={})[0].severity is Severity.INFO
    halfway = {"loss": lambda step: 1.4 - 0.006 * step}
    assert run(0.89, pulses=halfway)[0].severity is Severity.INFO
    assert run(0.91, pulses=halfway)[0].severity is Severity.WARNING


def test_most_unchanged_is_a_warning_where_next_to_nothing_was_learned() -> None:
    assert run(0.76, pulses=FALLING)[0].severity is Severity.WARNING
    assert run(0.76, pulses=FALLING, steps=range(99))[0].severity is Severity.INFO


def test_up_to_seventy_percent_the_others_are_enough() -> None:
    assert run(0.69)[0].severity is Severity.INFO
    assert run(0.71)[0].severity is Severity.CRITICAL


def test_nearly_all_unchanged_is_a_warning_as_long_as_the_loss_is_high() -> None:
    assert run(0.91, pulses=FALLING)[0].severity is Severity.WARNING
    assert run(0.91, pulses=FALLING, steps=range(99))[0].severity is Severity.INFO
    assert run(0.91, pulses={})[0].severity is Severity.INFO
    kahan = replace(build(BF16).info.optimizers[0], type="KahanAdamW")
    assert run(0.91, pulses=FALLING, optimizers=(kahan,))[0].severity is Severity.INFO


def test_the_first_fifty_steps_are_an_aside() -> None:
    assert run(steps=range(49))[0].severity is Severity.INFO
    assert run(steps=range(50))[0].severity is Severity.WARNING


def test_boundary_of_the_share() -> None:
    assert run(0.51)
    assert not run(0.49)


def test_elements_without_gradient_are_not_counted() -> None:
    assert not run(0.9, zero=0.85)
    assert run(0.9, zero=0.5)
    assert not run(1.0, zero=1.0)


def test_float32_is_never_meant() -> None:
    assert not run(net=SMALL)
    assert "bfloat16" in (Bf16StalledUpdates().obstacle(build()) or "")
    assert Bf16StalledUpdates().obstacle(build(BF16)) is None


def test_small_steps_on_purpose_are_left_alone() -> None:
    assert not run(pulses=STUCK | {"learning_rate": lambda step: 1e-6 * step})
    assert not run(pulses=STUCK | {"learning_rate": 0.0})
    ended = {"learning_rate": lambda step: 1e-2 if step < 3 else 1e-5}
    assert not run(lambda step: 0.1 if step < 3 else 0.99, pulses=STUCK | ended)


def test_it_takes_five_sampled_steps_with_a_gradient() -> None:
    assert not run(steps=range(4))
    assert not hits(build(BF16, columns={"update.unchanged": 0.99, "weight_gradient.norm": 0.0}, pulses=STUCK))


def test_it_explains_a_rate_that_looks_too_low() -> None:
    assert {"lr-too-low", "weights-not-moving", "loss-plateau"} <= set(Bf16StalledUpdates.explains)


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    timelines = (build(), build(BF16), empty(), build(BF16, steps=(), total=50), poisoned(0.0, net=BF16))
    for timeline in (*timelines, poisoned(math.nan, net=BF16), poisoned(math.inf, net=BF16)):
        assert not hits(timeline)
