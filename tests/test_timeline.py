"""Columns, facts and gates of a timeline."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradscope.records import PULSE_FIELDS
from gradscope.records import Frame
from gradscope.records import LossInfo
from gradscope.records import ModuleInfo
from gradscope.records import OptimizerInfo
from gradscope.records import RunInfo
from gradscope.records import Schema
from gradscope.records import Site
from gradscope.records import Wiring
from gradscope.timeline import ACTIVATION_ENERGY
from gradscope.timeline import Timeline
from tests.timelines import CLASSES
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import module
from tests.timelines import norm
from tests.timelines import one_loss
from tests.timelines import parameter
from tests.timelines import regressed
from tests.timelines import sgd

NAN, INF = math.nan, math.inf
RUN = RunInfo("run", "Net")
NO_WIRING = Wiring()


def frame(step: int, names: str, **values: list[float]) -> Frame:
    """A frame over module sites ``names``; ``rms=[…]`` gives the column ``activation.rms``."""
    schema = Schema(modules=tuple(Site(name) for name in names))
    return Frame(step, schema, {f"activation.{name}": np.array(column, dtype=np.float32) for name, column in values.items()})


def losing(*losses: float, **changes) -> Timeline:
    """A run with these losses of a loss function whose baseline is not known."""
    return build(steps=[0], total=len(losses), pulses={"loss": lambda step: losses[step], **changes}, wiring=NO_WIRING)


def falling(step: int) -> float:
    return 0.1 + 2 * math.exp(-step / 30)


# -- columns


def test_sites_are_the_union_in_the_order_of_their_coming():
    timeline = Timeline(RUN, [frame(0, "ab", rms=[1, 2]), frame(1, "cab", rms=[3, 4, 5]), frame(2, "d", rms=[6])])
    assert timeline.site_names("activation") == ["a", "b", "c", "d"]
    expected = [[1, 2, NAN, NAN], [4, 5, 3, NAN], [NAN, NAN, NAN, 6]]
    assert np.array_equal(timeline.column("activation.rms"), np.array(expected), equal_nan=True)


def test_a_schema_that_comes_again_finds_its_places_again():
    frames = [frame(step, "ab" if step % 2 else "ba", rms=[step, -step]) for step in range(6)]
    column = Timeline(RUN, frames).column("activation.rms")
    assert column.tolist() == [[0, 0], [-1, 1], [2, -2], [-3, 3], [4, -4], [-5, 5]]


def test_a_column_that_a_frame_lacks_is_nan_there():
    timeline = Timeline(RUN, [frame(0, "a", rms=[1]), frame(3, "a", mean=[2]), frame(4, "a")])
    assert timeline.steps.tolist() == [0, 3, 4]
    assert np.array_equal(timeline.column("activation.rms"), [[1], [NAN], [NAN]], equal_nan=True)
    assert np.array_equal(timeline.column("activation.mean"), [[NAN], [2], [NAN]], equal_nan=True)
    assert timeline.column("activation.rms").dtype == np.float32


def test_sites_are_named_by_path_and_call():
    timeline = build(sites=[Site("a", 1), Site("a"), Site("")])
    assert timeline.site_names("activation") == ["a#1", "a", "(model)"]


def test_the_run_is_as_long_as_the_last_step_seen():
    assert build(steps=[0, 5], total=40).step_count == 40
    assert Timeline(RUN, [frame(0, "a"), frame(7, "a")]).step_count == 8
    pulses = np.zeros((3, len(PULSE_FIELDS)))
    pulses[:, 0] = [0, 1, 2]
    assert Timeline(RUN, [frame(0, "a")], pulses).step_count == 3
    assert Timeline(RUN, [frame(7, "a")], pulses).step_count == 8


def test_a_run_without_a_step_has_nothing_and_says_so():
    timeline = empty()
    assert (timeline.step_count, len(timeline.steps), timeline.layers, timeline.blocks) == (0, 0, (), ())
    assert timeline.column("activation.rms").shape == (0, 0)
    assert timeline.update_ratios.shape == (0, 0)
    assert math.isnan(timeline.first_loss)
    assert math.isnan(timeline.last_loss)
    assert math.isnan(timeline.baseline)
    gates = (timeline.learning, timeline.progressing, timeline.converged, timeline.noisy_loss, timeline.several_objectives)
    assert gates == (False,) * 5
    assert timeline.onset is None
    assert timeline.lack("activation.rms") == "no step was sampled"
    assert timeline.lack("pulse.loss") == "no loss was seen"


# -- what is lacking


@pytest.mark.parametrize(
    "need", ["activation.rms", "weight_gradient.norm", "input.rms", "pulse.loss", "fact.wiring", "fact.loss", "fact.optimizer"]
)
def test_a_healthy_run_lacks_nothing(need):
    assert build().lack(need) is None


@pytest.mark.parametrize(
    ("need", "timeline", "sentence"),
    [
        ("activation.rms", build(steps=[], total=9), "no step was sampled"),
        (
            "input.rms",
            build(inputs=[]),
            "no floating-point tensor was given to the model, or to the part of it that is called first",
        ),
        (
            "activation_gradient.rms",
            build(sites=[]),
            "no call of the model's layers was seen: compiled, scripted and transformed code runs no hooks",
        ),
        ("weight.row_spread", build(columns={"weight.row_spread": NAN}), "row spread of weights was not captured"),
        ("activation.saturated", build(), "no tanh or sigmoid was seen"),
        ("step.clip_norm", build(), "clip_grad_norm_() was not called in the loop"),
        ("step.evaluating", build(), "the model has no dropout and no batch norm that ran"),
        ("attention.entropy", build(), "no scaled dot-product attention was seen in the autograd graph"),
        ("update.epsilon_share", build(), "no optimizer that keeps second moments, as Adam does, was seen stepping"),
        ("pulse.gradient_norm", build(pulses={"gradient_norm": NAN}), "no gradient norm was seen"),
        ("pulse.loss", build(pulses={"loss": NAN, "backwards": 0}), "no loss was seen"),
        ("fact.wiring", empty(), "no autograd graph was read: the loss's backward() was not seen"),
        ("fact.reduction", empty(), "the loss function was not recognised in the autograd graph"),
        ("fact.loss", empty(), "the loss function was not recognised in the autograd graph"),
        ("fact.loss", build(wiring=NO_WIRING), "the loss function was not recognised in the autograd graph"),
        ("fact.optimizer", build(optimizers=[]), "no optimizer that holds the model's parameters was seen stepping"),
        (
            "fact.steps",
            build(optimizers=[]),
            "no optimizer that holds the model's parameters was seen stepping, nor did scope.step() tell of a step",
        ),
    ],
)
def test_what_is_lacking_is_told_as_a_sentence(need, timeline, sentence):
    assert timeline.lack(need) == sentence


def test_a_loss_of_no_known_kind_is_not_recognised_and_one_beside_it_is():
    other, known = LossInfo("other", "MulBackward0"), LossInfo("mse", "MseLossBackward0")
    assert build(wiring=Wiring(losses=(other,))).lack("fact.loss") is not None
    assert build(wiring=Wiring(losses=(other, known))).lack("fact.loss") is None


def test_a_loss_that_was_nan_was_seen():
    assert build(pulses={"loss": NAN}).lack("pulse.loss") is None


# -- layers and blocks


def test_layers_are_the_matrix_layers_with_their_sites_and_largest_weights():
    net = norm("norm", 8) + linear("a", 8, 4, activation="relu", bias=True) + module("act", "ReLU", "activation")
    net += linear("b", 4, 2, activation="unheard of") + linear("c", 2, 2, activation="tanh")
    first, second, third = build(net).layers
    assert [(layer.module.path, layer.weight.name) for layer in (first, second)] == [("a", "a.weight"), ("b", "b.weight")]
    assert [(layer.site, layer.parameter) for layer in (first, second, third)] == [(1, 1), (3, 3), (4, 4)]
    assert (first.gain_squared, second.gain_squared) == (2.0, 1.0)
    assert third.gain_squared == pytest.approx(1 / 0.394)


def test_a_layer_counts_at_its_first_call_and_only_where_its_weight_was_seen():
    sites = [Site("layers.2"), Site("layers.0"), Site("layers.0", 1), Site("elsewhere")]
    assert [layer.module.path for layer in build(sites=sites).layers] == ["layers.2", "layers.0"]
    seen = Schema(modules=(Site("layers.0"),))
    assert Timeline(build().info, [Frame(0, seen, {})]).layers == ()


def test_a_layers_weight_is_the_largest_of_its_matrices():
    weights = [parameter("a.small", (2, 2)), parameter("a.large", (3, 2)), parameter("a.bias", (99,))]
    matrix = ModuleInfo("a", "Bilinear", "linear", tuple(weight.name for weight in weights))
    schema = Schema(modules=(Site("a"),), parameters=tuple(Site(weight.name) for weight in weights))
    info = RunInfo("run", "Net", (matrix,), tuple(weights))
    assert [layer.weight.name for layer in Timeline(info, [Frame(0, schema, {})]).layers] == ["a.large"]


@pytest.mark.parametrize(("name", "energy"), ACTIVATION_ENERGY.items())
def test_the_energies_are_those_of_a_standard_normal(name, energy):
    x = np.linspace(-12, 12, 48001)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    erf = np.array([math.erf(value / math.sqrt(2)) for value in x[::8]])
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    below = np.expm1(np.minimum(x, 0))
    values = {
        "relu": lambda: np.maximum(x, 0),
        "leaky_relu": lambda: np.where(x > 0, x, 0.01 * x),
        "tanh": lambda: np.tanh(x),
        "sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "gelu": lambda: x * (1 + np.interp(x, x[::8], erf)) / 2,
        "silu": lambda: x / (1 + np.exp(-x)),
        "elu": lambda: np.where(x > 0, x, below),
        "selu": lambda: scale * np.where(x > 0, x, alpha * below),
    }[name]()
    assert float((values**2 * density).sum() * (x[1] - x[0])) == pytest.approx(energy, abs=6e-4)


def test_blocks_are_the_longest_row_of_siblings_of_one_class():
    net = linear("stem", 4, 4)
    for i in range(4):
        net += module(f"blocks.{i}", "Block", "container") + linear(f"blocks.{i}.fc", 4, 4)
    for i in range(3):
        net += module(f"heads.{i}", "Head", "other")
    assert build(net).blocks == (1, 3, 5, 7)


def test_fewer_than_three_siblings_are_no_blocks():
    net = module("a.0", "Block", "container") + module("a.1", "Block", "container") + module("b.2", "Block", "container")
    assert build(net).blocks == ()
    assert build().blocks == ()


# -- update ratios


def test_ratios_are_of_trained_matrices_that_did_not_begin_at_zero():
    net = linear("a", 4, 4, bias=True) + linear("frozen", 4, 4, trainable=False)
    net += linear("zero", 4, 4, zero_at_start=True) + linear("b", 4, 2)
    timeline = build(net, columns={"update.ratio": 0.01}, steps=range(3))
    assert timeline.trained.tolist() == [True, True, False, True, True]
    assert np.isfinite(timeline.update_ratios).tolist() == [[True, False, False, False, True]] * 3


def test_what_no_optimizer_holds_has_no_ratio():
    held = sgd(linear("layers.0", 16, 32))
    assert np.isfinite(build(optimizers=[held]).update_ratios[0]).tolist() == [True, False, False]
    assert set(build(optimizers=[held]).optimized) == {"layers.0.weight"}
    assert np.isnan(build(optimizers=[]).update_ratios).all()


def test_steps_by_hand_train_what_they_move() -> None:
    ratios = {"layers.0.weight": 0.0, "layers.2.weight": 0.01, "layers.4.weight": 0.01}
    timeline = build(optimizers=[], by_hand=True, columns={"update.ratio": ratios})
    names = [site.path for site, trained in zip(timeline.schema.parameters, timeline.trained, strict=True) if trained]
    assert {"layers.2.weight", "layers.4.weight"} <= set(names) and "layers.0.weight" not in names
    assert timeline.lack("fact.steps") is None and timeline.lack("fact.optimizer") is not None


def test_a_site_that_is_no_known_parameter_is_not_trained():
    schema = Schema(parameters=(Site("layers.0.weight"), Site("added.later")))
    timeline = Timeline(build().info, [Frame(0, schema, {"update.ratio": np.ones(2, dtype=np.float32)})])
    assert timeline.trained.tolist() == [True, False]


# -- the loss


def test_the_loss_is_that_of_steps_with_a_backward_call():
    timeline = build(steps=[0], total=6, pulses={"loss": float, "backwards": lambda step: step % 2})
    assert timeline.loss.tolist() == [1, 3, 5]
    assert timeline.loss_steps.tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    ("shapes", "noisy"),
    [([(7,)], True), ([(8,)], False), ([(2, 4)], False), ([()], True), ([(1,), (32,)], False), ([None], False)],
)
def test_a_loss_over_a_handful_of_numbers_is_noisy(shapes, noisy):
    losses = tuple(LossInfo("mse", "MseLossBackward0", target_shape=shape) for shape in shapes)
    assert build(wiring=Wiring(losses=losses)).noisy_loss is noisy


def test_training_starts_at_the_first_loss_or_where_it_is_noisy_at_the_median_of_three():
    noisy = Wiring(losses=(LossInfo("mse", "MseLossBackward0", target_shape=(1,)),))
    losses = {"loss": lambda step: [9.0, 1.0, 4.0, 2.0][step]}
    assert build(steps=[0], total=4, pulses=losses, wiring=NO_WIRING).first_loss == 9.0
    assert build(steps=[0], total=4, pulses=losses, wiring=noisy).first_loss == 4.0
    assert losing(NAN, 3.0, 5.0, 1.0).first_loss == 4.0
    assert math.isnan(losing(NAN, INF, NAN, 1.0).first_loss)


def test_a_batch_that_is_high_by_chance_is_not_where_training_started():
    rng = np.random.default_rng(0)
    noise = 1 + 0.15 * rng.standard_normal(200)
    high = losing(1.35, *noise)
    assert 0.9 < high.first_loss < 1.1
    assert not high.learning
    low = losing(0.7, *noise)
    assert low.first_loss == 0.7  # a ceiling for what blows up is not to rise


def test_noise_seldom_passes_as_learning():
    rng = np.random.default_rng(1)
    runs = [losing(*(1 + 0.15 * rng.standard_normal(100))) for _ in range(100)]
    alone = sum(run.last_loss < 0.9 * run.loss[0] for run in runs)
    assert sum(run.learning for run in runs) < alone / 2


@pytest.mark.parametrize("steps", [0.3, 1, 3])
def test_a_loss_that_falls_within_three_steps_started_where_it_was(steps):
    rng = np.random.default_rng(2)
    losses = (0.2 + 2.1 * np.exp(-np.arange(100) / steps)) * (1 + 0.1 * rng.standard_normal(100))
    run = losing(2.3, *losses[1:])
    assert run.first_loss > 1.6
    assert run.learning


@pytest.mark.parametrize("losses", [[2.3, 1e5, 1e9, 1e12] + [1e15] * 20, [2.3, 9, 7, 30, 12, 8, 25, 11, 40, 9, 31, 12] * 3])
def test_a_run_that_blows_up_at_once_started_where_it_was(losses):
    assert losing(*losses).first_loss <= 2.3
    assert losing(2.3, *losses[1:], 60, 60, 60, 60, 60).onset is not None


@pytest.mark.parametrize(
    ("count", "last"), [(1, 0), (2, 0.5), (3, 1), (20, 18), (100, 94.5), (1000, 974.5)], ids=lambda number: str(number)
)
def test_training_ends_at_the_median_of_a_tenth_of_three_to_fifty_losses(count, last):
    assert losing(*range(count)).last_loss == last


def test_a_run_whose_last_loss_is_not_finite_has_none():
    assert math.isnan(losing(1.0, 1.0, NAN).last_loss)
    assert math.isnan(losing(1.0, 1.0, INF).last_loss)
    assert losing(1.0, NAN, 3.0).last_loss == 2.0


def test_the_baseline_is_the_graphs_else_the_first_loss():
    assert build().baseline == pytest.approx(math.log(CLASSES))
    assert build(wiring=NO_WIRING).baseline == build().first_loss
    assert Timeline(RUN, pulses=np.ones((1, len(PULSE_FIELDS)))).baseline == 1.0


# -- gates


@pytest.mark.parametrize(
    ("losses", "learning"),
    [([2.0] * 9 + [1.79] * 3, True), ([2.0] * 9 + [1.81] * 3, False), ([-1.0] * 9 + [-1.2] * 3, True), ([-1.0] * 12, False)],
)
def test_learning_is_a_loss_that_came_down_by_a_tenth(losses, learning):
    assert losing(*losses).learning is learning


def test_a_run_that_ended_in_nan_did_not_learn():
    assert not losing(*np.linspace(2, 1, 50), NAN).learning


def test_progress_is_a_falling_trend_or_a_new_minimum():
    rng = np.random.default_rng(0)
    assert losing(*(falling(step) + 0.02 * rng.normal() for step in range(150))).progressing
    assert not losing(*(1 + 0.02 * rng.normal() for _ in range(150))).progressing
    lower_than_ever = [2.0] * 50 + [2.0, *[3.0] * 50, *[1.9] * 20, *[3.0] * 29]
    assert losing(*lower_than_ever).progressing
    assert not losing(*(max(value, 1.99) for value in lower_than_ever)).progressing
    assert losing(2.0, *[3.0] * 50, *[1.9] * 20, *[3.0] * 29).progressing


def test_progress_is_not_known_of_a_few_losses_or_of_broken_ones():
    assert not losing(*range(7, 0, -1)).progressing
    assert losing(*range(8, 0, -1)).progressing
    assert not losing(*range(60, 0, -1), NAN).progressing


@pytest.mark.filterwarnings("error")
def test_losses_that_were_broken_long_ago_do_not_hide_progress():
    assert losing(*[NAN] * 30, *np.linspace(2, 1, 100)).progressing
    assert losing(*[-INF] * 30, 3.0, *[2.0] * 100).progressing


@pytest.mark.parametrize(("loss", "baseline"), [(2.0, 1.0), (16.0, 8.0), (5.9, 1.0), (6.1, 8.0)])
def test_a_sum_divided_by_the_batch_has_the_baseline_of_all_terms_of_a_sample(loss, baseline):
    wiring = one_loss(baseline=1.0, input_shape=(32, 8), target_shape=(32, 8))
    columns = {**regressed(), "loss.input_rms": 1.0, "loss.target_count": 256.0}
    timeline = build(wiring=wiring, columns=columns, pulses={"loss": loss})
    assert timeline.known_baseline == pytest.approx(baseline)  # a mean square of 1 and 1 is 4 at most, 6 as it is sampled


def test_converged_is_a_twentieth_of_the_baseline():
    assert build(pulses={"loss": lambda step: 1.4 if step < 50 else 0.05 * math.log(CLASSES) - 1e-6}).converged
    assert not build(pulses={"loss": lambda step: 1.4 if step < 50 else 0.05 * math.log(CLASSES) + 1e-6}).converged
    assert not losing(-1.0, -2.0, -3.0).converged
    assert not losing(1.0, 0.0, NAN).converged


def test_several_optimizers_or_models_are_several_objectives():
    assert not build().several_objectives
    assert build(shared_process=True).several_objectives
    assert build(optimizers=[sgd(), sgd()]).several_objectives


BODY, HEAD = (
    OptimizerInfo("SGD", 0.1, names, 0, {}) for names in (("layers.0.weight", "layers.2.weight"), ("layers.4.weight",))
)


def shared_out(**changes: Any) -> Timeline:
    return build(**({"optimizers": [BODY, HEAD]} | changes))


def test_optimizers_that_share_out_the_parameters_of_one_classifier_play_together():
    assert not shared_out().several_objectives
    known_late = {"layers.4.weight": lambda step: 0.003 if step else NAN}
    assert not shared_out(columns={"update.ratio": known_late}).several_objectives
    assert not shared_out(columns={"update.ratio": {"layers.0.weight": NAN}}).several_objectives


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": {"update.ratio": {"layers.4.weight": lambda step: 0.003 if step % 2 else NAN}}},
        {"pulses": {"backwards": 2.0}},
        {"losses": ("(loss)", "(loss)#1")},
        {"wiring": one_loss("mse")},
        {"wiring": NO_WIRING},
        {"steps": [0], "total": 100},
        {"shared_process": True},
        {"optimizers": [BODY, HEAD, BODY]},
    ],
    ids=["turns", "backwards", "losses", "regression", "unknown", "one frame", "models", "same parameters"],
)
def test_optimizers_that_take_turns_or_may_have_a_loss_each_play_against_each_other(changes):
    assert shared_out(**changes).several_objectives


# -- onset


def rising(step: int) -> float:
    return 1.4 if step < 50 else 90.0


def broken(step: int) -> float:
    return 1.4 if step < 50 else NAN


def test_a_loss_that_rises_for_good_or_breaks_is_an_onset():
    assert build(pulses={"loss": rising}).onset == 50
    assert build(pulses={"loss": broken}).onset == 50
    assert build().onset is None


def test_a_loss_may_rise_where_several_objectives_play_but_must_stay_finite():
    assert build(pulses={"loss": rising}, shared_process=True).onset is None
    assert build(pulses={"loss": broken}, shared_process=True).onset == 50


def test_a_loss_that_comes_back_was_no_onset_however_high_it_was():
    assert losing(1.0, 50.0, *[1.0] * 20).onset is None
    assert losing(1.0, 50.0, *[2.9] * 20).onset is None
    assert losing(1.0, 2.0, 50.0, *[3.1] * 20).onset == 2


def test_a_few_last_losses_that_are_no_higher_than_one_that_came_back_are_no_onset():
    every_other = [1.0, 1.0, 80.0, 1.0, 90.0, 1.0] * 6
    assert losing(*every_other, 60.0, 90.0, 70.0, 1.0, 70.0).onset is None
    assert losing(*every_other, 60.0, 90.0, 70.0).onset is None
    assert losing(*every_other, *[90.0] * 9).onset is None
    assert losing(*every_other, *[90.0] * 10).onset == 36
    assert losing(*every_other, *[900.0] * 5).onset == 36
    assert losing(*every_other, *[60.0] * 4, INF).onset == 36


def test_the_onset_is_where_the_loss_left_for_good_not_where_it_first_jumped():
    assert losing(1.0, 50.0, *[2.0] * 40, *[60.0] * 20).onset == 42
    assert losing(1.0, 50.0, *[2.0] * 40, 60.0, 900.0, INF, INF).onset == 42


def test_a_run_that_is_stopped_as_soon_as_it_blows_up_has_an_onset():
    assert losing(*[1.0] * 500, 4.0, 40.0, 400.0, 4000.0).onset == 500


def test_one_broken_loss_is_an_onset_though_training_goes_on():
    assert losing(1.0, 1.0, INF, *[0.5] * 20).onset == 2


def test_a_gradient_that_breaks_is_an_onset_and_the_first_sign_counts():
    infinite = {"gradient_norm": lambda step: INF if step >= 30 else 1.0}
    assert build(pulses=infinite).onset == 30
    assert build(pulses={**infinite, "loss": broken}).onset == 30
    assert build(pulses={"gradient_norm": lambda step: INF if step >= 60 else 1.0, "loss": broken}).onset == 50
    assert build(pulses={"gradient_norm": NAN}).onset is None


def test_a_negative_loss_blows_up_by_the_same_measure():
    assert losing(-1.0, *[-5.0] * 20).onset is None
    assert losing(-1.0, 0.9, *[0.9] * 20).onset is None
    assert losing(-1.0, 0.9, *[1.1] * 20).onset == 2


def test_an_onset_is_counted_in_steps_also_where_not_each_has_a_loss():
    timeline = build(pulses={"loss": rising, "backwards": lambda step: step % 7 == 0})
    assert timeline.onset == 56
