"""How gradients grow or fade through time, and that the layer that shows it computes what it would have."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradscope.capture.hooks import ForwardHooks
from tests.capture.watching import step
from tests.capture.watching import watching
from tests.models import ResNet
from tests.models import images

GROWTH, STEPS = "activation_gradient.time_growth", "activation_gradient.time_steps"


def seen_of_last(model, x, *, steps=2, every=1):
    """What a watch sees where the loss is of the last time step's output."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watching(model, every=every) as seen:
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return seen


class Fused(nn.Module):
    """A recurrent layer, and its output at the last time step."""

    def __init__(self, layer, *, batch_first=False):
        super().__init__()
        self.layer, self.batch_first = layer, batch_first

    def forward(self, x):
        out = self.layer(x)[0]
        return out[:, -1] if self.batch_first else out[-1]


def linear_rnn(gain, **options):
    """A recurrent layer whose gradient grows by ``gain`` at every time step back, as its units are never below zero."""
    layer = nn.RNN(3, 3, nonlinearity="relu", bias=False, **options)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.eye(3))
        layer.weight_hh_l0.copy_(gain * torch.eye(3))
    return layer


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.2])
@pytest.mark.parametrize("length", [5, 40, 200])
@pytest.mark.parametrize("batch_first", [False, True])
def test_growth_of_a_fused_layer(gain, length, batch_first):
    model = Fused(linear_rnn(gain, batch_first=batch_first), batch_first=batch_first)
    x = torch.ones(2, length, 3) if batch_first else torch.ones(length, 2, 3)
    seen = seen_of_last(model, x)
    assert seen.get(STEPS, "layer") == length
    # Where squares vanish in float32, the slope is that of the steps before.
    assert seen.get(GROWTH, "layer") == pytest.approx((length - 1) * math.log10(gain), rel=0.02, abs=1e-3)


def test_an_input_without_a_batch():
    seen = seen_of_last(linear_rnn_alone(), torch.ones(10, 3))
    assert seen.get(GROWTH, "layer") == pytest.approx(9 * math.log10(1.2), rel=1e-3)


def linear_rnn_alone():
    return Fused(linear_rnn(1.2))


def test_an_input_that_has_a_gradient_of_its_own():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.rest = nn.Linear(3, 3), linear_rnn_alone()

        def forward(self, x):
            return self.rest(self.embed(x).abs())

    seen = seen_of_last(Embedded(), torch.ones(10, 2, 3))
    assert seen.get(GROWTH, "rest.layer") == pytest.approx(9 * math.log10(1.2), rel=1e-3)


def test_hooks_on_an_input_that_outlives_the_step_are_taken_off():
    x = torch.ones(10, 2, 3, requires_grad=True)
    seen = seen_of_last(linear_rnn_alone(), x, steps=4)
    assert seen.get(STEPS, "layer") == 10
    assert not x._backward_hooks


def test_double_precision():
    seen = seen_of_last(linear_rnn_alone().double(), torch.ones(10, 2, 3, dtype=torch.float64))
    assert seen.get(GROWTH, "layer") == pytest.approx(9 * math.log10(1.2), rel=1e-3)


def test_what_shows_no_time_has_no_growth():
    class Packed(Fused):
        def forward(self, x):
            return self.layer(nn.utils.rnn.pack_padded_sequence(x, [6, 5]))[1]

    layer = nn.RNN(3, 3)
    assert math.isnan(seen_of_last(Packed(layer), torch.ones(6, 2, 3)).get(GROWTH, "layer"))
    assert math.isnan(seen_of_last(Fused(nn.GRU(3, 3, bidirectional=True)), torch.ones(6, 2, 3)).get(GROWTH, "layer"))
    assert math.isnan(seen_of_last(nn.Sequential(nn.Linear(3, 3)), torch.ones(6, 3)).get(GROWTH, "0"))


# -- cells and other modules that are called again and again


class Cells(nn.Module):
    def __init__(self, cell, *, state):
        super().__init__()
        self.cell, self.state = cell, state

    def forward(self, xs):
        h = self.state(xs.shape[1])
        for x in xs:
            h = self.cell(x, h)
        return h[0] if isinstance(h, tuple) else h


class Linear(nn.Module):
    """A cell of the user's own, with a constant gain."""

    def __init__(self, gain):
        super().__init__()
        self.inner = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.inner.weight.copy_(gain * torch.eye(3))

    def forward(self, x, h):
        return self.inner(h) + x


