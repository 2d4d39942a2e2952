"""FSDP2: several processes that hold a model's parameters together, each a part of every one."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from tests.stacks.ddp_stacks import SECTION
from tests.stacks.ddp_stacks import advance
from tests.stacks.ddp_stacks import mean_over_ranks
from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.tasks import CLASSES
from tests.stacks.tasks import COMMON
from tests.stacks.tasks import INPUTS
from tests.stacks.tasks import LOSS
from tests.stacks.tasks import classes
from tests.stacks.tasks import sgd


class Block(nn.Module):
    """One that can be told to work its activations out again in the backward pass."""

    def __init__(self, width: int, *, again: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.again = again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (checkpoint(self.inner, x, use_reentrant=False) if self.again else self.inner(x))

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self, *, width: int = 33, again: bool = False) -> None:  # a width that two ranks cannot share evenly
        super().__init__()
        self.stem = nn.Linear(INPUTS, width)
        self.blocks = nn.ModuleList([Block(width, again=again) for _ in range(2)])
        self.head = nn.Linear(width, CLASSES)
        self.scale = nn.Parameter(torch.ones(1))  # of which the second rank holds nothing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x) * self.scale


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}


def shard(model: Net, **how: Any) -> None:
    for module in (*model.blocks, model):
        fully_shard(module, **how)


def sharded(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = Net()
    shard(model)
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    for inputs, labels in classes(steps, seed=1 + distributed.get_rank()):
        if fault != "zero_grad":
            optimizer.zero_grad()
        loss = LOSS(model(inputs), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e3)
        optimizer.step()
        eye.stepped(mean_over_ranks(loss))
    return whole_state(model)


def kept_and_mixed(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Attached before the model is sharded; gathered once a step, in bfloat16, activations worked out again."""
    model = Net(again=True)
    eye.attach(model)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    shard(model, reshard_after_forward=False, mp_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3.0 if fault == "rate" else 3e-3)
    for inputs, labels in classes(steps, seed=1 + distributed.get_rank()):
        advance(eye, optimizer, LOSS(model(inputs).float(), labels), fault)
    return whole_state(model)


def accumulated(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Two micro-batches a step, whose gradients the ranks exchange once."""
    model = Net()
    shard(model)
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    batches = classes(2 * steps, seed=1 + distributed.get_rank())
    for _ in range(steps):
        if fault != "zero_grad":
            optimizer.zero_grad()
        losses = []
        for micro in range(2):
            model.set_requires_gradient_sync(micro == 1)
            inputs, labels = next(batches)
            loss = LOSS(model(inputs), labels)
            (loss / 2).backward()
            losses.append(loss.detach() / 2)
        optimizer.step()
        eye.stepped(mean_over_ranks(torch.stack(losses).mean()))
    return whole_state(model)


def offloaded(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Parts on the host, on a mesh of its own."""
    model = Net()
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    shard(model, mesh=mesh, reshard_after_forward=True, offload_policy=CPUOffloadPolicy(pin_memory=False))
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    for inputs, labels in classes(steps, seed=1 + distributed.get_rank()):
        advance(eye, optimizer, LOSS(model(inputs), labels), fault)
    return whole_state(model)


STACKS = (
    Stack("fsdp2", "`fully_shard` (FSDP2), gradients clipped", SECTION, sharded, COMMON, ranks=2),
    Stack("fsdp2-mixed", "FSDP2 in bfloat16, not resharded, checkpointed", SECTION, kept_and_mixed, COMMON, ranks=2),
    Stack("fsdp2-accumulated", "FSDP2 with micro-batches", SECTION, accumulated, COMMON, ranks=2),
    Stack("fsdp2-offloaded", "FSDP2 with `CPUOffloadPolicy`", SECTION, offloaded, COMMON, ranks=2),
)
