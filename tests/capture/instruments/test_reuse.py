"""How gradients grow or fade through time where the recurrence is written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.capture.watching import watching

GROWTH, STEPS = "weight_gradient.time_growth", "weight_gradient.time_steps"


class ByHand(nn.Module):
    """A linear recurrence with bare matrices, whose state grows by ``gain`` in each time step."""

    def __init__(self, gain, *, by_function=False):
        super().__init__()
        self.hidden, self.inward = nn.Parameter(gain * torch.eye(3)), nn.Parameter(torch.eye(3))
        self.by_function = by_function

    def forward(self, xs):
        state = xs.new_zeros(xs.shape[1], 3)
        for x in xs:
            held = functional.linear(state, self.hidden) if self.by_function else state @ self.hidden
            state = held + x @ self.inward
        return state


def seen_of(model, x, *, act=lambda loss: loss.backward()):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watching(model) as seen:
        for _ in range(2):
            optimizer.zero_grad()
            act(model(x).square().mean())
            optimizer.step()
    return seen


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.2])
@pytest.mark.parametrize("length", [4, 40, 200])
@pytest.mark.parametrize("by_function", [False, True])
def test_growth_over_the_uses_of_a_matrix(gain, length, by_function):
    seen = seen_of(ByHand(gain, by_function=by_function), torch.ones(length, 2, 3))
    assert seen.get(STEPS, "hidden") == length
    expected = (length - 1) * torch.tensor(gain).log10().item()
    assert seen.get(GROWTH, "hidden") == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert seen.get(GROWTH, "inward") != seen.get(GROWTH, "inward")  # no use of it needs the one before


def test_few_uses_and_uses_side_by_side_are_no_sequence():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.eye(3))

        def forward(self, xs):
            return torch.stack([x @ self.matrix for x in xs])

    assert torch.isnan(torch.tensor(seen_of(ByHand(1.0), torch.ones(3, 2, 3)).get(GROWTH, "hidden")))
    assert torch.isnan(torch.tensor(seen_of(Shared(), torch.ones(8, 2, 3)).get(GROWTH, "matrix")))


def test_the_gradients_are_the_same_to_the_last_bit():
    torch.manual_seed(0)
    x, model = torch.randn(9, 2, 3), ByHand(0.9)
    model(x).square().mean().backward()
    alone = model.hidden.grad.clone()
    seen_of(model, x)
    assert torch.equal(model.hidden.grad, alone)


def test_a_graph_that_outlives_its_step_says_nothing_of_the_next():
    seen = seen_of(ByHand(0.5), torch.ones(6, 2, 3), act=lambda loss: [loss.backward(retain_graph=True) for _ in range(2)])
    assert seen.get(STEPS, "hidden") == 6


def test_a_layer_that_takes_input_and_state_together_is_told_from_one_that_several_places_share():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.both, self.head = nn.Linear(6, 3, bias=False), nn.Linear(3, 3, bias=False)
            with torch.no_grad():
                self.both.weight.copy_(torch.cat([torch.eye(3), 0.5 * torch.eye(3)], dim=1))

        def forward(self, xs):
            state, outs = xs.new_zeros(xs.shape[1], 3), []
            for x in xs:
                state = self.both(torch.cat([x, state], dim=1))
                outs.append(self.head(state))
            return outs[-1] + 0.0 * sum(outs)

    seen = seen_of(Cell(), torch.ones(9, 2, 3))
    assert seen.get(STEPS, "both.weight") == 9
    assert seen.get(GROWTH, "both.weight") == pytest.approx(8 * torch.tensor(0.5).log10().item(), rel=1e-3)
    assert torch.isnan(torch.tensor(seen.get(STEPS, "head.weight")))


def test_torchs_own_recurrent_layers_are_seen_by_their_modules():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.RNN(3, 3)

        def forward(self, xs):
            return self.layer(xs)[0][-1]

    assert torch.isnan(torch.tensor(seen_of(Fused(), torch.ones(9, 2, 3)).get(STEPS, "layer.weight_hh_l0")))
