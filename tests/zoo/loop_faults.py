"""Loops in which a part stands in the wrong place or mode: evaluation, validation, clipping, accumulation, graphs that grow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo import tasks
from tests.zoo.models import convnet
from tests.zoo.models import he
from tests.zoo.models import mlp
from tests.zoo.program import Fault
from tests.zoo.program import Forward
from tests.zoo.program import Loop
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import both
from tests.zoo.proofs import fact
from tests.zoo.proofs import learned_nothing
from tests.zoo.proofs import still
from tests.zoo.proofs import worse


def deep_convnet() -> nn.Sequential:
    """Six convolutions with batch norms, in PyTorch's initialisation, which only the norms make trainable."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 12), *[(12, 12)] * 5):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(12 * 9, data.CLASSES))


def evaluated_from_the_start(watch: Watch, faulty: bool) -> Outcome:
    """model.eval() before the loop, so that the batch norms never see a batch."""
    model = deep_convnet().train(not faulty)
    outcome = tasks.see(watch, model, tasks.momentum, lr=0.03, steps=60)
    return _with_statistics(outcome, model)


def evaluated_after_validation(watch: Watch, faulty: bool) -> Outcome:
    """No model.train() after the first validation."""
    x, y = data.digits()
    x = data.standardised(x)
    model = deep_convnet()
    seen = []

    def validate(step: int) -> None:
        seen.append(float(model[1].running_mean.sum()))
        if step % 25 == 9:
            model.eval()
            with torch.no_grad():
                model(x[:200])
            model.train(not faulty)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    outcome = fit(watch, model, data.batches(x, y, steps=80), functional.cross_entropy, optimizer, each=validate)
    return Outcome(outcome.course, facts={"still": float(seen[20] == seen[-1])})


def validated_in_training_mode(watch: Watch, faulty: bool) -> Outcome:
    """Every ten steps, batches of other data under no_grad(), with the batch norms still in training mode."""
    x, y = data.digits()
    x = data.standardised(x)
    model = convnet()
    others = 3 * x[:256] + 2
    loop = Loop(watch, model, functional.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))

    def validate(part: Tensor) -> None:
        loop.names["x"] = part
        if loop.treated("validation"):
            return
        model.train(faulty)
        with torch.no_grad():
            model(part)
        model.train()

    for step, (inputs, labels) in enumerate(data.batches(x, y, steps=120)):
        loop.turn(inputs, labels)
        for part in others.split(64) if step % 10 == 9 else ():
            validate(part)
    return Outcome(loop.outcome().course, facts={"batches": float(model[1].num_batches_tracked)})


class Forgetful(nn.Module):
    """A second stack of layers, larger than the first, that forward() never calls."""

    def __init__(self, *, called: bool) -> None:
        super().__init__()
        self.first = mlp(20, 64, 64)
        self.second = mlp(64, 128, 128, 64)
        self.head = nn.Linear(64, data.CLASSES)
        self.called = called

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        return self.head(functional.relu(self.second(x)) if self.called else x)


def second_stack_not_called(watch: Watch, faulty: bool) -> Outcome:
    return tasks.classify(watch, Forgetful(called=not faulty), tasks.adam, lr=2e-3)


def clipped_to_nothing(watch: Watch, faulty: bool) -> Outcome:
    return tasks.classify(watch, he(mlp(20, 64, 64, 10)), tasks.sgd, lr=0.1, clip=1e-3 if faulty else 5.0, steps=300)


def clipped_to_nothing_convnet(watch: Watch, faulty: bool) -> Outcome:
    return tasks.see(watch, convnet(), tasks.momentum, lr=0.02, clip=2e-3 if faulty else 5.0, steps=250)


def _outliers() -> Iterable[tuple[Tensor, Tensor]]:
    """Batches of which each tenth holds a sample with a wrong label, thirty times too large."""
    for step, (x, y) in enumerate(data.batches(*data.clusters(), steps=250)):
        if step % 10 == 5:
            x[3] *= 30
            y[3] = (y[3] + 1) % data.CLASSES
        yield x, y


def clipped_after_step(watch: Watch, faulty: bool) -> Outcome:
    return _misplaced(watch, "after" if faulty else "between")


def clipped_before_backward(watch: Watch, faulty: bool) -> Outcome:
    return _misplaced(watch, "before" if faulty else "between")