@pytest.mark.parametrize("gain", [0.8, 1.3])
@pytest.mark.parametrize("length", [5, 31, 100])
def test_growth_through_a_module_that_is_called_again_and_again(gain, length):
    model = Cells(Linear(gain), state=lambda batch: torch.zeros(batch, 3))
    seen = seen_of_last(model, torch.ones(length, 2, 3))
    for frame in (0, 1):
        for name in ("cell", "cell.inner"):
            steps = seen.get(STEPS, name, step=frame)
            assert length - 4 <= steps <= length
            growth = seen.get(GROWTH, name, step=frame)
            assert growth == pytest.approx((steps - 1) * math.log10(gain), rel=1e-3)


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_cells_of_torch(cell):
    torch.manual_seed(0)
    zeros = (lambda n: (torch.zeros(n, 3), torch.zeros(n, 3))) if cell is nn.LSTMCell else (lambda n: torch.zeros(n, 3))
    seen = seen_of_last(Cells(cell(3, 3), state=zeros), torch.randn(12, 4, 3), steps=8)
    assert seen.get(STEPS, "cell") == 12
    assert seen.get(GROWTH, "cell") < -1  # fresh cells forget


def test_three_calls_are_no_sequence():
    model = Cells(Linear(1.3), state=lambda batch: torch.zeros(batch, 3))
    assert math.isnan(seen_of_last(model, torch.ones(3, 2, 3)).get(GROWTH, "cell"))


def test_a_shared_activation_is_no_sequence():
    model = ResNet()
    model.blocks.append(model.blocks[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for _ in range(3):
            step(model, optimizer, images()[0])
    assert all(math.isnan(growth) for growth in seen.frames[-1].columns[GROWTH])


def test_micro_batches_are_passes_of_their_own():
    model = Cells(Linear(1.3), state=lambda batch: torch.zeros(batch, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watching(model) as seen:
        for _ in range(6):
            optimizer.zero_grad()
            for _ in range(3):
                model(torch.ones(8, 2, 3)).square().mean().backward()
            optimizer.step()
    assert seen.get(STEPS, "cell") == 8
    assert seen.get(GROWTH, "cell") == pytest.approx(7 * math.log10(1.3), rel=1e-3)


def test_one_hook_is_there_throughout():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    hooks, counts = torch.nn.modules.module._global_forward_hooks, []
    with watching(model):
        for _ in range(6):
            step(model, optimizer, torch.ones(2, 3))
            counts.append(sum(isinstance(hook.__self__, ForwardHooks) for hook in hooks.values()))
    assert counts == [1] * 6  # torch.compile compiles again for each other number
    assert not hooks


# -- nothing changes


def train(kind, *, watched, **options):
    """Some steps of a recurrent layer on plain data: what it computed, and what is left."""
    torch.manual_seed(0)
    layer = getattr(nn, kind)(5, 4, **options)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    results = []
    x, h = torch.randn(6, 6, 5), None

    def run():
        for _ in range(3):
            optimizer.zero_grad()
            out, state = layer(x, h)
            (out.square().mean() + sum(part.sum() for part in state)).backward()
            results.extend([out, *(p.grad.clone() for p in layer.parameters())])
            optimizer.step()

    if not watched:
        run()
        return results, list(layer.parameters()), x
    with watching(layer) as seen:
        run()
    if not options.get("bidirectional"):
        assert seen.get(STEPS, "(model)") == 6
    return results, list(layer.parameters()), x


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_layer_that_is_handed_an_alias_computes_the_same_to_the_last_bit(kind, num_layers, bidirectional, batch_first):
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "batch_first": batch_first}
    bare, watched = train(kind, watched=False, **options), train(kind, watched=True, **options)
    assert all(map(torch.equal, bare[0], watched[0]))
    assert all(map(torch.equal, bare[1], watched[1]))
    assert not watched[2].requires_grad
    assert watched[2].grad is None


def test_a_frozen_layer_stays_out_of_the_graph():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.GRU(3, 3).requires_grad_(False), nn.Linear(3, 2)
            self.needed = []

        def forward(self, x):
            out = self.layer(x)[0]
            self.needed.append(out.requires_grad)
            return self.head(out)

    model = Frozen()
    seen = seen_of_last(model, torch.ones(6, 2, 3))
    assert model.needed == [False, False]
    assert math.isnan(seen.get(GROWTH, "layer"))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_layer_runs_again_as_it_ran(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.GRU(3, 3)
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            if reentrant:
                x = x * self.weight  # a reentrant checkpoint needs an input with a gradient
            return checkpoint(self.layer, x, use_reentrant=reentrant)[0]

    def grads(watched):
        torch.manual_seed(0)
        model = Checkpointed()
        x = torch.randn(6, 2, 3)
        if watched:
            seen_of_last(model, x)
        else:
            model(x).square().mean().backward()
        return [p.grad for p in model.layer.parameters()]

    assert all(map(torch.equal, grads(False), grads(True)))


def test_validation_without_gradients_is_handed_its_own_data():
    model = nn.GRU(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model):
        with torch.no_grad():
            assert not model(torch.ones(6, 2, 3))[0].requires_grad
        model(torch.ones(6, 2, 3))[0].square().mean().backward()
        optimizer.step()
