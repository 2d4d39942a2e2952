"""attach() and the Scope from outside: arguments, findings, callbacks, failures, where it writes."""

from __future__ import annotations

import ast
import copy
import math
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import gradscope
import gradscope.scope as gradscope_scope
from gradscope.capture.arena import Arena
from gradscope.capture.arena import Row
from gradscope.diagnosis import UnknownRule
from gradscope.logdir.recorder import Recorder
from gradscope.report import jsonreport
from tests.models import mlp
from tests.models import regress

ROOT = Path(__file__).parents[1]


def sgd(model, lr=0.01):
    return torch.optim.SGD(model.parameters(), lr=lr)


def broken_training(logdir, *, steps=12, **options):
    """A loop whose learning rate is far too high, so that the loss leaves the finite numbers; the open scope."""
    torch.manual_seed(0)
    model = mlp(6, 16, 16, 3)
    scope = gradscope.attach(model, logdir, every=1, **options)
    regress(model, sgd(model, lr=1e3), steps=steps)
    return model, scope


# -- arguments


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"budget": 0}, ValueError, "above 0 and at most 1; found 0"),
        ({"budget": 1.5}, ValueError, "above 0 and at most 1; found 1.5"),
        ({"budget": math.nan}, ValueError, "above 0 and at most 1; found nan"),
        ({"budget": "2%"}, ValueError, "above 0 and at most 1; found '2%'"),
        ({"every": 0}, ValueError, "at least 1; found 0"),
        ({"every": 2.5}, ValueError, "a whole number and at least 1; found 2.5"),
        ({"every": "all"}, ValueError, "a whole number and at least 1; found 'all'"),
        ({"select": ["no-such-rule"]}, UnknownRule, "no rule named 'no-such-rule'"),
        ({"ignore": ["missing-zero-grads"]}, UnknownRule, "did you mean missing-zero-grad"),
        ({"select": "missing-zerograd"}, UnknownRule, "no rule named 'missing-zerograd'"),
        ({"include": "layer["}, ValueError, r"include is a regular expression .* found 'layer\[', which is none"),
        ({"exclude": "*x"}, ValueError, r"exclude is a regular expression .* found '\*x', which is none"),
        ({"include": ["a"]}, ValueError, r"include is a regular expression .* found \['a'\], which is none"),
        ({"name": "a/b"}, ValueError, "without a path; found 'a/b'"),
        ({"name": ".."}, ValueError, r"without a path; found '\.\.'"),
        ({"name": ""}, ValueError, "without a path; found ''"),
        ({"name": 3}, ValueError, "without a path; found 3"),
        ({"name": "a\nb"}, ValueError, r"text of one line without a path; found 'a\\nb'"),
        ({"on_finding": 3}, TypeError, "found a int, which cannot be called"),
    ],
)
def test_a_wrong_argument_gets_one_sentence_and_leaves_nothing_behind(tmp_path, arguments, error, sentence):
    backward = torch.autograd.backward
    with pytest.raises(error, match=sentence) as raised:
        gradscope.attach(nn.Linear(2, 2), tmp_path, **arguments)
    assert "\n" not in str(raised.value)
    assert torch.autograd.backward is backward
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", [None, "model", nn.Linear, [nn.Linear(2, 2)]])
def test_only_a_module_can_be_watched(tmp_path, model):
    with pytest.raises(TypeError, match=r"expects a torch\.nn\.Module to watch, and was given a (NoneType|str|type|list)\."):
        gradscope.attach(model, tmp_path)


def test_one_rule_may_be_given_by_its_bare_name(tmp_path):
    with gradscope.attach(nn.Linear(2, 2), tmp_path, select="missing-zero-grad") as scope:
        pass
    (run,) = scope.report().runs
    assert {*run.checked, *run.skipped} == {"missing-zero-grad"}


# -- where it writes


def test_the_default_logdir_is_tensorboards_habit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with gradscope.attach(nn.Linear(2, 2)) as scope:
        pass
    assert scope.logdir.parent == tmp_path / "runs"
    assert re.fullmatch(r"[A-Z][a-z]{2}\d\d_\d\d-\d\d-\d\d_.+", scope.logdir.name)
    assert gradscope.read(tmp_path / "runs").runs


def test_runs_that_begin_in_one_second_do_not_share_the_default_logdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = mlp(4, 8, 2)
    for _ in range(4):
        with gradscope.attach(model):
            regress(model, sgd(model), steps=1)
    assert len(gradscope.read(tmp_path / "runs").runs) == 4


