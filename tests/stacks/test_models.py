"""What is special where models, their copies and their data are handled as in notebooks and with workers."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset

import gradscope
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run
from tests.stacks.running import ROOT
from tests.stacks.tasks import CLASSES
from tests.stacks.tasks import INPUTS
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron


def trained(model, steps, *, interrupted=False):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step, (inputs, labels) in enumerate(classes(steps)):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        if interrupted and step == steps - 1:
            raise KeyboardInterrupt
        loss.backward()
        optimizer.step()


def steps_of(logdir):
    return {run.run: run.steps for run in gradscope.read(logdir).runs}


# -- notebooks


def test_a_model_that_is_watched_already_is_taken_over(tmp_path):
    model = perceptron()
    gradscope.attach(model, tmp_path / "first", every=1)
    trained(model, 5)
    with gradscope.attach(model, tmp_path / "second", every=1):
        trained(model, 7)
    assert steps_of(tmp_path / "first") == {".": 5}
    assert steps_of(tmp_path / "second") == {".": 7}


def test_a_name_that_is_in_use_is_taken_over(tmp_path):
    first, second = perceptron(), perceptron()
    old = gradscope.attach(first, tmp_path, every=1, name="net")
    trained(first, 5)
    with gradscope.attach(second, tmp_path, every=1, name="net"):
        trained(second, 7)
        trained(first, 3)
    assert old.report().runs[0].steps == 5
    assert [run.steps for run in gradscope.read(tmp_path).runs] == [7]


def test_two_models_of_one_class_are_two_runs(tmp_path):
    first, second = perceptron(), perceptron()
    with gradscope.attach(first, tmp_path, every=1), gradscope.attach(second, tmp_path, every=1):
        trained(first, 5)
        trained(second, 7)
    assert sorted(steps_of(tmp_path).values()) == [5, 7]


def test_a_cell_that_is_run_again_with_a_new_model_shows_the_new_one(tmp_path):
    for steps in (5, 7):
        model = perceptron()
        gradscope.attach(model, tmp_path, every=1)
        trained(model, steps)
        del model  # as the name is bound anew
    assert 7 in steps_of(tmp_path).values()


def test_a_training_that_was_interrupted_goes_on_in_the_same_scope(tmp_path):
    model = perceptron()
    with gradscope.attach(model, tmp_path, every=1) as scope:
        with pytest.raises(KeyboardInterrupt):
            trained(model, 8, interrupted=True)
        trained(model, 20)
        report = scope.report()
    assert report.runs[0].steps == 27
    assert not report.findings


# -- workers of a DataLoader


class Holding(Dataset):
    """Holds the model that is trained, and looks at its data with it, as some sets that pick hard samples do."""

    def __init__(self, model, samples):
        self.model = model
        self.inputs, labels = zip(*classes(samples, batch=1), strict=True)
        self.labels = [int(label) for label in labels]
        self.home = os.getpid()

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, place):
        assert os.getpid() != self.home, "a worker was expected"
        guess = self.model(self.inputs[place])
        loss = guess.square().mean()
        loss.backward()  # as nobody should, and some do
        self.model.zero_grad()
        return self.inputs[place][0], self.labels[place]


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_workers_that_hold_the_watched_model_write_nothing(way, tmp_path):
    model = nn.Sequential(nn.Linear(INPUTS, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    scope = gradscope.attach(model, tmp_path, every=1)
    loader = DataLoader(Holding(model, 64), batch_size=16, num_workers=1, persistent_workers=True, multiprocessing_context=way)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        for inputs, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    del loader
    scope.close()
    run = read_run(find_runs(tmp_path)[0])
    assert len(run.pulses) == len(run.frames) == 12
    assert len(find_runs(tmp_path)) == 1
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def _child(model, optimizer):
    trained_by = nn.functional.mse_loss(model(torch.ones(4, INPUTS)), torch.zeros(4, CLASSES))
    trained_by.backward()
    optimizer.step()


def test_a_forked_process_that_trains_the_model_itself_writes_nothing(tmp_path):
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.attach(model, tmp_path, every=1):
        trained(model, 4)
        child = multiprocessing.get_context("fork").Process(target=_child, args=(model, optimizer))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        trained(model, 4)
    assert steps_of(tmp_path) == {".": 8}


def test_a_fork_that_ends_as_scripts_do_leaves_the_record_to_its_parent(tmp_path):
    program = f"""
import os, sys, torch, gradscope
from tests.stacks.test_models import trained, perceptron
model = perceptron()
scope = gradscope.attach(model, {str(tmp_path)!r}, every=1)
trained(model, 3)
if os.fork() == 0:
    trained(model, 2)
    sys.exit(0)
os.wait()
trained(model, 4)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)
    assert steps_of(tmp_path) == {".": 7}
