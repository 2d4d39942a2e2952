from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Origin
from gradscope.records import Severity
from gradscope.rules.nonfinite_origin import NonfiniteOrigin
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import module
from tests.timelines import norm
from tests.timelines import poisoned

BAD = 8


def hits(timeline: Timeline) -> list[Hit]:
    return list(NonfiniteOrigin().check(timeline))


def from_step(step: int) -> Any:
    return lambda now: float(now >= step)


def broken(columns: Any, *, loss: bool = True, **changes: Any) -> Timeline:
    """A run whose loss, or else whose gradient, is not finite from step 8 on."""
    pulses = {"gradient_norm": lambda step: math.inf if step >= BAD else 1.0}
    pulses |= {"loss": lambda step: math.nan if step >= BAD else 1.4} if loss else {}
    return build(**({"columns": columns, "pulses": pulses} | changes))


def test_the_first_module_in_execution_order_is_named() -> None:
    forward = {"layers.2": from_step(BAD), "layers.3": from_step(BAD), "layers.4": from_step(BAD)}
    (hit,) = hits(broken({"activation.nonfinite": forward, "activation_gradient.nonfinite": from_step(BAD)}))
    assert hit.modules == ("layers.2",)
    assert hit.evidence["place"] == "forward"
    assert (hit.first_step, hit.last_step) == (BAD, BAD)
    assert "layers.2 (Linear) was the first" in hit.message
    assert hit.strength == 4.0 and hit.severity is Severity.CRITICAL


def test_an_input_comes_before_all_modules() -> None:
    columns = {"input.nonfinite": lambda step: 0.25 * (step >= BAD), "activation.nonfinite": from_step(BAD)}
    (hit,) = hits(broken(columns))
    assert hit.evidence["place"] == "input" and "the input x was not finite (25.00%" in hit.message
    assert hit.strength == 10.0
    assert "torch.isfinite(x).all()" in (hit.remedy.code or "")


def test_weights_come_before_everything_and_the_update_before_them_is_named() -> None:
    columns = {"weight.nonfinite": {"layers.2.weight": from_step(BAD)}, "input.nonfinite": from_step(BAD)}
    (hit,) = hits(broken(columns))
    assert hit.evidence["place"] == "weights" and hit.modules == ("layers.2",)
    assert "the update of step 7" in hit.message


def test_weights_found_later_than_the_loss_prove_little() -> None:
    columns = {"weight.nonfinite": from_step(20), "activation.nonfinite": from_step(20)}
    pulses = {"loss": lambda step: math.nan if step >= 17 else 1.4}
    (hit,) = hits(build(columns=columns, pulses=pulses))
    assert hit.first_step == 20 and hit.strength == 1.0
    assert "from step 17 on" in hit.message and "at step 15, the sampled step before, they were" in hit.message


def test_the_loss_is_named_where_all_modules_are_finite() -> None:
    (hit,) = hits(broken({"activation_gradient.nonfinite": from_step(BAD)}))
    assert hit.evidence["place"] == "loss" and hit.modules == ()


def test_the_way_back_is_gone_from_the_end() -> None:
    back = {"layers.0": from_step(BAD), "layers.1": from_step(BAD), "layers.2": from_step(BAD)}
    (hit,) = hits(broken({"activation_gradient.nonfinite": back}, loss=False))
    assert hit.evidence["place"] == "backward"
    assert hit.modules == ("layers.2", "layers.3")
    assert "from layers.3 back to layers.2" in hit.message


def test_a_gradient_that_is_bad_at_the_output_comes_from_the_loss() -> None:
    (hit,) = hits(broken({"activation_gradient.nonfinite": from_step(BAD)}, loss=False))
    assert hit.modules == ("layers.4",) and "from the loss back to layers.4" in hit.message


def test_parameters_are_named_where_nothing_else_shows() -> None:
    (hit,) = hits(broken({"weight_gradient.nonfinite": {"layers.4.weight": from_step(BAD)}}, loss=False))
    assert hit.evidence["place"] == "gradients" and hit.modules == ("layers.4",)


@pytest.mark.parametrize("growing", ["loss", "gradient_norm"])
def test_growth_before_it_makes_it_a_consequence(growing: str) -> None:
    def grow(step: int) -> float:
        return 3.0**step if step < BAD else math.inf

    (hit,) = hits(build(columns={"activation.nonfinite": from_step(BAD)}, pulses={growing: grow}))
    assert hit.strength == 1.0
    assert f"after the {growing.replace('_', ' ')} had gone from 3 to 2.19e+03" in hit.message
    assert hit.remedy.code is None  # eight steps are too few to take a limit from


def test_growth_of_the_weights_in_one_step_is_seen() -> None:
    columns = {"weight.norm": lambda step: 1e9 if step else 5.0, "activation.nonfinite": from_step(1)}
    (hit,) = hits(build(columns=columns, pulses={"loss": lambda step: math.nan if step else 1.4}))
    assert hit.strength == 1.0 and "largest weight norm had gone from 5 to 1e+09" in hit.message


def told(place: str, **facts: Any) -> Hit:
    """The finding where the black box has told the origin."""
    changes = {key: facts.pop(key) for key in ("columns", "pulses", "steps", "total") if key in facts}
    (hit,) = hits(
        build(
            **({"pulses": {"loss": lambda step: math.nan if step >= BAD else 1.4}} | changes),
            origin=Origin(BAD, place, **facts),
        )
    )
    return hit


