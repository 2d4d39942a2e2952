from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.records import Site
from gradscope.records import Wiring
from gradscope.rules.detached_parameters import DetachedParameters
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import poisoned
from tests.timelines import sgd

HEAD_ONLY = classification(reached=("layers.4.weight",))
CUT = classification(reached=("layers.4.weight",), cuts=(("layers.3", "layers.4"),))
NO_GRADIENT = {"layers.0.weight": math.nan, "layers.2.weight": math.nan}


def hits(timeline: Timeline) -> list[Hit]:
    return list(DetachedParameters().check(timeline))


def detached(gradient: Any = NO_GRADIENT, **changes: Any) -> Timeline:
    given: dict[str, Any] = {"columns": {"weight_gradient.norm": gradient}, "wiring": CUT}
    return build(**(given | changes))


def test_names_both_sides_of_the_cut() -> None:
    (hit,) = hits(detached(pulses={"loss": 1.4}))
    assert hit.modules == ("layers.0", "layers.2")
    assert hit.evidence["cut"] == ["layers.3", "layers.4"]
    assert "between layers.3 and layers.4" in hit.message and "between layers.3 and layers.4" in hit.remedy.text
    assert hit.severity is Severity.CRITICAL
    assert hit.first_step == 0


def test_is_a_warning_where_the_rest_learns() -> None:
    (hit,) = hits(detached())
    assert hit.severity is Severity.WARNING


def test_a_gradient_of_zero_counts_like_none_where_no_loss_reaches_it() -> None:
    assert len(hits(detached({"layers.0.weight": 0.0, "layers.2.weight": 0.0}))) == 1


def test_is_silent_on_a_healthy_run() -> None:
    assert not hits(build())


def test_is_silent_on_dead_layers_that_the_loss_reaches() -> None:
    assert not hits(detached({"layers.0.weight": 0.0, "layers.2.weight": 0.0}, wiring=classification()))


def test_one_gradient_in_any_step_clears_a_parameter() -> None:
    once = dict.fromkeys(NO_GRADIENT, lambda step: 0.1 if step == 7 else math.nan)
    assert not hits(detached(once))


def test_is_silent_on_modules_that_never_ran() -> None:
    ran = [Site(module.path) for module in SMALL.modules if module.path in ("layers.3", "layers.4")]
    assert not hits(detached(sites=ran))


def test_modules_that_ran_without_gradients_in_front_of_others_ran() -> None:
    """They have no site; the cut stands between the last of them and the first module with gradients."""
    modules = tuple(replace(m, ungraded=m.path in ("layers.0", "layers.1", "layers.2")) for m in SMALL.modules)
    net = Net(modules, SMALL.parameters)
    after = [Site(path) for path in ("layers.3", "layers.4")]
    wiring = classification(reached=("layers.4.weight",), cuts=(("layers.2", "layers.4"),))
    (hit,) = hits(detached(net=net, sites=after, wiring=wiring))
    assert hit.modules == ("layers.0", "layers.2")
    assert hit.evidence["cut"] == ["layers.2", "layers.4"]
    assert "no_grad(), ran: layers.0 and layers.2." in hit.message


def test_is_silent_on_frozen_parameters() -> None:
    net = linear("body", 16, 16, trainable=False) + linear("head", 16, 4)
    assert not hits(build(net, columns={"weight_gradient.norm": {"body.weight": math.nan}}))


def test_a_module_whose_output_nothing_uses_is_an_aside() -> None:
    wiring = classification(reached=("layers.0.weight", "layers.4.weight"))
    (hit,) = hits(detached({"layers.2.weight": math.nan}, wiring=wiring, pulses={"loss": 1.4}))
    assert (hit.severity, hit.modules) == (Severity.INFO, ("layers.2",))
    assert "no loss uses their output" in hit.message and ".item()" in hit.remedy.text
    assert not hits(detached({"layers.2.weight": math.nan}, wiring=wiring, steps=range(9)))


def test_a_cut_seen_in_the_graph_convicts_a_branch_in_the_middle() -> None:
    wiring = classification(reached=("layers.0.weight", "layers.4.weight"), cuts=(("layers.3", "layers.4"),))
    (hit,) = hits(detached({"layers.2.weight": math.nan}, wiring=wiring))
    assert hit.modules == ("layers.2",)


def test_without_a_cut_all_that_stands_in_front_is_found() -> None:
    (hit,) = hits(detached(wiring=HEAD_ONLY))
    assert hit.modules == ("layers.0", "layers.2") and hit.evidence["cut"] is None


def test_is_silent_where_nothing_gets_a_gradient() -> None:
    assert not hits(detached(math.nan))


@pytest.mark.parametrize(("steps", "count"), [(9, 0), (10, 1)])
def test_ten_sampled_steps_are_needed(steps: int, count: int) -> None:
    assert len(hits(detached(steps=range(steps)))) == count


def test_survives_what_is_not_finite_or_not_there() -> None:
    assert not hits(empty())
    for value in (math.nan, math.inf):
        hits(poisoned(value))


def idle(**changes: Any) -> Timeline:
    """Nothing has a gradient, nothing moves, and no graph was read."""
    given: dict[str, Any] = {
        "columns": {"weight_gradient.norm": math.nan, "update.ratio": 0.0},
        "pulses": {"loss": 1.4, "gradient_norm": math.nan},
        "wiring": Wiring(),
    }
    return build(**(given | changes))


def test_a_loss_without_a_graph_is_named_after_five_steps() -> None:
    (hit,) = hits(idle(steps=range(5)))
    assert hit.severity is Severity.CRITICAL and hit.strength == 10
    assert "None of the 3 parameters" in hit.message and "no graph leads from the loss to the model" in hit.message
    assert DetachedParameters().obstacle(idle(steps=range(5))) is None
    assert not hits(idle(steps=range(4)))


def test_a_backward_that_was_not_seen_is_told_from_one_that_led_nowhere() -> None:
    (hit,) = hits(idle(pulses={"loss": math.nan, "gradient_norm": math.nan, "backwards": 0.0}))
    assert "no backward() of a loss that leads there was seen" in hit.message


def test_without_any_gradient_it_is_silent_where_a_loss_led_to_the_model_or_weights_moved_or_others_are_trained() -> None:
    assert not hits(idle(wiring=classification()))
    assert not hits(idle(columns={"weight_gradient.norm": math.nan}))
    assert not hits(idle(optimizers=[replace(sgd(), strangers=2)]))
    assert not hits(idle(shared_process=True))
