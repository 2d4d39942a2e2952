"""Sampling amid torch's own machinery: lazy modules, transforms, tracing, other default precisions and devices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.capture.watching import seen_of
from tests.capture.watching import step
from tests.capture.watching import watching
from tests.models import mlp


def test_lazy_modules():
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2))
    with watching(model) as seen:
        model(torch.randn(3, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        step(model, optimizer, torch.randn(3, 4))
        step(model, optimizer, torch.randn(3, 4))
    assert seen.sites("activation") == ["0", "1", "2"]
    assert seen.get("update.ratio", "0.weight") > 0


def test_second_derivatives():
    """A gradient penalty: autograd.grad with create_graph inside the forward part of the step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            x = torch.randn(8, 4, requires_grad=True)
            (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
            ((slope.norm(dim=1) - 1) ** 2).mean().backward()
            optimizer.step()
    assert len(seen.frames) == 3
    assert seen.get("update.ratio", "0.weight") > 0


def test_function_transforms_pass_by_unsampled():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    parameters = dict(model.named_parameters())
    with watching(model) as seen:
        x = torch.randn(5, 4)
        values = {name: parameter.detach() for name, parameter in parameters.items()}

        def one(values, row):
            return torch.func.functional_call(model, values, row).sum()

        torch.func.vmap(torch.func.grad(one), in_dims=(None, 0))(values, x)
        torch.func.vmap(lambda row: model(row))(x)
        step(model, optimizer, x)
    assert seen.get("input.rms", "(input)") == pytest.approx(x.square().mean().sqrt().item(), rel=0.3)


def test_tensors_without_values_pass_by():
    model = nn.Linear(4, 2)
    with watching(model):
        meta = nn.Linear(4, 2, device="meta")
        meta(torch.randn(3, 4, device="meta")).sum()
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
            model(torch.randn(3, 4))


def test_tracing_and_exporting_record_nothing_of_the_watching():
    model = mlp(4, 8, 2)
    x = torch.randn(3, 4)
    bare = str(torch.jit.trace(model, x).code)
    with watching(model):
        assert str(torch.jit.trace(model, x).code) == bare
        exported = torch.export.export(model, (x,))
    assert not any("index_select" in str(node.target) for node in exported.graph.nodes)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_another_default_precision(default):
    previous = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        seen = seen_of(mlp(4, 8, 2), torch.ones(3, 4), steps=2)
    finally:
        torch.set_default_dtype(previous)
    assert seen.get("input.rms", "(input)") == 1
    assert seen.get("update.ratio", "0.weight") >= 0


def test_another_default_device():
    model, x = mlp(4, 8, 2), torch.ones(3, 4)
    with torch.device("meta"):
        seen = seen_of(model, x, steps=2)
        seen_of(nn.Sequential(model, nn.Tanh()), x, steps=1)
    assert seen.get("input.rms", "(input)") == 1
    assert not math.isnan(seen.field("loss")[-1])


def test_autocast_outputs_are_sampled():
    model = mlp(4, 32, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(torch.ones(3, 4)).float().square().mean()
            loss.backward()
            optimizer.step()
    assert (seen.frames[-1].columns["activation.rms"] > 0).all()
    assert (seen.frames[-1].columns["activation_gradient.rms"] > 0).all()
