"""Every demo as it is shown: the training, the live report, and the report from the disk."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradscope
from gradscope.demos import all_demos
from gradscope.demos import vanishing
from gradscope.demos._samples import linear_samples
from gradscope.records import Severity
from gradscope.rule import all_rules

DEMOS = all_demos()
NAMES = (
    "healthy lr-too-high init-too-large missing-normalization vanishing missing-zero-grad decay-for-clipping stale-optimizer"
).split()


@pytest.fixture(scope="module", params=DEMOS.values(), ids=DEMOS)
def shown(request, tmp_path_factory):
    """A demo, its live report, and where it recorded to."""
    logdir = tmp_path_factory.mktemp(request.param.name)
    return request.param, request.param.run(logdir, range), logdir


def test_the_diagnosis_is_the_fault(shown):
    demo, report, _ = shown
    assert [run.diagnosis for run in report.runs] == [demo.expected]


def test_the_report_from_the_disk_is_the_live_one(shown):
    _, report, logdir = shown
    assert str(gradscope.read(logdir)) == str(report)


def test_a_faulty_training_is_alarming_and_a_sound_one_is_not(shown):
    demo, report, _ = shown
    assert (report.severity >= Severity.WARNING) == (demo.expected is not None)


def test_the_cause_comes_with_code_to_paste(shown):
    demo, report, _ = shown
    if demo.expected is not None:
        assert report.findings[0].rule == demo.expected
        compile(report.findings[0].remedy.code, demo.name, "exec")


def test_the_demos_are_all_there():
    assert sorted(DEMOS) == sorted(NAMES)
    assert next(iter(DEMOS)) == "healthy"


@pytest.mark.parametrize("demo", DEMOS.values(), ids=DEMOS)
def test_a_demo_says_what_it_is(demo):
    assert demo.story.endswith(".") and "\n" not in demo.story
    assert demo.expected is None or demo.expected in {rule.name for rule in all_rules()}
    assert demo.source.stem == demo.name.replace("-", "_")
    assert len(inspect.getsource(demo.train).splitlines()) <= 20


def test_the_sound_training_learns(tmp_path):
    run = DEMOS["healthy"].run(tmp_path, lambda steps: range(steps // 2)).runs[0]
    assert run.last_loss < run.first_loss - 1.5


def test_the_vanishing_network_loses_its_signal_by_its_initialisation_alone():
    torch.manual_seed(0)
    network = vanishing.network()
    inputs = torch.randn(64, vanishing.FEATURES)
    assert network[:-1](inputs).std(dim=0).norm() < 1e-6
    for layer in network[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert network[:-1](inputs).std(dim=0).norm() > 0.1


def test_two_slips_in_one_loop_are_both_reported(tmp_path):
    torch.manual_seed(0)
    inputs, targets = linear_samples(400)
    model = nn.Linear(10, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradscope.attach(model, tmp_path) as scope:
        for sample, target in zip(inputs, targets, strict=True):
            functional.mse_loss(model(sample), target).backward()
            optimizer.step()
            for parameter in model.parameters():
                parameter.data *= 0.99
        report = scope.report()
    causes = [finding.rule for finding in report.findings if finding.kind == "cause"]
    assert causes == ["missing-zero-grad", "weights-changed-outside-optimizer"]
