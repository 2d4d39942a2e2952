"""Tensor parallelism: each rank works out a part of every layer, on the same data; and together with FSDP2."""

from __future__ import annotations

import torch
from torch import distributed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel
from torch.distributed.tensor.parallel import RowwiseParallel
from torch.distributed.tensor.parallel import SequenceParallel
from torch.distributed.tensor.parallel import parallelize_module

from tests.stacks.ddp_stacks import SECTION
from tests.stacks.fsdp_stacks import Block
from tests.stacks.fsdp_stacks import whole_state
from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.tasks import CLASSES
from tests.stacks.tasks import COMMON
from tests.stacks.tasks import INPUTS
from tests.stacks.tasks import classes
from tests.stacks.tasks import fit

PLACES = 4  # of a sequence


class Net(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(INPUTS, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(2)])
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def train(eye: Eye, model: nn.Module, fault: str, steps: int) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0 if fault == "rate" else 0.1, foreach=False)
    fit(eye, lambda inputs: model(_sequence(inputs)), optimizer, classes(steps), fault)
    return whole_state(model)


def _sequence(inputs: torch.Tensor) -> torch.Tensor:
    return torch.stack([inputs.roll(place, 0) * (0.0 if place else 1.0) for place in range(PLACES)], dim=1)


def by_columns_and_rows(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = Net()
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for block in model.blocks:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    eye.attach(model)
    return train(eye, model, fault, steps)


def along_the_sequence(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Activations are DTensors cut along the sequence between the blocks."""
    model = Net()
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    parallelize_module(model, mesh, {"stem": ColwiseParallel(output_layouts=Shard(1), use_local_output=False)})
    for block in model.blocks:
        plan = {
            "norm": SequenceParallel(),
            "up": ColwiseParallel(input_layouts=Shard(1), use_local_output=False),
            "down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
        }
        parallelize_module(block, mesh, plan)
    parallelize_module(model, mesh, {"head": ColwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())})
    eye.attach(model)
    return train(eye, model, fault, steps)


def sharded_too(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """On a mesh of two dimensions, one for the data and one for the layers."""
    model = Net()
    mesh = init_device_mesh("cpu", (1, distributed.get_world_size()), mesh_dim_names=("data", "layers"))
    for block in model.blocks:
        parallelize_module(block, mesh["layers"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        fully_shard(block, mesh=mesh["data"])
    fully_shard(model, mesh=mesh["data"])
    eye.attach(model)
    return train(eye, model, fault, steps)


STACKS = (
    Stack("tensor-parallel", "`parallelize_module` by columns and rows", SECTION, by_columns_and_rows, COMMON, ranks=2),
    Stack("sequence-parallel", "`parallelize_module` along the sequence", SECTION, along_the_sequence, COMMON, ranks=2),
    Stack("tensor-parallel-fsdp2", "`parallelize_module` and FSDP2 on one mesh", SECTION, sharded_too, COMMON, ranks=2),
)
