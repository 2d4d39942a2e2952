"""Norms, updates and what happened between steps, against the same worked out from full copies of the parameters."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from gradscope.capture.parameter_norms import sum_by_place
from gradscope.capture.parameter_tables import columns
from gradscope.capture.parameters import ParameterProbe
from tests.capture.watching import watching
from tests.models import mlp
from tests.models import regress


def test_gradient_norm_is_exactly_what_clipping_computes():
    torch.manual_seed(0)
    model = mlp(6, 70, 50, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    expected = []
    with watching(model) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            expected.append(float(nn.utils.clip_grad_norm_(model.parameters(), math.inf)))
            optimizer.step()
    assert seen.field("gradient_norm") == pytest.approx(expected, rel=1e-6)


def test_gradient_norm_is_of_what_the_optimizer_uses():
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        (100 * model(torch.randn(8, 6))).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    assert seen.field("gradient_norm") == pytest.approx([0.5], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_norms_of_other_precisions(dtype):
    torch.manual_seed(0)
    model = nn.Linear(32, 32).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = model.weight.detach().double().clone()
    with watching(model) as seen:
        model(torch.randn(8, 32, dtype=dtype)).square().mean().backward()
        gradient = model.weight.grad.double()
        optimizer.step()
    assert seen.get("weight.norm", "weight") == pytest.approx(before.norm().item(), rel=1e-4)
    assert seen.get("weight_gradient.norm", "weight") == pytest.approx(gradient.norm().item(), rel=1e-4)
    moved = (model.weight.detach().double() - before).norm() / before.norm()
    assert seen.get("update.ratio", "weight") == pytest.approx(moved.item(), rel=1e-3)
    assert seen.facts.parameters[0].dtype == str(dtype).removeprefix("torch.")


def test_a_model_may_mix_precisions():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model) as seen:
        model[1](model[0](torch.randn(3, 4)).double()).sum().backward()
        total = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters()))
        optimizer.step()
    assert seen.field("gradient_norm") == pytest.approx([total], rel=1e-6)


def test_every_column_of_a_step_against_full_tensors():
    torch.manual_seed(0)
    layer = nn.Linear(32, 32)
    layer.weight.data[3] = 0.0
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = copy.deepcopy(layer)
    x = torch.randn(8, 32)
    x[:, :8] = 0.0  # their columns of the weight get no gradient
    with watching(layer) as seen:
        layer(x).square().mean().backward()
        gradient = layer.weight.grad.clone()
        optimizer.step()
    weight, moved = before.weight.detach(), (layer.weight - before.weight).detach()

    def spread(matrix):
        return min(matrix.var(way, correction=0).sum() / matrix.square().mean(way).sum() for way in (0, 1)).item()

    expected = {
        "weight.norm": weight.norm().item(),
        "weight.nonfinite": 0,
        "weight.row_spread": spread(weight),
        "weight_gradient.norm": gradient.norm().item(),
        "weight_gradient.nonfinite": 0,
        "weight_gradient.absmax": gradient.abs().max().item(),
        "weight_gradient.zero": (gradient == 0).float().mean().item(),
        "weight_gradient.row_spread": spread(gradient),
        "update.ratio": (moved.norm() / weight.norm()).item(),
        "update.unchanged": (moved == 0).float().mean().item(),
    }
    assert expected["update.unchanged"] == 0.25
    for column, value in expected.items():
        assert seen.get(column, "weight") == pytest.approx(value, rel=1e-4), column


def test_equal_rows_have_no_spread():
    layer = nn.Linear(40, 50)
    layer.weight.data[:] = torch.randn(40)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with watching(layer) as seen:
        layer(torch.randn(8, 40)).sum().backward()
        optimizer.step()
    assert seen.get("weight.row_spread", "weight") == pytest.approx(0, abs=1e-6)
    assert seen.get("weight_gradient.row_spread", "weight") == pytest.approx(0, abs=1e-6)


def test_equal_columns_have_none_either():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(40, 1).expand(40, 50).clone())

        def forward(self, x):
            return x @ self.matrix

    product = Product()
    optimizer = torch.optim.SGD(product.parameters(), lr=0.1)
    with watching(product) as seen:
        product(torch.randn(8, 40)).sum().backward()
        optimizer.step()
    assert seen.get("weight.row_spread", "matrix") == pytest.approx(0, abs=1e-6)
    assert seen.get("weight_gradient.row_spread", "matrix") == pytest.approx(0, abs=1e-6)


def test_a_nonfinite_gradient_or_weight_is_seen_though_one_element_holds_it():
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model) as seen:
        model(torch.randn(4, 300)).sum().backward()
        model[0].weight.grad[217, 133] = float("nan")
        optimizer.step()
        optimizer.zero_grad()
        model(torch.randn(4, 300)).sum().backward()
        optimizer.step()
    assert seen.get("weight_gradient.nonfinite", "0.weight", step=0) == 1
    assert seen.get("weight_gradient.norm", "0.weight", step=0) == math.inf
    assert seen.get("weight_gradient.nonfinite", "1.weight", step=0) == 0
    assert seen.field("gradient_norm")[0] == math.inf
    assert seen.get("weight.nonfinite", "0.weight", step=1) == 1


def test_a_gradient_that_was_not_zeroed_is_carried():
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for zero_grad in (True, False):
        with watching(model) as seen:
            regress(model, optimizer, steps=3, zero_grad=zero_grad)
        assert math.isnan(seen.get("weight_gradient.carried", "0.weight", step=0))
        assert [seen.get("weight_gradient.carried", "0.weight", step=i) for i in (1, 2)] == [float(not zero_grad)] * 2


def test_zeroed_gradients_are_not_carried_and_accumulated_ones_are_not_either():
    model = mlp(6, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for _ in range(3):
            optimizer.zero_grad(set_to_none=False)
            for _ in range(4):
                model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
    for step in (1, 2):
        assert not seen.frames[step].columns["weight_gradient.carried"].any()


def test_a_change_between_steps_is_seen_with_its_factor():
    torch.manual_seed(0)
    layer = nn.Linear(32, 32)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with watching(layer) as seen:
        regress(layer, optimizer, steps=1)
        layer.weight.data *= 0.99
        with torch.no_grad():
            layer.bias += 1.0
        old_bias = layer.bias.detach() - 1.0
        regress(layer, optimizer, steps=2)
    get = seen.get
    assert get("update.outside_change", "weight", step=1) == pytest.approx(0.01, rel=1e-3)
    assert get("update.outside_factor", "weight", step=1) == pytest.approx(0.99, rel=1e-5)
    assert get("update.outside_residual", "weight", step=1) < 0.01
    assert get("update.outside_change", "bias", step=1) == pytest.approx((math.sqrt(32) / old_bias.norm()).item(), rel=1e-3)
    assert get("update.outside_residual", "bias", step=1) > 0.5
    for site in ("weight", "bias"):
        assert get("update.outside_change", site, step=2) == 0
        assert get("update.outside_factor", site, step=2) == pytest.approx(1)


def test_what_needs_the_step_before_is_not_there_where_that_was_not_sampled():
    model = mlp(6, 8, 3)
    with watching(model, every=2) as seen:
        regress(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=5, zero_grad=False)
    assert [frame.step for frame in seen.frames] == [0, 2, 4]
    for frame in seen.frames:
        for column in ("weight_gradient.carried", "update.outside_change", "update.outside_factor"):
            assert np.isnan(frame.columns[column]).all()
        assert (frame.columns["update.ratio"] > 0).all()


def test_frozen_parameters_have_weights_and_no_gradient():
    model = mlp(6, 8, 3)
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model) as seen:
        regress(model, optimizer, steps=2)
    assert seen.get("weight.norm", "0.weight") == pytest.approx(model[0].weight.norm().item())
    assert math.isnan(seen.get("weight_gradient.norm", "0.weight"))
    assert math.isnan(seen.get("weight_gradient.nonfinite", "0.weight"))
    assert seen.get("update.unchanged", "0.weight") == 1
    assert seen.get("update.ratio", "2.weight") > 0
    assert seen.get("activation.rms", "0") > 0
    assert math.isnan(seen.get("activation_gradient.rms", "0"))
    assert [p.name for p in seen.facts.parameters if not p.trainable] == ["0.weight", "0.bias"]


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("entries", [0, 1, 40])
def test_entries_of_a_sparse_gradient_are_added_up_as_the_host_does_it(dimensions, entries):
    generator = torch.Generator().manual_seed(entries)
    indices = torch.randint(4, (dimensions, entries), generator=generator)
    values = torch.randn(entries, 3, generator=generator)
    shape = torch.Size([4] * dimensions + [3])
    expected = torch.sparse_coo_tensor(indices, values, shape, check_invariants=True).coalesce().values()
    found = sum_by_place(indices, values, shape)
    assert found[: len(expected)].flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-5)
    assert not found[len(expected) :].any()


def test_sparse_gradients_have_exact_norms():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 6, sparse=True)

        def forward(self, tokens):
            return self.embed(tokens)

    model = Bag()
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.1)
    with watching(model) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.tensor([[1, 2, 1, 7]])).square().sum().backward()
            expected = model.embed.weight.grad.to_dense().norm().item()
            optimizer.step()
    assert seen.field("gradient_norm")[-1] == pytest.approx(expected, rel=1e-6)
    assert seen.get("weight_gradient.norm", "embed.weight") == pytest.approx(expected, rel=1e-6)
    assert seen.get("update.unchanged", "embed.weight") == pytest.approx(17 / 20, abs=0.05)


def test_tied_parameters_are_one_site_with_both_names():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 6)
            self.head = nn.Linear(6, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.embed(tokens))

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model) as seen:
        nn.functional.cross_entropy(model(torch.arange(8)), torch.arange(8)).backward()
        optimizer.step()
    assert seen.sites("weight") == ["embed.weight"]
    assert [(p.name, p.tied) for p in seen.facts.parameters] == [("embed.weight", ("head.weight",))]


def test_a_model_of_one_number():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.a * x

    model = One()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model) as seen:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.tensor(3.0)).backward()
            optimizer.step()
    assert seen.field("loss") == pytest.approx([6.0, 5.1])
    assert seen.field("gradient_norm") == pytest.approx([3.0, 3.0])
    assert seen.get("update.ratio", "a", step=0) == pytest.approx(0.15)


def test_gradients_of_one_step_do_not_stand_for_the_next():
    weight = torch.nn.Parameter(torch.ones(3, 4))
    probe = ParameterProbe({"weight": weight})
    weight.grad = torch.ones(3, 4)
    probe.take_before()
    probe.take_norms()
    probe.take_after()
    assert probe.has_gradients
    probe.end_step({"weight"})
    found = columns([table.numpy() for table in probe.tables()], probe.masks())
    assert found["weight_gradient.norm"] == pytest.approx(12**0.5)
    assert not probe.has_gradients