def test_what_the_graph_told_comes_first() -> None:
    facts = {"module": "layers.2", "before": "layers.0", "node": "LogBackward0", "dtype": "float32", "largest": 3.5}
    hit = told("between", **facts, columns={"activation.nonfinite": from_step(BAD)})
    assert (hit.first_step, hit.last_step, hit.strength) == (BAD, BAD, 4.0)
    assert hit.modules == ("layers.0", "layers.2")
    assert "LogBackward0 (float32) between layers.0 and layers.2 was the first" in hit.message
    assert "3.5 at most" in hit.message
    assert "clamp_min" in (hit.remedy.code or "")
    assert hit.evidence["node"] == "LogBackward0"


def test_what_the_graph_told_needs_no_frame() -> None:
    run = build(
        steps=(), total=20, pulses={"loss": 1.0}, origin=Origin(BAD, "loss", before="layers.4", node="NllLossBackward0")
    )
    assert NonfiniteOrigin().obstacle(run) is None
    (hit,) = hits(run)
    assert "after layers.4, in the loss" in hit.message and "if (y != -100).any():" in (hit.remedy.code or "")


def test_each_place_that_may_be_told_is_named() -> None:
    assert told("input", module="layers.0").strength == 10.0
    assert "in layers.2" in told("forward", module="layers.2", node="AddmmBackward0").message
    assert "while that of layers.4 was finite" in told("backward", module="layers.2", before="layers.4").message
    weighed = told("target", before="layers.4", node="MulBackward0")
    assert "a target or weight of the loss was not finite, as MulBackward0 took it after layers.4" in weighed.message
    assert weighed.strength == 4.0 and "a target is not finite" in (weighed.remedy.code or "")
    weights = told("parameter", module="layers.2")
    assert (weights.evidence["place"], weights.strength) == ("weights", 3.0)
    assert "the update of step 7 made them so from finite gradients" in weights.message
    lost = told("parameter", module="layers.2", pulses={"gradient_norm": math.inf})
    assert lost.strength == 1.0
    assert "float16 ends at" in told("forward", module="layers.2", node="AddmmBackward0", dtype="float16").remedy.text


def test_a_logarithm_in_the_loss_is_worked_out_from_the_logits() -> None:
    hit = told("loss", before="layers.4", node="LogBackward0")
    assert "loss = torch.nn.functional.cross_entropy(output, y)" in (hit.remedy.code or "")
    assert "clamp_min" in (told("between", module="layers.2", before="layers.0", node="LogBackward0").remedy.code or "")


def test_what_the_model_made_of_a_finite_input_is_no_input() -> None:
    hit = told("between", module="layers.0", dtype="float32", largest=375.0)
    assert "an operation (float32) before layers.0 was the first" in hit.message and "375 at most" in hit.message
    assert "log1p takes nothing below -1" in hit.remedy.text
    assert (hit.strength, hit.remedy.code) == (4.0, None)


def test_growth_before_what_was_told_makes_it_a_consequence() -> None:
    hit = told("forward", module="layers.2", pulses={"loss": lambda step: 3.0**step if step < BAD else math.inf})
    assert hit.strength == 1.0 and "after the loss had gone from 3" in hit.message


def test_the_remedy_fits_the_module() -> None:
    softmax = module("attention.softmax", "Softmax", "activation")
    (masked,) = hits(broken({"activation.nonfinite": from_step(BAD)}, net=softmax + SMALL))
    (normed,) = hits(broken({"activation.nonfinite": from_step(BAD)}, net=norm("norm", 16) + SMALL))
    assert "mask" in masked.remedy.text and "eps" in normed.remedy.text


def test_infinities_that_harm_nothing_are_not_meant() -> None:
    assert not hits(build(columns={"activation.nonfinite": {"layers.1": 0.5}, "activation_gradient.nonfinite": 0.1}))
    mask_then_fault = {"layers.0": 0.5, "layers.3": from_step(BAD)}
    (hit,) = hits(broken({"activation.nonfinite": mask_then_fault}))
    assert hit.modules == ("layers.3",)


def test_is_a_warning_where_training_went_on() -> None:
    columns = {"activation.nonfinite": {"layers.2": lambda step: float(step == BAD)}}
    (hit,) = hits(build(columns=columns, pulses={"loss": lambda step: math.nan if step == BAD else 1.0}))
    assert hit.severity is Severity.WARNING


def test_is_silent_on_a_healthy_run_and_where_no_frame_shows_it() -> None:
    assert not hits(build())
    assert not hits(build(steps=(0, 1, 2), total=60, pulses={"loss": lambda step: math.nan if step > 50 else 1.0}))


def test_survives_what_is_not_there() -> None:
    assert not hits(empty())
    hits(poisoned(math.nan))
    assert len(hits(poisoned(math.inf))) == 1


@pytest.mark.parametrize(
    ("node", "worst"),
    [("Log1p", -2.0), ("Log", 0.0), ("Div", 0.0), ("Reciprocal", 0.0), ("Sqrt", 0.0), ("Rsqrt", 0.0), ("Exp", 1e4)],
)
def test_the_code_keeps_the_operation_and_its_slope_finite(node: str, worst: float) -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor([worst, 1.0], requires_grad=True)
    names: dict[str, Any] = {"torch": torch, "x": x, "divisor": x}
    exec(str(told("between", module="layers.2", node=f"{node}Backward0").remedy.code), names)
    names["x"].sum().backward()
    assert torch.isfinite(names["x"]).all() and torch.isfinite(x.grad).all()


def test_the_code_stops_at_a_target_that_is_not_finite() -> None:
    torch = pytest.importorskip("torch")
    code = str(told("target", node="MulBackward0").remedy.code)
    exec(code, {"torch": torch, "y": torch.ones(2)})
    with pytest.raises(AssertionError):
        exec(code, {"torch": torch, "y": torch.tensor([1.0, math.nan])})
