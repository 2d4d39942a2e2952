from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.records import Stray
from gradscope.records import Wiring
from gradscope.rules.optimizer_misses_parameters import OptimizerMissesParameters
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import poisoned

HEAD = OptimizerInfo("AdamW", 0.001, ("layers.4.weight",), 0, {"weight_decay": 0.05})
STALE = OptimizerInfo("SGD", 0.05, (), 6, {"momentum": 0.9})
STANDING = {"layers.0.weight": 5.0, "layers.2.weight": 8.0}


def hits(timeline: Timeline) -> list[Hit]:
    return list(OptimizerMissesParameters().check(timeline))


def partial(**changes: Any) -> Timeline:
    return build(**({"optimizers": [HEAD], "columns": {"weight.norm": STANDING}} | changes))


def stale(**changes: Any) -> Timeline:
    given = {"optimizers": [STALE], "pulses": {"foreign": 1.0}, "columns": {"weight.norm": 5.0}, "steps": range(40)}
    return build(**(given | changes))


def test_names_the_parameters_that_no_optimizer_holds() -> None:
    (hit,) = hits(partial())
    assert hit.modules == ("layers.0", "layers.2")
    assert "layers.0.weight and layers.2.weight" in hit.message
    assert (hit.first_step, hit.last_step) == (0, 95)
    assert "torch.optim.AdamW(model.parameters(), lr=0.001, weight_decay=0.05)" in (hit.remedy.code or "")
    assert hit.severity is Severity.CRITICAL


def test_is_a_warning_where_most_of_the_model_trains() -> None:
    most = OptimizerInfo("SGD", 0.1, ("layers.0.weight", "layers.2.weight"), 0, {})
    (hit,) = hits(partial(optimizers=[most], columns={"weight.norm": {"layers.4.weight": 3.0}}))
    assert hit.modules == ("layers.4",)
    assert hit.severity is Severity.WARNING


def test_is_silent_on_a_healthy_run() -> None:
    assert not hits(build())


def test_is_silent_where_somebody_else_moves_the_parameters() -> None:
    assert not hits(build(optimizers=[HEAD]))  # norms grow by default


def replaced_head(*, strangers: int, until: int) -> Timeline:
    """The head moves until a step, and stands still from then on; the optimizer holds the other layers."""
    others = OptimizerInfo("SGD", 0.1, ("layers.0.weight", "layers.2.weight"), strangers, {})
    return partial(
        optimizers=[others],
        columns={"weight.norm": {"layers.4.weight": lambda step: 3.0 + min(step, until)}},
        steps=range(40),
    )


def test_names_what_was_put_in_the_place_of_a_layer_that_the_optimizer_still_holds() -> None:
    (hit,) = hits(replaced_head(strangers=2, until=20))
    assert hit.modules == ("layers.4",)
    assert hit.first_step == 20
    assert "in 20 sampled steps from step 20 on, without changing: no optimizer holds them" in hit.message


@pytest.mark.parametrize(("strangers", "until"), [(0, 20), (2, 35), (2, 39)])
def test_is_silent_where_nothing_tells_of_a_replacement_or_it_is_too_recent(strangers: int, until: int) -> None:
    assert not hits(replaced_head(strangers=strangers, until=until))


def test_is_silent_on_frozen_parameters() -> None:
    net = linear("body", 16, 16, trainable=False) + linear("head", 16, 4)
    assert not hits(build(net, columns={"weight.norm": {"body.weight": 5.0}}))


def test_is_silent_on_parameters_without_gradient() -> None:
    without = {"layers.0.weight": math.nan, "layers.2.weight": 0.0}
    assert not hits(partial(columns={"weight.norm": STANDING, "weight_gradient.norm": without}))


def test_is_silent_on_parameters_tied_to_one_that_is_held() -> None:
    tied = type(SMALL)(SMALL.modules, tuple(type(p)(**{**p.__dict__, "tied": ("layers.4.weight",)}) for p in SMALL.parameters))
    assert not hits(partial(net=tied))


@pytest.mark.parametrize(("steps", "count"), [((0, 10, 20, 30, 40), 1), ((0, 10, 20, 30, 39), 0), ((0, 10, 20, 40), 0)])
def test_five_sampled_steps_do_where_they_lie_far_apart(steps: tuple[int, ...], count: int) -> None:
    thawed = {name: lambda step: math.nan if step < 60 else 0.1 for name in STANDING}
    timeline = partial(
        columns={"weight.norm": STANDING, "weight_gradient.norm": thawed},
        steps=(*range(0, 60, 5), *(60 + step for step in steps)),
        total=300,
    )
    assert len(hits(timeline)) == count


@pytest.mark.parametrize(("steps", "count"), [(9, 0), (10, 1)])
def test_ten_sampled_steps_are_needed(steps: int, count: int) -> None:
    assert len(hits(partial(steps=range(steps)))) == count


def test_an_optimizer_of_another_model_is_found() -> None:
    (hit,) = hits(stale())
    assert hit.severity is Severity.CRITICAL
    assert "6 tensors that SGD holds" in hit.message and "40 optimizer steps" in hit.message
    assert "torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)" in (hit.remedy.code or "")


