"""Models of which something cannot be watched: one warning that says what, and everything else is watched."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradscope
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run
from tests.stacks.tasks import CLASSES
from tests.stacks.tasks import INPUTS
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron

STEPS = 12


def trained(model, logdir, *, loss_of=None, parameters=None, **options):
    """The slugs of gradscope's warnings, and the record."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", gradscope.GradscopeWarning)
        scope = gradscope.attach(model, logdir, every=1, **options)
        optimizer = torch.optim.SGD(model.parameters() if parameters is None else parameters, lr=0.1)
        for inputs, labels in classes(STEPS):
            optimizer.zero_grad()
            if loss_of is None:
                functional.cross_entropy(model(inputs), labels).backward()
            else:
                loss_of(model, inputs, labels)
            optimizer.step()
        scope.close()
    said = [str(warning.message) for warning in caught]
    return [text.rpartition("[gradscope:")[2].rstrip("]") for text in said], said, read_run(find_runs(logdir)[0])


def sites(run, kind):
    return [site.path for site in run.frames[-1].schema.sites(kind)]


class Holder(nn.Module):
    """Another module, and a layer behind it."""

    def __init__(self, held):
        super().__init__()
        self.held, self.head = held, nn.Linear(CLASSES, CLASSES)

    def forward(self, inputs):
        return self.head(self.held(inputs))


class Direct(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.first, self.second, self.way = nn.Linear(INPUTS, 32), nn.Linear(32, CLASSES), way

    def forward(self, inputs):
        return self.second(self.way(self.first, inputs).relu())


class Silent(nn.Module):
    """Does all of the backward pass by itself."""

    def __init__(self):
        super().__init__()
        self.net = perceptron()

    def forward(self, inputs, labels):
        loss = functional.cross_entropy(self.net(inputs), labels)
        loss.backward()
        return loss.item()


class Doubled(nn.Module):
    def forward(self, inputs):
        return 2 * inputs


@pytest.mark.parametrize("way", ["script", "trace"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_is_watched_from_outside(way, tmp_path):
    plain = perceptron()
    model = torch.jit.script(plain) if way == "script" else torch.jit.trace(plain, torch.randn(2, INPUTS))
    slugs, said, run = trained(model, tmp_path)
    assert slugs == ["torchscript-module"]
    assert "the model itself" in said[0]
    assert sites(run, "activation") == [""]
    assert sites(run, "weight") == [name for name, _ in plain.named_parameters()]
    assert len(run.pulses) == STEPS


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_part_is_named_and_the_rest_is_watched(tmp_path):
    slugs, said, run = trained(Holder(torch.jit.script(perceptron())), tmp_path)
    assert slugs == ["torchscript-module"]
    assert "in held." in said[0]
    assert sites(run, "activation") == ["held", "head"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_part_that_is_left_out_is_not_spoken_of(tmp_path):
    slugs, _, _ = trained(Holder(torch.jit.script(perceptron())), tmp_path, exclude=r"^held")
    assert slugs == []


def test_a_forward_that_returns_no_tensor(tmp_path):
    slugs, said, run = trained(Silent(), tmp_path, loss_of=lambda model, inputs, labels: model(inputs, labels))
    assert slugs == ["forward-without-tensor"]
    assert "found float from the model itself" in said[0]
    assert sites(run, "activation") == [f"net.{place}" for place in range(5)]
    assert len(run.pulses) == STEPS


def test_a_model_without_parameters(tmp_path):
    net = perceptron()
    slugs, said, run = trained(
        Doubled(),
        tmp_path,
        loss_of=lambda model, inputs, labels: functional.cross_entropy(net(model(inputs)), labels).backward(),
        parameters=net.parameters(),
    )
    assert slugs == ["model-without-parameters"]
    assert "Doubled" in said[0]
    assert len(run.pulses) > STEPS / 2  # the first steps could have been another model's
    assert sites(run, "input")


@pytest.mark.parametrize(
    "way",
    [
        lambda layer, inputs: layer.forward(inputs),
        lambda layer, inputs: functional.linear(inputs, layer.weight, layer.bias),
    ],
)
def test_a_layer_whose_forward_is_called_directly(way, tmp_path):
    slugs, said, run = trained(Direct(way), tmp_path)
    assert slugs == ["forward-called-directly"]
    assert "found first at work" in said[0]
    assert sites(run, "activation") == ["second"]
    assert sites(run, "weight_gradient") == ["first.weight", "first.bias", "second.weight", "second.bias"]


def test_a_model_whose_forward_is_called_directly(tmp_path):
    slugs, said, run = trained(
        perceptron(),
        tmp_path,
        loss_of=lambda model, inputs, labels: functional.cross_entropy(model.forward(inputs), labels).backward(),
    )
    assert slugs == ["forward-called-directly"]
    assert "the model itself" in said[0]
    assert len(sites(run, "activation")) == 5


class Table(nn.Module):
    """Weights that are meant to be used by hand: a table of positions, a layer that shares another's matrix."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Embedding(4, INPUTS)
        self.attention = nn.MultiheadAttention(INPUTS, 2, batch_first=True)
        self.words = nn.Embedding(CLASSES, INPUTS)
        self.head = nn.Linear(INPUTS, CLASSES, bias=False)
        self.head.weight = self.words.weight
        self.guess = nn.Linear(INPUTS, CLASSES)

    def forward(self, inputs):
        sequence = inputs[:, None] + self.positions.weight
        mixed = self.attention(sequence, sequence, sequence)[0].mean(1)
        mixed = mixed + self.words(self.guess(mixed).argmax(1))
        return functional.linear(mixed, self.words.weight) + self.guess(mixed)


class Acting(nn.Module):
    """Returns a distribution."""

    def __init__(self):
        super().__init__()
        self.net = perceptron()

    def forward(self, inputs):
        return torch.distributions.Categorical(logits=self.net(inputs))


def test_what_works_is_not_spoken_of(tmp_path):
    assert trained(Table(), tmp_path / "table")[0] == []

    def likely(model, inputs, labels):
        (-model(inputs).log_prob(labels).mean()).backward()

    slugs, _, run = trained(Acting(), tmp_path / "acting", loss_of=likely)
    assert slugs == []
    assert run.frames


def test_a_watch_that_begins_amid_a_forward_pass_does_not_take_it_for_a_direct_call(tmp_path):
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", gradscope.GradscopeWarning)
        scope = None
        for inputs, labels in classes(STEPS):
            hidden = model[:2](inputs)
            scope = scope or gradscope.attach(model, tmp_path, every=1)
            functional.cross_entropy(model[2:](hidden), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        scope.close()
