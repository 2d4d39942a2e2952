"""Layers and parameters that a forward pass uses, and that the model does not know to be its own."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from gradscope.records import Stray
from tests.capture.watching import step
from tests.capture.watching import watching

STEPS = 8  # as many as it takes to read four graphs


class Plain:
    """A user's class that forgot to be a module."""

    def __init__(self, layer):
        self.layer = layer


class Held(nn.Module):
    """Two registered layers, and something between or after them that ``way`` calls."""

    def __init__(self, held, way, *, first=False):
        super().__init__()
        self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, 2)
        self.held, self.way, self.first = held, way, first

    def forward(self, x):
        if self.first:
            return self.out(self.inner(self.way(self.held, x)))
        return self.out(torch.relu(self.way(self.held, self.inner(x))))


def strays(model, *, more=(), act=lambda model: None, loss=None):
    optimizer = torch.optim.SGD([*model.parameters(), *more], lr=0.01)
    torch.manual_seed(0)
    with watching(model) as seen:
        for _ in range(STEPS):
            step(model, optimizer, torch.randn(3, 4)) if loss is None else _step(model, optimizer, loss)
            act(model)
    return seen.facts.wiring.strays


def _step(model, optimizer, loss):
    optimizer.zero_grad()
    loss(model(torch.randn(3, 4))).backward()
    optimizer.step()


def first_of(held, x):
    return held[0](x)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("held", "way", "place"),
    [
        ([nn.Linear(4, 4)], first_of, "held[0]"),
        ({"a": nn.Linear(4, 4)}, lambda held, x: held["a"](x), "held['a']"),
        (([nn.Linear(4, 4)],), lambda held, x: held[0][0](x), "held[0][0]"),
        (Plain(nn.Linear(4, 4)), lambda held, x: held.layer(x), "held.layer"),
        ([nn.Sequential(nn.Linear(4, 4), nn.Tanh())], first_of, "held[0].0"),
    ],
)
def test_layers_that_attributes_lead_to_but_that_are_not_registered(held, way, place, first):
    assert strays(Held(held, way, first=first)) == (Stray(place, "Linear", 20),)


def test_bare_parameters_in_a_list():
    held = [nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.ones(4))]
    found = strays(Held(held, lambda held, x: x @ held[0] * held[1]))
    assert found == (Stray("held[0]", "Parameter", 16), Stray("held[1]", "Parameter", 4))


def test_layers_that_are_made_in_each_forward_pass():
    found = strays(Held(None, lambda held, x: nn.Linear(4, 4)(x)))
    assert {stray.place for stray in found} == {""} and sum(stray.elements for stray in found) == 20


def test_layers_of_a_global():
    layer = nn.Linear(4, 4)
    found = strays(Held(None, lambda held, x: layer(x)))
    assert sorted(stray.elements for stray in found) == [4, 16]


def test_what_an_optimizer_was_given_by_hand():
    held = [nn.Linear(4, 4)]
    assert strays(Held(held, first_of), more=held[0].parameters()) == ()


def test_what_an_optimizer_of_its_own_trains():
    held = [nn.Linear(4, 4)]
    own = torch.optim.SGD(held[0].parameters(), lr=0.01)
    assert strays(Held(held, first_of), act=lambda model: own.step()) == ()


def test_what_somebody_writes_to():
    held = [nn.Linear(4, 4)]

    def decay(model):
        with torch.no_grad():
            for parameter in held[0].parameters():
                parameter.mul_(0.99)

    assert strays(Held(held, first_of), act=decay) == ()


@pytest.mark.parametrize(
    ("held", "way"),
    [
        ([nn.Linear(4, 4).requires_grad_(False)], first_of),  # frozen
        ([nn.Linear(4, 4).eval()], first_of),  # put out of sight on purpose
        ([nn.Linear(4, 4)], lambda held, x: x + held[0](x).detach()),
        ([nn.Tanh()], first_of),
        ([nn.Linear(4, 4)], lambda held, x: x),  # not called
        (None, lambda held, x: x),
    ],
)
def test_what_is_not_to_be_trained(held, way):
    assert strays(Held(held, way)) == ()


def test_registered_layers_that_a_list_holds_too():
    model = Held(None, lambda held, x: x)
    model.held = [model.inner, model]
    assert strays(model) == ()


def test_nets_outside_of_the_model():
    features, encoder = nn.Linear(2, 2), nn.Linear(4, 4)
    model = Held(None, lambda held, x: x)
    assert strays(model, loss=lambda out: features(out).square().mean()) == ()
    assert strays(copy.deepcopy(model), loss=lambda out: out.mean() + encoder(torch.ones(1, 4)).mean()) == ()


def test_an_encoder_in_front_of_the_model():
    encoder = nn.Linear(4, 4)
    model = Held(None, lambda held, x: x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for _ in range(STEPS):
            step(model, optimizer, encoder(torch.randn(3, 4)))
    assert seen.facts.wiring.strays == ()


def test_a_hidden_net_that_only_the_loss_uses():
    features = nn.Linear(2, 2)
    model = Held([features], lambda held, x: x)
    assert strays(model, loss=lambda out: features(out).square().mean()) == ()


def test_looks_no_further_than_there_is_sense_in():
    held = {"numbers": list(range(100_000)), "call": partial(print), "layer": [nn.Linear(4, 4)]}
    held["self"] = held
    (found,) = strays(Held(held, lambda held, x: held["layer"][0](x)))
    assert found.place == "held['layer'][0]"
