"""Healthy trainings whose loops average weights, put others in for a while, or differentiate through a step of their own."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.optim.swa_utils import SWALR
from torch.optim.swa_utils import AveragedModel
from torch.optim.swa_utils import update_bn

from tests.zoo import data
from tests.zoo.field_data import tones
from tests.zoo.field_models import tone_net
from tests.zoo.models import mlp
from tests.zoo.program import Healthy
from tests.zoo.program import Loop
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit


def weights_averaged(watch: Watch) -> Outcome:
    """SWA: a second, constant rate, an average of the weights, and its batch norms fed anew at the end."""
    waves, labels = tones()
    model = tone_net()
    average = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    schedule = SWALR(optimizer, swa_lr=0.02, anneal_epochs=20)

    def after(step: int) -> None:
        if step >= 80:
            schedule.step()
            average.update_parameters(model)

    outcome = fit(
        watch, model, data.batches(waves, labels, size=32, steps=150), functional.cross_entropy, optimizer, each=after
    )
    update_bn([waves[i : i + 50] for i in range(0, 800, 50)], average)
    return outcome


def averaged_for_validation(watch: Watch) -> Outcome:
    """Now and then the moving average is put in for a validation and taken out again; four pieces a step, clipped by value."""
    x, y = data.clusters()
    model = mlp(20, 64, 10, activation=nn.SiLU, norm=True)
    slow = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, amsgrad=True)
    loop = Loop(watch, model, functional.cross_entropy, optimizer)
    for i, (inputs, labels) in enumerate(data.batches(x[:1800], y[:1800], size=16, steps=800)):
        (loop.forward(inputs, labels) / 4).backward()
        if i % 4 < 3:
            continue
        nn.utils.clip_grad_value_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        slow = {name: old.lerp(new, 0.05) for (name, old), new in zip(slow.items(), model.state_dict().values(), strict=True)}
        if i % 100 == 99:
            kept = copy.deepcopy(model.state_dict())
            model.load_state_dict(slow)
            model.eval()
            with torch.no_grad():
                functional.cross_entropy(model(x[1800:]), y[1800:])
            model.load_state_dict(kept)
            model.train()
    return loop.outcome()


class ScheduleFree(torch.optim.Optimizer):
    """Gradients at a point between the last iterate and the average of all; see Defazio et al. 2024, section 2."""

    def __init__(self, parameters: object, *, lr: float, beta: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "beta": beta, "count": 0})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            group["count"] += 1
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["z"], state["x"] = parameter.clone(), parameter.clone()
                state["z"].sub_(parameter.grad, alpha=group["lr"])
                state["x"].lerp_(state["z"], 1 / group["count"])
                parameter.copy_(state["z"].lerp(state["x"], group["beta"]))


def schedule_free(watch: Watch) -> Outcome:
    model = mlp(20, 64, 64, 10, activation=nn.GELU)
    return fit(
        watch,
        model,
        data.batches(*data.clusters(), steps=300),
        functional.cross_entropy,
        ScheduleFree(model.parameters(), lr=1.0),
    )


def learning_to_adapt(watch: Watch) -> Outcome:
    """Weights from which one step on five points of a sine wave is a good one (MAML); the loss is that after the step."""
    model = mlp(1, 32, 32, 1, activation=nn.ReLU)
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(200):
        total = torch.zeros(())
        for _ in range(4):
            height, shift = 0.5 + 2 * torch.rand(1), torch.pi * torch.rand(1)
            x = 10 * torch.rand(20, 1) - 5
            y = height * torch.sin(x + shift)
            weights = dict(model.named_parameters())
            inner = functional.mse_loss(model(x[:10]), y[:10])
            slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
            moved = {name: w - 0.05 * g for (name, w), g in zip(weights.items(), slopes, strict=True)}
            total = total + functional.mse_loss(functional_call(model, moved, (x[10:],)), y[10:]) / 4
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    return Outcome(tuple(losses))


PROGRAMS = (
    Healthy(weights_averaged, falls_to=0.2),
    Healthy(averaged_for_validation, falls_to=0.2),
    Healthy(schedule_free, falls_to=0.3),
    Healthy(learning_to_adapt, falls_to=0.8),
)
