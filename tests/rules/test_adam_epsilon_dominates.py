"""When Adam's eps counts as too large beside the gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.rules.adam_epsilon_dominates import AdamEpsilonDominates
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned

STUCK = {"loss": lambda step: 1.39 + 0.01 * math.sin(7 * step)}
STEPS = (*range(12), *range(15, 200, 5))


def adam(eps: float) -> OptimizerInfo:
    return OptimizerInfo("Adam", 1e-3, tuple(p.name for p in SMALL.parameters), 0, {"beta2": 0.999, "eps": eps})


def hits(timeline: Timeline) -> list[Hit]:
    return list(AdamEpsilonDominates().check(timeline))


def run(share: Any = 0.9, *, gradient: float = 1e-4, eps: float = 1e-3, pulses: Any = STUCK, **more: Any) -> list[Hit]:
    """Elements of all matrices whose gradients have an rms of ``gradient``."""
    norms = {p.name: gradient * math.sqrt(p.size) for p in SMALL.parameters}
    columns = {"update.epsilon_share": share, "weight_gradient.norm": norms, **more.pop("columns", {})}
    return hits(build(columns=columns, pulses=pulses, **({"optimizers": (adam(eps),), "steps": STEPS} | more)))


def test_an_eps_above_all_gradients_of_a_training_that_stands_still_is_named() -> None:
    (hit,) = run()
    assert hit.modules == ("layers.0", "layers.2", "layers.4")
    assert hit.severity is Severity.CRITICAL
    assert hit.evidence["gradient"] == pytest.approx(1e-4)
    assert 'group["eps"] = 1e-08  # was 0.001' in (hit.remedy.code or "")


def test_the_remedy_is_a_hundredth_of_the_gradient_or_a_larger_loss() -> None:
    assert 'group["eps"] = 3e-12 ' in (run(gradient=3e-10, eps=1e-8)[0].remedy.code or "")
    (hit,) = run(gradient=1e-19, eps=1e-8)
    assert hit.remedy.code == "(1e+12 * loss).backward()"


def test_gradients_that_die_on_their_way_are_not_the_eps_fault() -> None:
    (hit,) = run({"layers.0.weight": 1.0, "layers.2.weight": 0.8, "layers.4.weight": 0.0})
    assert (hit.severity, hit.modules) == (Severity.INFO, ("layers.0", "layers.2"))


def test_boundary_of_the_share() -> None:
    assert run(0.51)
    assert not run(0.49)


def test_a_layer_without_gradient_is_another_matter() -> None:
    assert not run(gradient=0.0)


def test_three_of_the_last_five_captured_samples_must_show_it() -> None:
    assert run(lambda step: 0.9 if step % 20 == 0 else math.nan)
    assert not run(lambda step: 0.9 if step < 150 else 0.1)


@pytest.mark.parametrize(
    "pulses",
    [{}, {"loss": 0.01}, STUCK | {"learning_rate": lambda step: 1e-5 * step}],
    ids=["works", "converged", "warms up"],
)
def test_trainings_that_go_well_or_warm_up_are_left_alone(pulses: Any) -> None:
    assert not run(pulses=pulses)


def test_a_loss_that_falls_all_the_same_makes_it_an_aside_unless_steps_are_tiny() -> None:
    falls = {"loss": lambda step: 1.39 - 0.001 * step}
    assert run(pulses=falls)[0].severity is Severity.INFO
    assert run(pulses=falls, columns={"update.ratio": 0.9e-4})[0].severity is Severity.WARNING
    assert run(pulses=falls, columns={"update.ratio": 1.1e-4})[0].severity is Severity.INFO


def test_a_loss_that_crawls_down_from_a_constants_where_all_of_every_matrix_drowns_is_named() -> None:
    def crawling(share: Any, fall: float, steps: int = 300) -> Severity:
        pulses = {"loss": lambda step: 1.39 - fall * step / steps}
        (hit,) = run(share, pulses=pulses, columns={"update.ratio": 1.4e-4}, total=steps, steps=range(0, steps, 10))
        return hit.severity

    assert crawling(0.99, 0.08) is Severity.WARNING
    assert crawling(0.99, 0.3) is Severity.INFO
    assert crawling(0.6, 0.08) is Severity.INFO
    assert crawling(0.99, 0.08, steps=150) is Severity.INFO


def test_one_matrix_that_drowns_while_the_loss_falls_is_no_fault() -> None:
    falls = {"loss": lambda step: 1.39 - 0.001 * step}
    shares = {"layers.0.weight": 0.0, "layers.2.weight": 0.0, "layers.4.weight": 1.0}
    assert not run(shares, pulses=falls, columns={"update.ratio": 1e-5})


def test_a_loss_that_is_scaled_down_has_not_gone_well() -> None:
    tiny = {"loss": lambda step: 1e-12 * (1.39 - 0.001 * step)}
    assert run(pulses=tiny, columns={"loss.weight": 1e-12, "update.ratio": 1e-6})[0].severity is Severity.WARNING


def test_several_players_are_left_alone() -> None:
    assert not run(shared_process=True)


def test_it_asks_for_a_hundred_steps() -> None:
    timeline = build(steps=range(99), columns={"update.epsilon_share": 0.9})
    assert AdamEpsilonDominates().obstacle(timeline) == "needs 100 steps, the run has 99"


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), poisoned(math.nan), poisoned(math.inf), poisoned(0.0)):
        assert not hits(timeline)


def test_the_code_multiplies_the_gradient() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.ones(1, requires_grad=True)
    (hit,) = run(gradient=3e-22, eps=1e-8)
    exec(str(hit.remedy.code), {"loss": (2 * weight).sum()})
    assert weight.grad.item() == pytest.approx(2e12)
