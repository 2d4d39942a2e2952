"""Hooks on outputs, whose tables are used again: graphs are told apart, and users' hooks stay where they were put."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.capture.watching import step
from tests.capture.watching import watching


def line():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.0)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_the_graph_of_an_earlier_step_that_runs_late_is_not_taken_for_this_steps(kept):
    model, _ = line()
    optimizer = torch.optim.SGD([model[2].bias], lr=0.0)  # which no backward pass needs as it was
    x = torch.randn(16, 4)
    graphs = []
    with watching(model) as seen:
        for _ in range(12):
            loss = model(x).square().mean()
            loss.backward(retain_graph=True)
            if len(graphs) == kept:
                (1000.0 * graphs.pop(0)).backward()  # in the midst of this step
            optimizer.step()
            model.zero_grad()
            graphs.append(loss)
    first = seen.get("activation_gradient.rms", "0", step=0)
    later = [seen.get("activation_gradient.rms", "0", step=place) for place in range(kept, 12)]
    assert first > 0 and later == pytest.approx([first] * len(later), rel=1e-5)


def test_a_hook_that_the_user_puts_on_an_output_is_called_for_that_output_alone():
    model, optimizer = line()
    called = []
    with watching(model) as seen:
        for at in range(10):
            optimizer.zero_grad()
            out = model(torch.ones(3, 4))
            if at in (3, 7):
                handle = out.register_hook(lambda gradient, at=at: called.append(at))
            out.square().mean().backward()
            optimizer.step()
            if at == 8:
                handle.remove()  # of an output that is gone
    assert called == [3, 7]
    assert all(seen.get("activation_gradient.rms", "2", step=place) > 0 for place in range(10))


def test_outputs_that_the_user_keeps_do_not_mix():
    model, optimizer = line()
    with watching(model) as seen:
        kept = [step(model, optimizer, torch.full((3, 4), 1.0 + at)) for at in range(8)]
    outputs = [seen.get("activation.rms", "2", step=place) for place in range(8)]
    assert outputs == pytest.approx([float(out.detach().square().mean().sqrt()) for out in kept], rel=1e-5)
    gradients = [seen.get("activation_gradient.rms", "2", step=place) for place in range(8)]
    assert gradients == pytest.approx([float((out.detach() / 3).square().mean().sqrt()) for out in kept], rel=1e-5)