def test_what_is_observed_must_be_a_number(tmp_path):
    model = nn.Linear(2, 2)
    with gradscope.attach(model, tmp_path) as scope, pytest.raises(TypeError, match=r"takes a number; found 'x'"):
        scope.observe(accuracy="x")


def test_models_may_share_a_logdir(tmp_path):
    models = [nn.Linear(2, 2), nn.Linear(2, 2), nn.Bilinear(2, 2, 2), nn.Linear(2, 2)]
    names = (None, None, None, "critic")
    scopes = [gradscope.attach(model, tmp_path, name=name) for model, name in zip(models, names, strict=True)]
    for scope in scopes:
        assert scope.logdir == tmp_path
    for model in (models[0], models[3]):
        regress(model, sgd(model), steps=2)
    for scope in scopes:
        scope.close()
    runs = gradscope.read(tmp_path).runs
    assert {run.info.name for run in runs} == {"Linear", "Bilinear", "critic"}
    assert len({run.run for run in runs}) == 4


def test_a_second_run_in_the_same_logdir_is_read_as_the_same_run(tmp_path):
    for _ in range(2):
        model = nn.Linear(2, 2)
        with gradscope.attach(model, tmp_path):
            regress(model, sgd(model), steps=3)
    assert [run.run for run in gradscope.read(tmp_path).runs] == ["."]


# -- findings and reports


def test_findings_appear_while_training_goes_on_and_are_told_once(tmp_path):
    told = []
    _, scope = broken_training(tmp_path, on_finding=told.append)
    scope.report()
    assert told
    assert scope.findings[0] in told
    scope.report()
    scope.close()
    rules = [finding.rule for finding in told]
    assert len(rules) == len(set(rules))
    assert {finding.rule for finding in scope.findings} <= set(rules)


def test_the_report_so_far_grows(tmp_path):
    model = mlp(4, 8, 2)
    with gradscope.attach(model, tmp_path, every=1) as scope:
        assert scope.report().runs[0].steps == 0
        for steps in (1, 2, 3):
            regress(model, sgd(model), steps=1)
            assert scope.report().runs[0].steps == steps
    assert scope.report().runs[0].steps == 3


@pytest.mark.parametrize("name", [None, "critic"])
@pytest.mark.parametrize("broken", [False, True])
def test_the_live_report_is_the_one_that_is_read_back(tmp_path, broken, name):
    if broken:
        _, scope = broken_training(tmp_path, name=name)
    else:
        model = mlp(6, 16, 3)
        scope = gradscope.attach(model, tmp_path, name=name)
        regress(model, sgd(model), steps=30)
    live = scope.report()
    scope.close()
    assert live.runs[0].verdict_label == ("critical" if broken else "healthy")
    for report in (scope.report(), gradscope.read(tmp_path)):
        assert str(report) == str(live)
        assert jsonreport.render(report.runs) == jsonreport.render(live.runs)


def test_closing_twice_and_using_a_closed_scope_does_nothing(tmp_path):
    model = mlp(4, 8, 2)
    scope = gradscope.attach(model, tmp_path, every=1)
    regress(model, sgd(model), steps=2)
    scope.close()
    scope.close()
    scope.step()
    scope.observe(loss=1.0, accuracy=0.5)
    regress(model, sgd(model), steps=2)
    assert scope.report().runs[0].steps == 2


def test_what_is_observed_goes_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = mlp(4, 8, 2)
    with gradscope.attach(model, tmp_path, every=1) as scope:
        for step in range(3):
            scope.observe(accuracy=step / 10)
            regress(model, sgd(model), steps=1)
    events = EventAccumulator(str(tmp_path / "gradscope"))
    events.Reload()
    values = [float(torch.tensor(e.tensor_proto.float_val[0])) for e in events.Tensors("gradscope/observed/accuracy")]
    assert values == pytest.approx([0.0, 0.1, 0.2])


def test_a_manual_loop_is_told_step_by_step(tmp_path):
    model = mlp(4, 8, 2)
    with gradscope.attach(model, tmp_path, every=1) as scope:
        for _ in range(4):
            model.zero_grad()
            model(torch.ones(3, 4)).square().mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
            scope.step()
    assert gradscope.read(tmp_path).runs[0].steps == 4


def test_a_model_without_parameters_can_be_watched(tmp_path):
    image = torch.zeros(2, 4, requires_grad=True)
    model = nn.Tanh()
    optimizer = torch.optim.SGD([image], lr=0.1)
    with gradscope.attach(model, tmp_path, every=1):
        for _ in range(5):
            optimizer.zero_grad()
            (model(image) - 1).square().mean().backward()
            optimizer.step()
    assert gradscope.read(tmp_path).runs


