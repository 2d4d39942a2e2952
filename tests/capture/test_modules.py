"""Which outputs are sampled, under which site, and when: forms of output, in-place operations, recomputation, validation."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.capture.watching import seen_of
from tests.capture.watching import step
from tests.capture.watching import watching
from tests.models import ResNet
from tests.models import classification_loss
from tests.models import images
from tests.models import mlp


def test_sites_stand_in_execution_order_and_containers_that_hand_on_are_left_out():
    model = nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 2)))
    seen = seen_of(model, torch.randn(3, 4))
    assert seen.sites("activation") == ["0", "1.0", "1.1"]
    assert seen.sites("input") == ["(input)"]


def test_values_are_those_before_an_in_place_operation():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 32), nn.Linear(32, 32)

        def forward(self, x):
            y = self.a(x)
            self.plain = y.detach().clone()
            y.relu_()
            z = self.b(y)
            z += 100.0
            return z

    torch.manual_seed(0)
    model = InPlace()
    seen = seen_of(model, torch.randn(8, 4))
    assert seen.get("activation.mean", "a") == pytest.approx(model.plain.mean().item(), abs=1e-6)
    assert seen.get("activation.zero", "a") == 0
    assert seen.get("activation.rms", "b") < 50
    assert seen.get("activation.rms", "(model)") > 50
    assert seen.get("activation_gradient.zero", "a") > 0.2  # what comes back through the ReLU


def test_the_output_of_an_in_place_module_is_a_site_of_its_own():
    seen = seen_of(nn.Sequential(nn.Linear(4, 32), nn.ReLU(inplace=True)), torch.randn(8, 4))
    assert seen.get("activation.zero", "0") == 0
    assert seen.get("activation.zero", "1") > 0.2


def test_residual_networks_with_in_place_additions():
    torch.manual_seed(0)
    model = ResNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for _ in range(2):
            classification_loss(model, images()).backward()
            optimizer.step()
    relu_calls = [name for name in seen.sites("activation") if name.startswith("blocks.0.relu")]
    assert relu_calls == ["blocks.0.relu", "blocks.0.relu#1"]
    for kind in ("activation", "activation_gradient"):
        assert (seen.frames[-1].columns[f"{kind}.rms"] > 0).all()


def test_a_shared_module_has_a_site_for_every_call():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.mod = nn.Linear(4, 4)

        def forward(self, x):
            return self.mod(torch.tanh(self.mod(x)) * 100)

    seen = seen_of(Shared(), torch.randn(8, 4), steps=3)
    assert seen.sites("activation") == ["mod", "mod#1"]
    assert seen.get("activation.rms", "mod#1") > 5 * seen.get("activation.rms", "mod")


def test_many_calls_of_one_module_take_few_sites():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(3, 4)

        def forward(self, xs):
            h = torch.zeros(xs.shape[1], 4)
            for x in xs:
                h = self.cell(x, h)
            return h

    seen = seen_of(Steps(), torch.randn(20, 8, 3), steps=2)
    assert [name for name in seen.sites("activation") if "cell" in name] == ["cell", "cell#1", "cell#2", "cell#3"]


@dataclass
class Outputs:
    hidden: torch.Tensor
    logits: torch.Tensor
    extra: object = None


@pytest.mark.parametrize(
    "wrap",
    [
        lambda h, y: (h, y),
        lambda h, y: [h, (y, None)],
        lambda h, y: {"h": h, "y": y},
        lambda h, y: Outputs(h, y),
        lambda h, y: {"deep": [Outputs(h, y, extra={"name": "x"})], "n": 3},
    ],
    ids=["tuple", "nested", "dict", "dataclass", "deep"],
)
def test_of_outputs_of_any_make_up_the_largest_tensor_is_sampled(wrap):
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(3.0))

        def forward(self, x):
            self.y = x * self.scale
            return wrap(self.y[:, :2] * 100, self.y)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            self.inner(x)
            return self.inner.y.sum()

    seen = seen_of(Outer(), torch.ones(8, 32))
    assert seen.get("activation.rms", "inner") == pytest.approx(3)
    assert seen.get("activation_gradient.rms", "inner") == pytest.approx(1)


def test_inputs_given_by_keyword_are_sampled():
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, *, batch, flag=True):
            return self.lin(batch["a"]) + batch["b"]

    seen = seen_of(ByKeyword(), batch={"a": torch.full((3, 4), 2.0), "b": torch.full((3, 4), 5.0), "n": torch.arange(3)})
    assert seen.sites("input") == ["(input)", "(input)#1"]
    assert [seen.get("input.rms", site) for site in seen.sites("input")] == [2, 5]


def test_a_model_with_no_floating_input_has_no_input_sites():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3))
    seen = seen_of(model, torch.randint(7, (5, 6)))
    assert seen.sites("input") == []
    assert seen.sites("activation") == ["0", "1"]


def test_scalar_and_empty_outputs():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)
            self.none, self.total = nn.Identity(), nn.Identity()

        def forward(self, x):
            y = self.lin(x)
            self.none(y[:0])
            return self.total(y.sum())

    seen = seen_of(Odd(), torch.randn(3, 4), steps=2)
    assert seen.sites("activation") == ["lin", "total"]
    assert seen.get("activation_gradient.rms", "total") == 1


def test_a_module_that_puts_out_its_own_parameter():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(4))

        def forward(self):
            return self.table

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions = Positions()

        def forward(self, x):
            return x + self.positions()

    model = Model()
    seen = seen_of(model, torch.randn(3, 4))
    assert seen.get("activation.rms", "positions") == 1
    assert not model.positions.table._backward_hooks


def test_a_model_that_calls_no_module():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4))

        def loss(self, x):
            return (x @ self.w).square().mean()

    model = Functional()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model) as seen:
        for _ in range(3):
            model.loss(torch.randn(3, 4)).backward()
            optimizer.step()
    assert seen.sites("activation") == []
    assert seen.get("update.ratio", "w") > 0
    for kind in ("activation", "input"):
        assert seen.frames[0].columns[f"{kind}.rms"].shape == (0,)


class Stack(nn.Module):
    """A body of blocks that may be checkpointed, each on its own."""

    def __init__(self, reentrant=None, depth=3):
        super().__init__()
        self.stem = nn.Linear(4, 32)
        blocks = (nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2)) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(32, 2)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_modules_are_seen_once_with_values_and_gradients(reentrant):
    x = torch.randn(8, 4)
    found = []
    for mode in (None, reentrant):
        torch.manual_seed(1)
        found.append(seen_of(Stack(mode), x, steps=3))
    plain, kept = found
    assert kept.sites("activation") == plain.sites("activation")
    for index in range(3):
        for column in ("activation.rms", "activation.zero", "activation_gradient.rms", "update.ratio"):
            expected = plain.frames[index].columns[column]
            assert kept.frames[index].columns[column] == pytest.approx(expected, rel=1e-4, nan_ok=True), (column, index)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_trains_the_same_with_the_loss_inside(reentrant):
    def trained(watch):
        torch.manual_seed(1)
        model = Stack()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def run():
            for _ in range(4):
                optimizer.zero_grad()
                x = torch.randn(8, 4, requires_grad=True)
                y = torch.randint(2, (8,))
                checkpoint(lambda x, y: nn.functional.cross_entropy(model(x), y), x, y, use_reentrant=reentrant).backward()
                optimizer.step()

        if watch:
            with watching(model):
                run()
        else:
            run()
        return model.state_dict()

    for (name, bare), watched in zip(trained(False).items(), trained(True).values(), strict=True):
        assert torch.equal(bare, watched), name


def test_validation_under_no_grad_is_not_sampled():
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for _ in range(2):
            step(model, optimizer, torch.ones(3, 4))
            for context in (torch.no_grad, torch.inference_mode):
                with context():
                    model(torch.full((3, 4), 1000.0))
    assert [seen.get("input.rms", "(input)", step=i) for i in (0, 1)] == [1, 1]


def test_the_forward_pass_that_the_step_is_of_is_sampled():
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        model(torch.full((3, 4), 1000.0))  # a dry run with gradients enabled
        step(model, optimizer, torch.ones(3, 4))
    assert seen.get("input.rms", "(input)") == 1
    assert seen.sites("activation") == ["0", "1", "2"]


def test_include_and_exclude_choose_modules_and_not_parameters():
    model = nn.ModuleDict({"enc": nn.Linear(4, 4), "dec": nn.Linear(4, 4)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for include, exclude, expected in (
        (r"^enc", None, ["enc"]),
        (None, "enc", ["dec"]),
        ("c$", "n|d", []),
        (None, None, ["enc", "dec"]),
    ):
        with watching(model, include=include, exclude=exclude) as seen:
            model["dec"](model["enc"](torch.randn(3, 4))).sum().backward()
            optimizer.step()
        assert seen.sites("activation") == expected
        assert len(seen.sites("weight")) == 4


def test_hooks_are_there_on_sampled_steps_only():
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    hooks = torch.nn.modules.module._global_forward_hooks
    with watching(model, every=2):
        x = torch.ones(3, 4)
        found = [(bool(hooks), len(step(model, optimizer, x)._backward_hooks or ())) for _ in range(4)]
    assert found == [(True, 1), (False, 0)] * 2
    assert not hooks


@pytest.mark.parametrize("depth", [8, 600, 1100])
def test_of_very_many_modules_each_is_sampled_more_sparsely_and_as_rightly(depth):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.ReLU() for _ in range(depth)), nn.Linear(40, 1))
    x = torch.randn(64, 40)
    x[:, 3] = -1.0  # never active
    whole = x.relu()
    seen = seen_of(model, x)
    bits = int(seen.get("activation.active_low", "0")) | int(seen.get("activation.active_high", "0")) << 16
    assert seen.get("activation.rms", "0") == pytest.approx(whole.square().mean().sqrt().item(), rel=0.1)
    assert seen.get("activation.signal", "0") == pytest.approx(whole.var(0).mean().sqrt().item(), rel=0.15)
    assert seen.get("activation.zero", "0") == pytest.approx((whole == 0).float().mean().item(), abs=0.1)
    assert bits.bit_count() == 31
    assert seen.get("activation_gradient.rms", str(depth)) > 0


class InParts(nn.Module):
    """As a trainer's module often is: its parts are called, it itself never."""

    def __init__(self):
        super().__init__()
        self.second = mlp(8, 8, 2)
        self.first = mlp(4, 8)