def _misplaced(watch: Watch, place: str) -> Outcome:
    """Clipping at 0.5 before backward(), between it and step(), or after step(); the largest gradient that was used."""
    model = he(mlp(20, 64, 64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loop = Loop(watch, model, functional.cross_entropy, optimizer)
    used = []
    for x, y in _outliers():
        optimizer.zero_grad()
        loss = loop.forward(x, y)
        if loop.stepped_by_remedy():
            continue
        if place == "before":
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        loss.backward()
        if place == "between":
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        used.append(float(torch.stack([p.grad.norm() for p in model.parameters()]).norm()))
        optimizer.step()
        if place == "after":
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    return loop.outcome(largest=max(used, default=0.0))


def clipped_while_scaled(watch: Watch, faulty: bool) -> Outcome:
    """No unscale_() before clipping: what is clipped to 1 is then divided by the scale."""
    model = he(mlp(20, 64, 64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loop = Loop(watch, model, functional.cross_entropy, optimizer, scaler=scaler)
    for x, y in data.batches(*data.clusters(), steps=250):
        optimizer.zero_grad()
        loss = loop.forward(x, y)
        if loop.stepped_by_remedy():
            continue
        scaler.scale(loss).backward()
        if not faulty:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    return loop.outcome()


def accumulation_summed(watch: Watch, faulty: bool) -> Outcome:
    return _accumulated(watch, he(mlp(20, 128, 128, 128, 10)), data.clusters(), lr=0.2, parts=16, averaged=not faulty)


def accumulation_summed_convnet(watch: Watch, faulty: bool) -> Outcome:
    x, y = data.digits()
    return _accumulated(watch, convnet(norm=False), (data.standardised(x), y), lr=0.2, parts=8, averaged=not faulty)


def _accumulated(
    watch: Watch, model: nn.Module, samples: tuple[Tensor, Tensor], *, lr: float, parts: int, averaged: bool
) -> Outcome:
    """Small batches whose gradients add up; the size of the sum's root, 1 where they are averaged."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    loop = Loop(watch, model, functional.cross_entropy, optimizer)
    for i, (x, y) in enumerate(data.batches(*samples, size=16, steps=80 * parts)):
        loss = loop.forward(x, y)
        if not loop.stepped_by_remedy():
            (loss / parts if averaged else loss).backward()
        if i % parts == parts - 1:
            optimizer.step()
            optimizer.zero_grad()
    return loop.outcome(weight=1.0 if averaged else float(parts))


class OldSGD(torch.optim.Optimizer):
    """An optimizer that writes to ``.data``, as many still do, so that autograd does not see the weights change."""

    def __init__(self, parameters: Iterable[Tensor], *, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(parameter.grad, alpha=-group["lr"])


class Stateful(nn.Module):
    """A recurrent cell that goes on where the last batch ended."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.RNNCell(4, 24), nn.Linear(24, 1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        for part in x.unbind(1):
            state = self.cell(part, state)
        return self.head(state), state


def hidden_state_kept(watch: Watch, faulty: bool) -> Outcome:
    """A stream in pieces of six; the hidden state is handed on with its graph, and retain_graph=True silences the error."""
    model = Stateful()
    optimizer = OldSGD(model.parameters(), lr=0.05)
    loop = Loop(watch, model, functional.mse_loss, optimizer, forward=_carried(faulty), state=torch.zeros(32, 24))
    sizes = []
    for _ in range(120):
        x = torch.randn(32, 6, 4)
        loss = loop.forward(x, x[:, -2:, :2].sum((1, 2)).unsqueeze(1) / 2)
        sizes.append(nodes(loss))
        model.zero_grad()
        loss.backward(retain_graph=faulty)
        loop.step()
    return loop.outcome(growth=sizes[-1] / sizes[0])


def _carried(attached: bool) -> Forward:
    """A forward pass that hands a state on to the next, with its graph or without."""

    def forward(names: dict[str, Any]) -> Tensor:
        state = names["state"] if attached else names["state"].detach()
        output, names["state"] = names["model"](names["x"], state)
        return output

    return forward


class Centred(nn.Module):
    """Features less their running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(20, 64), nn.Linear(64, data.CLASSES)

    def forward(self, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        features = functional.relu(self.first(x))
        mean = 0.9 * mean + 0.1 * features.mean(0)
        return self.head(features - mean), mean


def running_mean_kept(watch: Watch, faulty: bool) -> Outcome:
    model = Centred()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop = Loop(watch, model, functional.cross_entropy, optimizer, forward=_carried(faulty), state=torch.zeros(64))
    sizes = []
    for x, y in data.batches(*data.clusters(), steps=300):
        loss = loop.forward(x, y)
        sizes.append(nodes(loss))
        model.zero_grad()
        loss.backward(retain_graph=faulty)
        loop.step()
    return loop.outcome(growth=sizes[-1] / sizes[0])


def nodes(loss: Tensor) -> int:
    """Nodes of the graph under a loss."""
    found, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(found)


def _with_statistics(outcome: Outcome, model: nn.Sequential) -> Outcome:
    """With whether the first batch norm's running statistics are those of its start."""
    touched = float(model[1].running_mean.abs().sum() > 0)
    return Outcome(outcome.course, outcome.moved, facts={"touched": touched})


PROGRAMS = (
    Fault(
        evaluated_from_the_start,
        ("eval-mode-training",),
        both(lambda fault, twin: not fault.facts["touched"] and bool(twin.facts["touched"]), worse(1.5)),
        falls_to=0.4,
        remedy="batch",
    ),
    Fault(
        evaluated_after_validation,
        ("eval-mode-training",),
        fact("still", least=1, most=1),
        falls_to=0.4,
        begins=10,
        remedy="batch",
    ),
    Fault(
        validated_in_training_mode,
        ("train-mode-eval",),
        fact("batches", least=160, most=121),
        falls_to=0.4,
        begins=9,
        remedy="validation",
    ),
    Fault(
        second_stack_not_called,
        ("idle-parameters",),
        still("second.0.weight", "second.4.weight"),
        falls_to=0.4,
        aside=True,
        remedy="start",
    ),
    Fault(clipped_to_nothing, ("clipping-too-tight",), learned_nothing, falls_to=0.4, remedy="gradients"),
    Fault(clipped_to_nothing_convnet, ("clipping-too-tight",), worse(3), falls_to=0.4, remedy="gradients"),
    Fault(clipped_after_step, ("clipping-misplaced",), fact("largest", least=3, most=0.6), remedy="step"),
    Fault(clipped_before_backward, ("clipping-misplaced",), fact("largest", least=3, most=0.6), remedy="step"),
    Fault(clipped_while_scaled, ("clipping-misplaced",), learned_nothing, falls_to=0.4, remedy="step"),
    Fault(accumulation_summed, ("accumulation-not-averaged",), worse(2), remedy="step"),
    Fault(accumulation_summed_convnet, ("accumulation-not-averaged",), worse(2), remedy="step"),
    Fault(hidden_state_kept, ("growing-graph",), fact("growth", least=50, most=2), remedy="batch"),
    Fault(running_mean_kept, ("growing-graph",), fact("growth", least=50, most=2), remedy="batch"),
)