def test_an_optimizer_of_another_model_is_found_without_frames_or_optimizers() -> None:
    assert len(hits(build(optimizers=[], pulses={"foreign": 1.0}, steps=(), total=20))) == 1
    assert OptimizerMissesParameters().obstacle(stale()) is None


@pytest.mark.parametrize(("steps", "count"), [(5, 0), (6, 1)])
def test_a_critic_may_step_five_times_before_its_actor(steps: int, count: int) -> None:
    assert len(hits(stale(steps=range(steps)))) == count


def test_is_silent_where_the_other_optimizer_is_another_players() -> None:
    assert not hits(stale(optimizers=[STALE, HEAD], pulses={"foreign": lambda step: step % 2}, columns={}))
    assert not hits(stale(wiring=Wiring(graphs=3)))  # no loss reaches this model: a teacher
    assert not hits(stale(columns={}))  # it moves


def test_survives_what_is_not_finite_or_not_there() -> None:
    assert not hits(empty())
    for value in (math.nan, math.inf):
        hits(poisoned(value))


def strayed(*strays: Stray, **changes: Any) -> Timeline:
    return build(**({"wiring": classification(strays=strays)} | changes))


def test_names_layers_that_the_model_does_not_know() -> None:
    layers = [Stray(f"encoder.hidden[{i}]", "Linear", 2000) for i in range(4)]
    (hit,) = hits(strayed(*layers))
    assert "Linear in encoder.hidden[0], encoder.hidden[1], encoder.hidden[2] and 1 more" in hit.message
    assert hit.severity is Severity.CRITICAL and hit.evidence["elements"] == 8000
    assert hit.remedy.code == "self.hidden = torch.nn.ModuleList(hidden)  # in __init__, in place of the plain one"
    assert hits(strayed(Stray("h[0]", "Linear", 20)))[0].severity is Severity.WARNING


def test_the_remedy_goes_by_what_holds_them() -> None:
    assert "nn.ModuleDict" in hits(strayed(Stray("heads['a']", "Linear", 20)))[0].remedy.text
    assert "an nn.Module" in hits(strayed(Stray("encoder.layer", "Linear", 20)))[0].remedy.text
    assert "in __init__" in hits(strayed(Stray("", "Parameter of shape (4, 4)", 16)))[0].remedy.text


def test_ten_sampled_steps_are_needed_for_layers_that_the_model_does_not_know() -> None:
    assert not hits(strayed(Stray("h[0]", "Linear", 20), steps=range(9)))
    assert hits(strayed(Stray("h[0]", "Linear", 20), steps=range(10)))


def test_names_layers_that_were_unfrozen_without_telling_the_optimizer() -> None:
    net = linear("body", 16, 16, trainable=False) + linear("head", 16, 4)
    later = {"body.weight": lambda step: 0.2 if step >= 15 else math.nan}
    (hit,) = hits(build(net, columns={"weight.norm": {"body.weight": 5.0}, "weight_gradient.norm": later}))
    assert hit.evidence["parameters"] == ["body.weight"]
    assert hit.first_step == 15
    assert hit.evidence["share"] == pytest.approx(0.8)


def test_the_code_makes_the_layers_the_models_own() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Module()
    model.hidden = [torch.nn.Linear(2, 2)]
    (hit,) = hits(strayed(Stray("hidden[0]", "Linear", 6)))
    assert not list(model.parameters())
    exec(str(hit.remedy.code), {"torch": torch, "self": model, "hidden": model.hidden})
    assert len(list(model.parameters())) == 2


# -- steps by hand

PASSED_OVER = {"layers.0.weight": 1.0, "layers.2.weight": 0.0, "layers.4.weight": 0.0}


def by_hand(**changes: Any) -> Timeline:
    columns = {"weight.norm": {"layers.0.weight": 5.0}, "update.unchanged": PASSED_OVER}
    given = {"optimizers": [], "by_hand": True, "columns": columns | changes.pop("columns", {})}
    return build(**(given | changes))


def test_names_what_steps_by_hand_leave_out() -> None:
    (hit,) = hits(by_hand())
    assert hit.modules == ("layers.0",)
    assert "the steps by hand leave them out" in hit.message
    assert "optimizer" not in hit.remedy.text + (hit.remedy.code or "")


@pytest.mark.parametrize(
    "columns",
    [
        {"update.unchanged": 1.0},  # nothing moves: an input is trained, say
        {"update.unchanged": 0.0},
        {"weight_gradient.norm": {"layers.0.weight": 1e-9}},  # so small a step is lost to rounding
        {"weight_gradient.norm": math.nan},
        {"weight_gradient.zero": {"layers.0.weight": 1.0}},  # of the rows that were sampled none was used
    ],
)
def test_is_silent_where_steps_by_hand_prove_nothing(columns: dict[str, Any]) -> None:
    assert not hits(by_hand(columns=columns))


def test_is_silent_without_a_word_of_steps() -> None:
    assert not hits(by_hand(by_hand=False))