# -- failures


def trained(logdir=None, *, steps=20, before=lambda step: None, **options):
    """The parameters after a training, watched where a logdir is given."""
    torch.manual_seed(0)
    model = nn.Sequential(mlp(6, 16, 16), nn.Dropout(0.3), nn.Linear(16, 3))
    optimizer = sgd(model, lr=0.1)
    scope = gradscope.attach(model, logdir, every=1, **options) if logdir is not None else None
    for step in range(steps):
        before(step)
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
    return scope, model.state_dict()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def raising(*_, **__):
    raise RuntimeError("the sky fell")


@pytest.mark.parametrize(
    ("owner", "method"),
    [(Row, "gather"), (Arena, "statistics"), (Recorder, "frame"), (Recorder, "pulses"), (gradscope_scope, "diagnose")],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_a_failure_inside_gradscope_never_stops_the_training(tmp_path, monkeypatch, owner, method):
    hooks = torch.nn.modules.module._global_forward_hooks
    backward = torch.autograd.backward

    def fail_from_step_7(step):
        if step == 7:
            monkeypatch.setattr(owner, method, raising)
            if method == "pulses":
                monkeypatch.setattr("gradscope.live.FLUSH_SECONDS", -1.0)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scope, parameters = trained(tmp_path, before=fail_from_step_7)
        left = (dict(hooks), torch.autograd.backward)
        scope.close()
    assert left == ({}, backward)
    own = [str(w.message) for w in caught if issubclass(w.category, gradscope.GradscopeWarning)]
    assert len(own) == 1
    assert own[0].endswith("RuntimeError: the sky fell [gradscope:watching-failed]")
    monkeypatch.undo()
    assert same(parameters, trained()[1])
    if method != "diagnose":  # which is not due at every step
        assert 7 <= scope.report().runs[0].steps <= 8
    assert gradscope.read(tmp_path).runs


def test_a_failure_while_closing_is_told_and_goes_no_further(tmp_path, monkeypatch):
    _model, scope = broken_training(tmp_path)
    monkeypatch.setattr(gradscope_scope, "diagnose", raising)
    with pytest.warns(gradscope.GradscopeWarning, match="while closing.*the sky fell.*watching-failed"):
        scope.close()
    monkeypatch.undo()
    assert gradscope.read(tmp_path).runs[0].steps == 12


def test_a_callback_that_raises_is_told_once_and_not_called_again(tmp_path):
    calls = []

    def fails(finding):
        calls.append(finding.rule)
        raise ValueError("no mail server")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, scope = broken_training(tmp_path, on_finding=fails)
        scope.close()
    assert len(calls) == 1
    own = [str(w.message) for w in caught if issubclass(w.category, gradscope.GradscopeWarning)]
    assert own == ["on_finding raised ValueError: no mail server; it is not called again. [gradscope:callback-failed]"]
    assert scope.report().runs[0].steps == 12


def test_a_logdir_that_cannot_be_written_costs_the_record_and_nothing_else(tmp_path):
    (tmp_path / "taken").write_text("a file in the way")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scope, parameters = trained(tmp_path / "taken")
        report = scope.report()
    (message,) = [str(w.message) for w in caught if issubclass(w.category, gradscope.GradscopeWarning)]
    assert message.startswith(f"Expected to write to {tmp_path / 'taken' / 'gradscope'}, found: ")
    assert message.endswith("[gradscope:logdir-unwritable]")
    assert same(parameters, trained()[1])
    assert report.runs[0].steps == report.runs[0].sampled_steps == 20
    assert (tmp_path / "taken").read_text() == "a file in the way"


# -- messages


def test_every_slug_has_its_paragraph_and_every_paragraph_its_slug():
    used = {
        node.args[0].value
        for path in (ROOT / "gradscope").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "warn"
    }
    page = (ROOT / "docs" / "messages.md").read_text()
    assert used
    assert set(re.findall(r"^## (\S+)$", page, re.MULTILINE)) == used
    sections = re.split(r"^## \S+$", page, flags=re.MULTILINE)[1:]
    assert all(len(section.split()) > 30 for section in sections)


def test_a_copy_of_the_model_is_not_watched(tmp_path):
    model = mlp(4, 8, 2)
    with gradscope.attach(model, tmp_path, every=1) as scope:
        twin = copy.deepcopy(model)
        regress(model, sgd(model), steps=2)
        regress(twin, sgd(twin), steps=2)
        regress(model, sgd(model), steps=1)
    assert scope.report().runs[0].steps == 3
