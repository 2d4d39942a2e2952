"""Models that change while they are watched: parameters moved, replaced, resized, added; layers that are not seen at all."""

from __future__ import annotations

import torch
from torch import nn

import gradscope
from gradscope.capture import compiled
from tests.capture.watching import step
from tests.capture.watching import watching
from tests.models import mlp


def test_a_layer_put_in_later_is_watched_with_its_parameters():
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        step(model, optimizer, torch.randn(3, 4))
        model.append(nn.Linear(2, 5))
        optimizer.add_param_group({"params": model[-1].parameters()})
        for _ in range(2):
            step(model, optimizer, torch.randn(3, 4))
    added = str(len(model) - 1)
    assert f"{added}.weight" in seen.sites("weight")
    assert seen.get("update.ratio", f"{added}.weight") > 0
    assert added in seen.sites("activation")
    assert f"{added}.weight" in seen.facts.optimizers[0].parameters


def test_a_weight_that_changes_its_shape_or_its_type_goes_on_being_watched():
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        step(model, optimizer, torch.randn(3, 4))
        model[-1].weight.data = torch.randn(1, 8)
        model[-1].bias.data = torch.zeros(1)
        step(model, optimizer, torch.randn(3, 4))
        model.double()
        step(model, optimizer, torch.randn(3, 4, dtype=torch.float64))
    assert len(seen.frames) == 3
    assert seen.get("weight.norm", f"{len(model) - 1}.weight") > 0


def test_complex_parameters_are_left_alone_and_belong_to_the_model_all_the_same():
    class Turns(nn.Module):
        def __init__(self):
            super().__init__()
            self.turn = nn.Parameter(torch.randn(4, dtype=torch.complex64))

        def forward(self, x):
            return (x * self.turn).real

    torch.manual_seed(0)
    model = Turns()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model) as seen:
        for _ in range(3):
            step(model, optimizer, torch.randn(5, 4))
    assert seen.field("step") == [0, 1, 2]
    assert seen.facts.optimizers[0].parameters == ("turn",)
    assert seen.sites("weight") == []


def test_an_optimizer_made_anew_takes_the_place_of_the_one_before():
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    with watching(model) as seen:
        for rate in (0.1, 0.01, 0.001):
            step(model, torch.optim.SGD(model.parameters(), lr=rate), torch.randn(3, 4))
    assert [optimizer.learning_rate for optimizer in seen.facts.optimizers] == [0.001]


def compiled_run(tmp_path):
    """Twenty steps of a compiled model on the default budget: its report, the graphs compiled, and how often they ran."""
    graphs, calls = [], []

    def backend(graph, _):
        graphs.append(graph)
        return lambda *inputs: (calls.append(1), graph(*inputs))[1]

    torch._dynamo.reset()
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    call = torch.compile(model, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradscope.attach(model, tmp_path) as scope:
        for _ in range(20):
            step(call, optimizer, torch.randn(3, 4))
        (run,) = scope.report().runs
    torch._dynamo.reset()
    return run, len(graphs), len(calls)


def test_a_compiled_model_stays_compiled_on_steps_that_are_not_sampled(tmp_path):
    run, graphs, calls = compiled_run(tmp_path)
    assert 0 < run.sampled_steps < 20
    assert calls == 20 - run.sampled_steps
    assert graphs == 1
    assert "dead-units" not in run.skipped


def test_a_compiled_model_stays_compiled_without_room_and_says_what_could_not_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "has_room", lambda model, *, untrained: False)  # as on an accelerator that is full
    run, graphs, calls = compiled_run(tmp_path)
    assert calls == 20
    assert graphs == 1
    assert "compiled" in run.skipped["dead-units"]
    assert "missing-zero-grad" in run.checked or "missing-zero-grad" in run.skipped
