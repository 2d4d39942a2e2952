"""What each route answers about runs that are known number by number."""

from __future__ import annotations

import numpy as np
import pytest

from gradscope.records import Site
from tests import timelines
from tests.tensorboard import samples
from tests.tensorboard.asking import Asking
from tests.timelines import STEPS
from tests.timelines import TOTAL

RUN = "a/gradscope"


@pytest.fixture(scope="module")
def asking(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("logdir")
    samples.record(logdir / "a", samples.ramp(pulses={"loss": lambda step: np.nan if step == 50 else 2.0 + step}))
    return Asking(logdir)


def ramp(sites, steps):
    return np.array([[site + step / 1000 + 1 for step in steps] for site in sites], dtype=np.float32)


def test_a_matrix_has_a_row_for_each_site_and_a_column_for_each_sampled_step(asking):
    header, numbers = asking.numbers("matrix", run=RUN, stat="activation.rms")
    np.testing.assert_array_equal(numbers, ramp(range(5), STEPS))
    assert (header["first"], header["last"], header["count"]) == (list(STEPS), list(STEPS), [1] * len(STEPS))
    assert (header["kind"], header["scale"], header["thinned"], header["nonfinite"]) == ("activation", "log", False, 0)
    assert (header["low"], header["high"]) == pytest.approx((1, 5 + 95 / 1000))
    assert header["range"] == [0, 95]


@pytest.mark.parametrize(
    ("first", "last", "shown"), [(3, 20, [3, *range(4, 12), 15, 20]), (96, 99, []), (20, 3, []), (-9, 0, [0])]
)
def test_a_window_holds_the_steps_in_it_and_the_scale_stays_that_of_the_run(asking, first, last, shown):
    header, numbers = asking.numbers("matrix", run=RUN, stat="activation.rms", first=first, last=last)
    assert header["first"] == shown
    np.testing.assert_array_equal(numbers, ramp(range(5), shown).reshape(5, len(shown)))
    assert (header["low"], header["range"]) == (1.0, [0, 95])


def test_fewer_columns_than_steps_are_thinned_the_same_each_time(asking):
    replies = {asking.ask("matrix", run=RUN, stat="activation.rms", columns=7).content for _ in range(3)}
    assert len(replies) == 1
    header, numbers = asking.numbers("matrix", run=RUN, stat="activation.rms", columns=7)
    assert numbers.shape == (5, len(header["first"])) == (5, 7)
    assert header["thinned"] and sum(header["count"]) == len(STEPS)


def test_the_schema_tells_sites_modules_and_what_there_is_to_choose(asking):
    schema = asking.json("schema", run=RUN)
    assert [site["path"] for site in schema["kinds"]["activation"]] == [f"layers.{i}" for i in range(5)]
    assert [site["module"] for site in schema["kinds"]["update"]] == ["layers.0", "layers.2", "layers.4"]
    assert [(module["path"], module["type"], module["order"]) for module in schema["modules"]][:2] == [
        ("layers.0", "Linear", 0),
        ("layers.1", "ReLU", 1),
    ]
    assert [statistic["name"] for statistic in schema["statistics"] if statistic["main"]] == [
        "activation.rms", "activation_gradient.rms", "update.ratio", "activation.dead", "activation.saturated",
        "activation.nonfinite",
    ]  # fmt: skip
    assert (schema["first_step"], schema["last_step"], schema["sampled"]) == (0, 95, len(STEPS))
    assert (schema["histograms"], schema["cut"]) == (["activation"], None)


def test_every_statistic_of_the_schema_has_a_matrix_with_its_kinds_sites(asking):
    schema = asking.json("schema", run=RUN)
    for statistic in schema["statistics"]:
        header, numbers = asking.numbers("matrix", run=RUN, stat=statistic["name"])
        assert numbers.shape == (len(schema["kinds"][statistic["kind"]]), len(STEPS)), statistic
        assert (header["kind"], header["scale"]) == (statistic["kind"], statistic["scale"])


def test_dead_units_are_counted_where_a_relu_follows(tmp_path):
    bits = {"activation.active_low": {"layers.0": 0x00FF, "layers.2": 0xFFFF}, "activation.active_high": {"layers.0": 0.0}}
    samples.record(tmp_path, timelines.build(columns={**bits, "activation.nonfinite": {"layers.3": 0.5}}))
    _, numbers = Asking(tmp_path).numbers("matrix", run="gradscope", stat="activation.dead")
    assert numbers[:, 0].tolist()[:3] == [0.75, 0.0, 0.0]
    assert np.isnan(numbers[3:, 0]).all()  # not finite; no ReLU after the last layer


def test_a_magnitude_is_not_finite_where_anything_that_it_is_of_is_not(tmp_path):
    broken = {"layers.2": [0.5 if step == 5 else 0.0 for step in STEPS]}
    samples.record(tmp_path, timelines.build(columns={"activation.nonfinite": broken, "activation.rms": {"layers.2": 0.0}}))
    asking = Asking(tmp_path)
    for name in ("activation.rms", "activation.mean"):
        header, numbers = asking.numbers("matrix", run="gradscope", stat=name)
        assert np.argwhere(np.isinf(numbers)).tolist() == [[2, 5]]
        assert header["nonfinite"] == 1
    assert np.isfinite(asking.numbers("matrix", run="gradscope", stat="activation.zero")[1]).all()
    assert [row["activation"] for row in asking.json("profile", run="gradscope", step=5)["rows"]] == [1.0, "inf", 1.0]


def test_a_profile_is_of_the_nearest_step_before_and_its_line_is_the_one_that_was_drawn(tmp_path):
    layers = {f"layers.{2 * i}": 10.0 ** (0.5 - 0.25 * i) for i in range(5)}
    columns = {"activation.rms": layers, "activation_gradient.rms": {**layers, "layers.4": 0.0, "layers.6": np.inf}}
    samples.record(tmp_path, timelines.build(samples.DEEP_NET, columns=columns))
    found = Asking(tmp_path).json("profile", run="gradscope", step=19)
    assert (found["step"], found["previous"], found["next"]) == (15, 11, 20)
    assert [row["module"] for row in found["rows"]] == list(layers)
    assert [row["site"] for row in found["rows"]] == [0, 2, 4, 6, 8]
    assert found["fits"]["activation"] == pytest.approx({"slope": -0.25, "intercept": 0.5, "count": 5}, abs=1e-5)
    assert found["fits"]["gradient"] == pytest.approx({"slope": -0.25, "intercept": 0.5, "count": 3}, abs=1e-5)
    assert [row["gradient"] for row in found["rows"]][2:4] == [0.0, "inf"]


def test_a_model_without_matrix_layers_has_a_profile_of_its_leaves(tmp_path):
    net = timelines.module("a", "Block", "container") + timelines.module("a.b", "Odd", "other") + timelines.norm("a.c", 4)
    samples.record(tmp_path, timelines.build(net, sites=[Site("a.b"), Site("a.b", 1), Site("a.c"), Site("a")]))
    found = Asking(tmp_path).json("profile", run="gradscope")
    assert [(row["module"], row["type"], row["update"]) for row in found["rows"]] == [
        ("a.b", "Odd", None),
        ("a.c", "LayerNorm", None),
    ]


def test_histograms_over_time_are_of_one_site(asking):
    header, numbers = asking.numbers("histogram", run=RUN, kind="activation", site=2)
    steps = list(STEPS[::5])
    assert (header["first"], header["name"], header["lowest"], header["shape"]) == (steps, "layers.2", -48, [64, len(steps)])
    for step, column in zip(steps, numbers.T, strict=True):
        assert np.flatnonzero(column).tolist() == [2 + step % 8, 48]
        assert column.sum() == 1
    thinned, fewer = asking.numbers("histogram", run=RUN, kind="activation", site=2, columns=2)
    assert thinned["thinned"] and fewer.shape == (64, 2)
    np.testing.assert_array_equal(fewer[:, 0], numbers[:, 0])


def test_scalars_are_of_every_step_and_a_loss_that_is_not_finite_is_no_gap(asking):
    header, numbers = asking.numbers("scalars", run=RUN)
    assert header["first"] == list(range(TOTAL))
    loss = dict(zip(header["rows"], numbers, strict=True))["loss.high"]
    assert np.isinf(loss[50])
    np.testing.assert_array_equal(np.delete(loss, 50), np.delete(2.0 + np.arange(TOTAL), 50))
    header, fewer = asking.numbers("scalars", run=RUN, columns=10)
    assert fewer[:2, 5].tolist() == [51 + 2, np.inf]
    assert fewer[:2, 4].tolist() == [42, 51]


@pytest.mark.parametrize(
    ("route", "parameters", "status", "words"),
    [
        ("report", {}, 400, "Expected the parameter run"),
        ("schema", {"run": "b/gradscope"}, 404, "no run 'b/gradscope'"),
        ("matrix", {"run": RUN}, 400, "Expected the parameter stat"),
        ("matrix", {"run": RUN, "stat": "activation.nothing"}, 404, "no statistic 'activation.nothing'"),
        ("matrix", {"run": RUN, "stat": "activation.rms", "columns": 0}, 400, "from 1 to 4096, found '0'"),
        ("matrix", {"run": RUN, "stat": "activation.rms", "columns": "9" * 50}, 400, "Expected columns"),
        ("matrix", {"run": RUN, "stat": "activation.rms", "first": "1e3"}, 400, "Expected first"),
        ("profile", {"run": RUN, "step": "²"}, 400, "Expected step"),
        ("histogram", {"run": RUN, "kind": "activation"}, 400, "Expected the parameter site"),
        ("histogram", {"run": RUN, "kind": "activation", "site": 5}, 400, "from 0 to 4, found '5'"),
        ("histogram", {"run": RUN, "kind": "weight", "site": 0}, 404, "no histograms of 'weight'"),
        ("text", {"run": RUN, "format": "html"}, 400, "markdown or text"),
    ],
)
def test_what_cannot_be_answered_is_said_in_a_sentence(asking, route, parameters, status, words):
    found, sentence = asking.failure(route, **parameters)
    assert (found, words in sentence) == (status, True), sentence


def test_runs_are_named_as_the_report_names_them(tmp_path):
    for folder in ("", "a", "a/gradscope/x", "gradscope/a"):
        samples.record(tmp_path / folder, samples.ramp(steps=range(3)))
    runs = Asking(tmp_path).json("runs")["runs"]
    assert {run["run"]: run["name"] for run in runs} == {
        "a/gradscope": "a",
        "a/gradscope/x/gradscope": "a/gradscope/x",
        "gradscope": ".",
        "gradscope/a/gradscope": "gradscope/a",
    }
