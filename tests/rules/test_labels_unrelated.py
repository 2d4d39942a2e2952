"""When the question is asked whether labels belong to inputs."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.rules.labels_unrelated import LabelsUnrelated
from gradscope.timeline import Timeline
from tests.timelines import CLASSES
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import one_loss
from tests.timelines import poisoned
from tests.timelines import regressed

STEPS = (*range(12), *range(15, 300, 5))
CHANCE = math.log(CLASSES)
STUCK = {"loss": lambda step: CHANCE * (1 + 0.01 * math.sin(step * 2.3))}


def hits(timeline: Timeline) -> list[Hit]:
    return list(LabelsUnrelated().check(timeline))


def run(columns: dict[str, Any] | None = None, **given: Any) -> Timeline:
    return build(columns=columns, **{"steps": STEPS, "pulses": STUCK, **given})


def test_asks_and_never_warns() -> None:
    (hit,) = hits(run())
    assert hit.severity is Severity.INFO
    assert hit.message.startswith("Do the labels belong to the inputs?")
    assert hit.evidence["chance"] == pytest.approx(CHANCE, rel=1e-5)


def test_the_remedy_trains_a_copy_on_one_batch(capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    (hit,) = hits(run())
    model = torch.nn.Linear(3, 4)
    before = model.weight.detach().clone()
    exec(str(hit.remedy.code), {"torch": torch, "model": model, "x": torch.eye(3), "y": torch.arange(3)})
    assert torch.equal(model.weight, before)
    assert "one batch came to" in capsys.readouterr().out


def test_asks_of_a_regression_too() -> None:
    assert hits(run(regressed(), wiring=one_loss(baseline=1.0), pulses={"loss": lambda step: 1.0 + 0.01 * math.sin(step)}))


def test_the_scatter_of_batches_widens_the_level() -> None:
    def of(scatter: float) -> list[Hit]:
        noisy = {"loss": lambda step: 1.06 + scatter * math.sin(step * 2.3)}
        varied = regressed() | {"loss.target_rms": lambda step: (1 + scatter * math.sin(step * 1.7)) ** 0.5}
        return hits(run(varied, wiring=one_loss(baseline=1.0), pulses=noisy))

    assert of(0.4) and not of(0.02)


@pytest.mark.parametrize("off", [0.95, 1.05])
def test_a_loss_off_the_level_of_chance_is_not_asked_about(off: float) -> None:
    assert not hits(run(pulses={"loss": off * CHANCE}))


def test_coming_down_to_the_level_of_chance_is_not_learning() -> None:
    assert hits(run(pulses={"loss": lambda step: CHANCE * (1.03 - 0.0001 * step)}))
    assert not hits(run(pulses={"loss": lambda step: CHANCE * (1.01 - 0.0001 * step)}))


def test_what_creeps_for_three_hundred_steps_has_not_left_it() -> None:
    """Labels at random that are learned by heart."""
    creeps = {"loss": lambda step: CHANCE * (1.01 - 0.0001 * step)}
    assert hits(run(pulses=creeps, total=320)) and not hits(run(pulses=creeps, total=299))


def test_two_hundred_steps_are_needed() -> None:
    assert LabelsUnrelated().obstacle(run(steps=range(199))) is not None


@pytest.mark.parametrize(
    "columns",
    [
        {"update.ratio": 1e-6},
        {"update.ratio": 0.2},
        {"loss.input_signal": 0.05},
        {"input.rms": 40.0},
        {"input.signal": 0.0},
        {"input.repeated": 1.0},
        {"weight_gradient.norm": {"layers.0.weight": 0.0}},
        {"step.evaluating": 1.0},
        {"step.clip_norm": 100.0, "step.clip_limit": 0.1},
        {"loss.label_entropy": 0.1},
        {"loss.weight": 0.25},
    ],
    ids=str,
)
def test_whatever_else_could_be_wrong_comes_first(columns: dict[str, Any]) -> None:
    assert not hits(run(columns))


def test_parameters_that_are_not_held_and_cuts_come_first() -> None:
    assert not hits(run(optimizers=(OptimizerInfo("SGD", 0.1, ("layers.0.weight",), 0, {}),)))
    assert not hits(run(wiring=classification(cuts=(("layers.0", "layers.2"),))))
    assert not hits(run(wiring=one_loss("cross_entropy", classes=CLASSES, producer="softmax")))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), run(pulses={}), empty(), build(steps=()), poisoned(math.nan), poisoned(math.inf)):
        assert not hits(timeline)
