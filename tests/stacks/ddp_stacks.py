"""Several processes that train one model with DistributedDataParallel, each on its share of the data."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import COMMON
from tests.stacks.tasks import LOSS
from tests.stacks.tasks import classes
from tests.stacks.tasks import descend
from tests.stacks.tasks import fit
from tests.stacks.tasks import perceptron
from tests.stacks.tasks import sgd

SECTION = "Several processes"


def mean_over_ranks(loss: torch.Tensor) -> torch.Tensor:
    """What the record is to say: the program asks for it on all ranks alike, watched or not."""
    mean = loss.detach().clone()
    distributed.all_reduce(mean)
    return mean / distributed.get_world_size()


def advance(eye: Eye, optimizer: torch.optim.Optimizer, loss: torch.Tensor, fault: str) -> None:
    descend(optimizer, loss, fault)
    eye.stepped(mean_over_ranks(loss))


def wrapped_first(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    rank = distributed.get_rank()
    model = DistributedDataParallel(perceptron())
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    for step, (inputs, labels) in enumerate(classes(steps, seed=1 + rank)):
        if fault == "shard" and rank == 1:
            inputs = 100 * inputs
        advance(eye, optimizer, LOSS(model(inputs), labels), fault)
        if fault == "drift" and rank == 1 and step == steps // 2:
            with torch.no_grad():
                model.module[2].weight.add_(0.01)
    return state_of(model)


def attached_first(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    rank = distributed.get_rank()
    torch.manual_seed(rank if fault == "seeds" else 0)
    model = perceptron()
    eye.attach(model)
    wrapped = DistributedDataParallel(model, init_sync=fault != "seeds")
    optimizer = sgd(model.parameters(), fault)
    for inputs, labels in classes(steps, seed=1 + rank):
        advance(eye, optimizer, LOSS(wrapped(inputs), labels), fault)
    return state_of(model)


def accumulated(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Two micro-batches a step, of which the second alone makes the ranks exchange gradients."""
    model = DistributedDataParallel(perceptron())
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    batches = classes(2 * steps, seed=1 + distributed.get_rank())
    for first, second in zip(batches, batches, strict=True):
        if fault != "zero_grad":
            optimizer.zero_grad()
        losses = []
        for (inputs, labels), context in ((first, model.no_sync), (second, nullcontext)):
            with context():
                losses.append(LOSS(model(inputs), labels))
                (losses[-1] / 2).backward()
        optimizer.step()
        eye.stepped(mean_over_ranks(torch.stack(losses).mean() / 2))
    return state_of(model)


def first_alone(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    rank = distributed.get_rank()
    model = DistributedDataParallel(perceptron())
    if rank == 0:
        eye.attach(model)
    fit(eye, model, sgd(model.parameters(), fault), classes(steps, seed=1 + rank), fault)
    return state_of(model)


def scaled(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """A scale that starts too high: all ranks find the same infinite gradients, and skip the same steps."""
    model = DistributedDataParallel(perceptron())
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10 if fault else 2.0**24)
    for inputs, labels in classes(steps, seed=1 + distributed.get_rank()):
        if fault != "zero_grad":
            optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = LOSS(model(inputs), labels)
        before = scaler.get_scale()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        mean = mean_over_ranks(loss)
        if scaler.get_scale() >= before:
            eye.stepped(mean)
    return state_of(model)


def data_parallel(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Without an accelerator, where it hands everything to the module in it."""
    model = nn.DataParallel(perceptron())
    eye.attach(model)
    fit(eye, model, sgd(model.parameters(), fault), classes(steps), fault)
    return state_of(model)


STACKS = (
    Stack("data-parallel", "`DataParallel`, on the processor", SECTION, data_parallel, COMMON),
    Stack(
        "ddp-scaler",
        "`DistributedDataParallel` with a `GradScaler` whose scale starts too high",
        SECTION,
        scaled,
        COMMON,
        ranks=2,
    ),
    Stack(
        "ddp",
        "`DistributedDataParallel`",
        SECTION,
        wrapped_first,
        {**COMMON, "drift": "rank-divergence", "shard": "rank-outlier"},
        ranks=2,
    ),
    Stack(
        "ddp-attached-first",
        "`DistributedDataParallel` around a model that is watched",
        SECTION,
        attached_first,
        {"rate": "lr-too-high", "seeds": "rank-divergence"},
        ranks=2,
    ),
    Stack("ddp-accumulation", "accumulation under `no_sync()`", SECTION, accumulated, COMMON, ranks=2),
    Stack("ddp-first-alone", "`DistributedDataParallel`, attached on rank 0 alone", SECTION, first_alone, COMMON, ranks=2),
)
