"""Healthy trainings whose loops do something unusual: accumulate, step twice, hold parameters still, average weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.zoo import data
from tests.zoo import tasks
from tests.zoo.models import convnet
from tests.zoo.models import he
from tests.zoo.models import mlp
from tests.zoo.program import Healthy
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit


def _unwatched(model: nn.Module) -> None:
    """For a training before the one that is meant."""


def accumulation_of_four(watch: Watch) -> Outcome:
    x, y = data.clusters()
    model = mlp(20, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    watch(model)
    losses = []
    for i, (inputs, labels) in enumerate(data.batches(x, y, size=16, steps=1000)):
        loss = functional.cross_entropy(model(inputs), labels) / 4
        loss.backward()
        losses.append(float(loss.detach()))
        if i % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    return Outcome(tuple(losses))


def dropout_half(watch: Watch) -> Outcome:
    model = nn.Sequential(
        nn.Linear(20, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return fit(watch, model, data.batches(*data.clusters(), steps=250), functional.cross_entropy, optimizer)


def ema_teacher(watch: Watch) -> Outcome:
    """A student that predicts the representation of its own moving average (BYOL), beside labels for a few."""
    x, y = data.clusters()
    student = nn.ModuleDict({"body": mlp(20, 64, 32), "predictor": mlp(32, 32, 32), "head": nn.Linear(32, 10)})
    teacher = copy.deepcopy(student["body"]).requires_grad_(False)
    watch(student)
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    losses = []
    for inputs, labels in data.batches(x, y, steps=250):
        views = [inputs + 0.2 * torch.randn_like(inputs) for _ in range(2)]
        features = student["body"](views[0])
        with torch.no_grad():
            target = functional.normalize(teacher(views[1]), dim=1)
        likeness = (functional.normalize(student["predictor"](features), dim=1) * target).sum(1).mean()
        loss = 1 - likeness + functional.cross_entropy(student["head"](features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student["body"].parameters(), strict=True):
                slow.lerp_(fast, 0.02)
        losses.append(float(loss.detach()))
    return Outcome(tuple(losses))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(20, 64), mlp(64, 64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        return self.last(functional.relu(checkpoint(self.middle, x, use_reentrant=False)))


def gradient_checkpointing(watch: Watch) -> Outcome:
    model = Checkpointed()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return fit(watch, model, data.batches(*data.clusters(), steps=250), functional.cross_entropy, optimizer)


def lbfgs(watch: Watch) -> Outcome:
    x, y = data.taught(count=400)
    model = mlp(10, 32, 1, activation=nn.Tanh)
    watch(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    return Outcome(tuple(float(optimizer.step(closure).detach()) for _ in range(40)))


def two_optimizers_on_one_model(watch: Watch) -> Outcome:
    x, y = data.clusters()
    model = mlp(20, 64, 64, 10)
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.05), torch.optim.Adam(model[2:].parameters(), lr=1e-3)]
    watch(model)
    return tasks.together(model, optimizers, data.batches(x, y, steps=250))


def frozen_batchnorm_finetuning(watch: Watch) -> Outcome:
    x, y = data.digits()
    pixels = data.standardised(x)
    model = convnet()
    fit(
        _unwatched,
        model,
        data.batches(pixels, y, steps=60),
        functional.cross_entropy,
        torch.optim.Adam(model.parameters(), lr=2e-3),
    )
    model[-1] = nn.Linear(24 * 9, 10)
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval().requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batches = data.batches(pixels, (y * 3 + 1) % 10, steps=150)
    return fit(watch, model, batches, functional.cross_entropy, torch.optim.SGD(trained, lr=0.01, momentum=0.9))


def frozen_backbone(watch: Watch) -> Outcome:
    x, y = data.clusters()
    body, head = he(mlp(20, 128, 128)).requires_grad_(False), nn.Linear(128, 10)
    model = nn.Sequential(body, nn.ReLU(), head)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    return fit(watch, model, data.batches(x, y, steps=250), functional.cross_entropy, optimizer)


def sharpness_aware(watch: Watch) -> Outcome:
    """SAM: two backward passes a step, the weights moved between them and moved back."""
    x, y = data.clusters()
    model = mlp(20, 64, 64, 10)
    watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for inputs, labels in data.batches(x, y, steps=250):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            offsets = [0.05 * p.grad / norm for p in model.parameters()]
            for parameter, offset in zip(model.parameters(), offsets, strict=True):
                parameter.add_(offset)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        with torch.no_grad():
            for parameter, offset in zip(model.parameters(), offsets, strict=True):
                parameter.sub_(offset)
        optimizer.step()
        losses.append(float(loss.detach()))
    return Outcome(tuple(losses))


def bfloat16_autocast(watch: Watch) -> Outcome:
    model = mlp(20, 64, 64, 10)

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(output.float(), labels)

    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.net(x)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(watch, Autocast(), data.batches(*data.clusters(), steps=200), loss, optimizer)


PROGRAMS = (
    Healthy(accumulation_of_four, falls_to=0.3),
    Healthy(dropout_half, falls_to=0.3),
    Healthy(ema_teacher, falls_to=0.5),
    Healthy(gradient_checkpointing, falls_to=0.3),
    Healthy(lbfgs, falls_to=0.3),
    Healthy(two_optimizers_on_one_model, falls_to=0.3),
    Healthy(frozen_batchnorm_finetuning, falls_to=0.3),
    Healthy(frozen_backbone, falls_to=0.3),
    Healthy(sharpness_aware, falls_to=0.3),
    Healthy(bfloat16_autocast, falls_to=0.3),
)
