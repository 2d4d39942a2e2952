"""When the units of a layer start alike and stay alike."""

from __future__ import annotations

import math
from typing import Any

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.symmetric_init import SymmetricInit
from gradscope.timeline import Timeline
from tests.timelines import ModuleInfo
from tests.timelines import Net
from tests.timelines import OptimizerInfo
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import mlp
from tests.timelines import parameter
from tests.timelines import poisoned

HIDDEN = ("layers.0.weight", "layers.2.weight")
STUCK = {"loss": 1.386}


def hits(timeline: Timeline) -> list[Hit]:
    return list(SymmetricInit().check(timeline))


def alike(*, weights: Any = 0.0, gradients: Any = 1e-9, names: tuple[str, ...] = HIDDEN) -> dict[str, Any]:
    return {
        "weight.row_spread": dict.fromkeys(names, weights),
        "weight_gradient.row_spread": dict.fromkeys(names, gradients),
    }


def test_constant_weights_with_equal_gradients_are_named() -> None:
    (hit,) = hits(build(columns=alike(), pulses=STUCK))
    assert hit.modules == ("layers.0", "layers.2")
    assert (hit.first_step, hit.last_step, hit.severity) == (0, 95, Severity.CRITICAL)
    assert hit.evidence["still_alike"] is True
    assert hit.remedy.code is not None
    assert "['layers.0.weight', 'layers.2.weight']" in hit.remedy.code


def test_one_sampled_step_is_enough() -> None:
    assert hits(build(columns=alike(), pulses=STUCK, steps=[0]))


def test_where_training_works_it_warns_while_units_are_alike_and_is_an_aside_once_they_differ() -> None:
    later = {"weights": lambda step: 0.0 if step < 4 else 0.5, "gradients": lambda step: 1e-9 if step < 4 else 0.5}
    assert hits(build(columns=alike()))[0].severity is Severity.WARNING
    assert hits(build(columns=alike(**later)))[0].severity is Severity.INFO


def test_zero_weights_whose_gradient_rows_differ_are_left_alone() -> None:
    assert not hits(build(columns=alike(gradients=0.3), pulses=STUCK))


def test_equal_gradients_of_random_weights_are_left_alone() -> None:
    assert not hits(build(columns=alike(weights=1.0), pulses=STUCK))


def test_boundary_of_the_spread() -> None:
    assert not hits(build(columns=alike(gradients=1.1e-6), pulses=STUCK))
    assert hits(build(columns=alike(gradients=0.9e-6), pulses=STUCK))


def test_the_last_layer_and_layers_of_one_unit_do_not_count() -> None:
    assert not hits(build(columns=alike(names=("layers.4.weight",)), pulses=STUCK))
    narrow = linear("a", 16, 1) + linear("b", 1, 4)
    assert not hits(build(narrow, columns=alike(names=("a.weight",)), pulses=STUCK))


def by_themselves(*shapes: tuple[int, ...], zero_at_start: bool = False) -> Net:
    """A model whose matrices are parameters of its own."""
    matrices = tuple(parameter(f"m{i}", shape, zero_at_start=zero_at_start) for i, shape in enumerate(shapes))
    return Net((ModuleInfo("", "Net", "container", tuple(m.name for m in matrices)),), matrices)


def test_matrices_that_are_parameters_by_themselves_count_like_layers() -> None:
    net = by_themselves((16, 32), (32, 32), (32, 4))
    (hit,) = hits(build(net, columns=alike(names=("m0", "m1", "m2")), pulses=STUCK))
    assert hit.evidence["layers"] == ["m0", "m1"]  # the last is the output's
    assert "2 weight matrices (m0 and m1)" in hit.message
    assert "for name in ['m0', 'm1']" in (hit.remedy.code or "")


def test_what_stands_by_itself_and_is_no_matrix_is_left_alone() -> None:
    shapes = ((1, 32), (32, 1), (32, 4))
    assert not hits(build(by_themselves(*shapes), columns=alike(names=("m0", "m1")), pulses=STUCK))
    positions = by_themselves((16, 32), zero_at_start=True) + mlp(16, 4)
    assert not hits(build(positions, columns=alike(names=("m0",)), pulses=STUCK))


def recurrent() -> Net:
    """An LSTM and its head."""
    weights = tuple(parameter(f"lstm.weight_{kind}_l0", (128, size)) for kind, size in (("ih", 3), ("hh", 32)))
    return Net((ModuleInfo("lstm", "LSTM", "recurrent", tuple(p.name for p in weights)),), weights) + linear("head", 32, 4)


def test_what_carries_the_state_of_a_recurrent_layer_on_counts_like_a_layer() -> None:
    (hit,) = hits(build(recurrent(), columns=alike(names=("lstm.weight_hh_l0",)), pulses=STUCK))
    assert (hit.modules, hit.severity) == (("lstm",), Severity.CRITICAL)
    assert "['lstm.weight_hh_l0']" in (hit.remedy.code or "")
    assert not hits(build(recurrent(), columns=alike(names=("lstm.weight_ih_l0",)), pulses=STUCK))
    assert not hits(build(recurrent(), columns=alike(names=("lstm.weight_hh_l0",), gradients=0.3), pulses=STUCK))


def test_a_recurrent_layer_and_its_head_at_zero_are_named() -> None:
    names = ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight")
    zero = {column: dict.fromkeys(names, 0.0) for column in ("weight.norm", "weight_gradient.norm")}
    (hit,) = hits(build(recurrent(), columns=zero, pulses=STUCK))
    assert hit.modules == ("lstm", "head")


def test_a_sparse_gradient_that_the_sample_missed_is_not_equal() -> None:
    missed = {**alike(gradients=0.0), "weight_gradient.zero": 1.0}
    assert not hits(build(columns=missed, pulses=STUCK))


def test_layers_that_no_optimizer_holds_do_not_count() -> None:
    held = OptimizerInfo("SGD", 0.1, ("layers.4.weight",), 0, {})
    assert not hits(build(columns=alike(), pulses=STUCK, optimizers=(held,)))


def test_without_a_gradient_nothing_is_known() -> None:
    assert not hits(build(columns={**alike(), "weight_gradient.norm": 0.0}, pulses=STUCK))


def test_a_net_of_zeros_that_never_gets_a_gradient_is_named() -> None:
    zeros = {
        "weight.norm": 0.0,
        "weight_gradient.norm": 0.0,
        "weight.row_spread": math.nan,
        "weight_gradient.row_spread": math.nan,
    }
    (hit,) = hits(build(columns=zeros, pulses=STUCK))
    assert hit.modules == ("layers.0", "layers.2", "layers.4")
    assert not hits(build(columns=zeros, pulses=STUCK, steps=range(2)))


def test_one_layer_of_zeros_is_left_alone() -> None:
    zero = {"weight.norm": {"layers.2.weight": 0.0}, "weight_gradient.norm": {"layers.2.weight": 0.0}}
    assert not hits(build(columns=zero, pulses=STUCK))


def test_symmetry_that_comes_late_is_not_the_initialisation() -> None:
    late = {"weights": lambda step: 1.0 if step < 10 else 0.0, "gradients": lambda step: 1.0 if step < 10 else 0.0}
    assert not hits(build(columns=alike(**late), pulses=STUCK))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), build(mlp(8, 4)), empty(), poisoned(math.nan), poisoned(math.inf)):
        assert not hits(timeline)