def test_where_the_program_calls_the_model_s_parts_the_first_one_s_input_is_the_model_s():
    model = InParts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for size in (1.0, 2.0, 3.0):
            given = torch.full((5, 4), size)
            optimizer.zero_grad()
            model.second(model.first(given)).square().mean().backward()
            optimizer.step()
    assert [seen.sites("input", step=i) for i in range(3)] == [[], ["(input)"], ["(input)"]]
    assert [seen.get("input.mean", "(input)", step=i) for i in (1, 2)] == [2.0, 3.0]


def test_what_the_first_part_is_given_with_a_gradient_is_no_input():
    model = InParts()
    model.start = nn.Parameter(torch.randn(5, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            model.second(model.first(model.start)).square().mean().backward()
            optimizer.step()
    assert not any(seen.sites("input", step=i) for i in range(3))


def test_once_the_model_itself_is_called_its_own_input_is_what_counts():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for whole in (False, False, True, True):
            optimizer.zero_grad()
            out = model(torch.full((5, 4), 2.0)) if whole else model[1](model[0](torch.ones(5, 4)))
            out.square().mean().backward()
            optimizer.step()
    assert [seen.get("input.mean", "(input)", step=i) for i in (1, 3)] == [1.0, 2.0]


def test_where_parts_are_left_out_none_of_the_others_is_taken_for_the_first():
    model = InParts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model, exclude="first") as seen:
        for _ in range(3):
            optimizer.zero_grad()
            model.second(model.first(torch.ones(5, 4)).detach()).square().mean().backward()
            optimizer.step()
    assert not any(seen.sites("input", step=i) for i in range(3))
