"""Parameters that several ranks hold together, as one rank sees them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import Partial
from torch.distributed.tensor import Replicate
from torch.distributed.tensor import Shard
from torch.distributed.tensor import distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gradscope
from gradscope.capture.parameter_norms import norms_of_gradients
from gradscope.capture.shards import estimate_of
from gradscope.capture.shards import is_spread
from gradscope.capture.shards import local_of
from gradscope.capture.shards import part_here
from gradscope.capture.shards import shard_of
from gradscope.capture.shards import whole_here
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("copies", "parts"))
    distributed.destroy_process_group()


def test_a_plain_tensor_is_its_own_local_part() -> None:
    parameter = nn.Parameter(torch.ones(3, 2))
    assert not is_spread(parameter)
    assert shard_of(parameter) is None
    assert local_of(parameter) is parameter


def test_a_tensor_of_several_ranks_says_how_it_is_spread(mesh: DeviceMesh) -> None:
    whole = torch.arange(6.0).reshape(3, 2)
    parameter = nn.Parameter(distribute_tensor(whole, mesh, [Replicate(), Shard(1)]))
    shard = shard_of(parameter)
    assert is_spread(parameter)
    assert shard is not None
    assert (shard.shape, shard.size, shard.local_shape, shard.local_size) == ((3, 2), 6, (3, 2), 6)
    assert [(axis.placing, axis.dimension, axis.ranks, axis.place) for axis in shard.axes] == [
        ("replicated", None, 1, 0),
        ("sharded", 1, 1, 0),
    ]
    assert [axis.group for axis in shard.axes] == [mesh.get_group(0), mesh.get_group(1)]
    assert (shard.is_split, shard.is_partial, shard.is_first_copy, shard.ranks) == (True, False, True, frozenset({0}))
    local = local_of(parameter)
    assert type(local) is torch.Tensor
    assert torch.equal(local, whole)


def test_a_term_of_a_sum_is_told_from_a_part(mesh: DeviceMesh) -> None:
    term = DTensor.from_local(torch.ones(3), mesh, [Replicate(), Partial()])
    shard = shard_of(term)
    assert shard is not None
    assert (shard.is_split, shard.is_partial) == (False, True)


class Collectives(TorchDispatchMode):
    """Takes down every collective that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(isinstance(arg, DTensor) for arg in args):
            return NotImplemented  # until it comes to what lies on this rank
        if func.namespace in ("c10d", "_c10d_functional", "_c10d_functional_autograd"):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("place", [0, 5, 7])
@pytest.mark.parametrize("reshard", [True, False])
def test_watching_asks_for_no_collective_and_reads_what_lies_here(place: int, reshard: bool, tmp_path: Path) -> None:
    """Of eight ranks one trains, the others being made up; the last has nothing of the smaller parameters."""
    distributed.init_process_group("fake", store=distributed.HashStore(), rank=place, world_size=8)
    try:
        bare, _ = _collectives_of(None, reshard=reshard)
        watched, model = _collectives_of(tmp_path, reshard=reshard)
    finally:
        distributed.destroy_process_group()
    assert len(bare) > 8
    assert watched == bare
    run = read_run(find_runs(tmp_path)[0])
    assert {module.path: module.type for module in run.info.modules} == {
        "": "Sequential",
        "0": "Linear",
        "1": "ReLU",
        "2": "Linear",
    }
    assert [(p.name, p.shape) for p in run.info.parameters] == [
        ("0.weight", (32, 16)),
        ("0.bias", (32,)),
        ("2.weight", (4, 32)),
        ("2.bias", (4,)),
    ]
    assert run.info.wiring is not None
    assert run.info.wiring.reached == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert len(run.frames) == len(run.pulses) == 4
    last = run.frames[-1].columns
    empty = [local_of(p).numel() == 0 for p in model.parameters()]
    assert sum(empty) == (2 if place > 3 else 0)
    for name in ("weight.norm", "weight_gradient.norm", "update.ratio"):
        assert list(np.isnan(last[name])) == empty


def _collectives_of(logdir: Path | None, *, reshard: bool) -> tuple[list[str], nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    mesh = init_device_mesh("cpu", (8,))
    for module in (model[0], model):
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    seen = Collectives()
    with warnings.catch_warnings(), seen:
        warnings.simplefilter("ignore")  # the other ranks do not watch
        scope = gradscope.attach(model, logdir, every=1) if logdir is not None else None
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.ones(8, 16)).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if scope is not None:
            scope.close()
    return seen.seen, model


def test_what_ranks_know_of_norms_comes_to_those_of_the_whole() -> None:
    """The root of the mean of the squares of what each of four ranks says, of parts and of copies together."""
    whole, copied = torch.arange(10.0).reshape(5, 2), torch.full((3,), 2.0)
    said: list[float] = []
    for rank in range(4):
        distributed.init_process_group("fake", store=distributed.HashStore(), rank=rank, world_size=4)
        mesh = init_device_mesh("cpu", (4,))
        part = whole.tensor_split([2, 4])[rank] if rank < 3 else whole[:0]  # as torch deals out five rows to four ranks
        split = nn.Parameter(
            DTensor.from_local(part, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride())
        )
        same = nn.Parameter(DTensor.from_local(copied, mesh, [Replicate()], run_check=False))
        split.grad, same.grad = split.detach().clone(), same.detach().clone()
        found = norms_of_gradients([split, same])
        said.append(float(found.together.square().sum()))
        distributed.destroy_process_group()
    assert sum(said) / 4 == pytest.approx(float(whole.square().sum() + copied.square().sum()), rel=1e-6)


def test_a_gradient_that_ranks_have_still_to_add_up_is_not_read() -> None:
    distributed.init_process_group("fake", store=distributed.HashStore(), rank=0, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        parameter = nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Replicate()], run_check=False))
        parameter.grad = DTensor.from_local(torch.ones(3), mesh, [Partial()], run_check=False)
        assert norms_of_gradients([parameter]).ids == ()
        assert part_here(parameter.grad) is None
        assert whole_here(parameter.grad) is None
    finally:
        distributed.destroy_process_group()


def test_a_scalar_that_ranks_add_up_is_estimated() -> None:
    distributed.init_process_group("fake", store=distributed.HashStore(), rank=0, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        loss = torch.tensor(3.0)
        for placement, said in ((Replicate(), 3.0), (Partial("avg"), 3.0), (Partial("sum"), 6.0)):
            assert float(estimate_of(DTensor.from_local(loss, mesh, [placement], run_check=False))) == said
    finally:
        distributed.destroy_process_group()


def test_memory_that_was_given_back_is_not_read() -> None:
    gathered = torch.ones(4)
    assert whole_here(gathered) is gathered
    gathered.untyped_storage().resize_(0)
    assert whole_here(gathered) is None
