"""Runs that are longer than memory: what goes wrong late is named, and the report from the disk is the live one."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import gradscope
from gradscope import live
from gradscope.logdir import replay
from gradscope.memory.history import History

STEPS = 700
BEGINS = 525  # the fault

MOST = {"most_frames": 128, "most_pulses": 320}


@pytest.fixture(autouse=True)
def short_memory(monkeypatch):
    """Memory in proportion to the run: a fifth of its frames, half of its pulses."""
    for module in (live, replay):
        monkeypatch.setattr(module, "History", partial(History, **MOST))


def trained(logdir, *, fault=None):
    """A classifier's training with every step sampled, and ``fault(step, model, optimizer)`` from step 525 on; the scope."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    teacher = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gradscope.attach(model, logdir, every=1) as scope:
        for step in range(STEPS):
            inputs = torch.randn(32, 8)
            if fault is not None and step >= BEGINS:
                fault(step, model, optimizer)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), (3 * teacher(inputs)).argmax(1)).backward()
            optimizer.step()
    return scope


def rate_jumps(step, model, optimizer):
    optimizer.param_groups[0]["lr"] = 5.0


def units_die(step, model, optimizer):
    with torch.no_grad():
        model[0].bias.sub_(0.05)


def named(scope, logdir):
    """The rules of the findings at warning or above, live and read alike; also that no more was held than there is room for."""
    assert len(scope._archive.frames) <= MOST["most_frames"]
    assert len(scope._archive.pulses) <= MOST["most_pulses"]
    report, read = scope.report(), gradscope.read(logdir)
    assert str(read) == str(report)
    assert read.runs[0].sampled_steps == STEPS
    return {finding.rule for finding in read.findings if finding.severity.label != "info"}


def test_a_healthy_run_raises_nothing(tmp_path):
    assert named(trained(tmp_path), tmp_path) == set()


def test_a_rate_that_jumps_late_is_named(tmp_path):
    scope = trained(tmp_path, fault=rate_jumps)
    assert "lr-too-high" in named(scope, tmp_path)
    (finding,) = (finding for finding in scope.findings if finding.rule == "lr-too-high")
    assert BEGINS - 2 <= finding.first_step <= BEGINS + 20


def test_units_that_die_late_are_named(tmp_path):
    assert "dead-units" in named(trained(tmp_path, fault=units_die), tmp_path)
