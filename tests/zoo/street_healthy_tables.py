"""Healthy trainings on points and tables: ensembles, likelihoods, rankings, bare parameters, odd optimizers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.program import Healthy
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.street_healthy_data import drawn
from tests.zoo.street_healthy_data import houses
from tests.zoo.street_healthy_data import loader
from tests.zoo.street_healthy_data import spirals


def spirals_by_rprop(watch: Watch) -> Outcome:
    """All points in each step, and steps by the gradient's sign alone."""
    x, y = spirals()
    model = nn.Sequential(nn.Linear(2, 40), nn.Softsign(), nn.Linear(40, 40), nn.Softsign(), nn.Linear(40, 3))
    optimizer = torch.optim.Rprop(model.parameters(), lr=1e-3, step_sizes=(1e-6, 0.1))
    watch(model)
    course = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


class Waves(nn.Module):
    """Fixed random waves over the plane and a linear layer on them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("directions", 3 * torch.randn(2, 128))
        self.out = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        angles = x @ self.directions
        return self.out(torch.cat([angles.sin(), angles.cos()], dim=1))


def random_waves_lbfgs(watch: Watch) -> Outcome:
    """LBFGS, whose closure runs several times a step, with a penalty on the weights."""
    x, y = spirals()
    model = Waves()
    watch(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, history_size=8)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y) + 1e-4 * model.out.weight.square().sum()
        loss.backward()
        return loss

    return Outcome(tuple(optimizer.step(closure).item() for _ in range(40)))


class Ensemble(nn.Module):
    """Six nets side by side in bare parameters."""

    def __init__(self, *, count: int = 6, width: int = 32) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(count, 8, width) * (2 / 8) ** 0.5)
        self.b1 = nn.Parameter(torch.zeros(count, 1, width))
        self.w2 = nn.Parameter(torch.randn(count, width, 1) / width**0.5)
        self.b2 = nn.Parameter(torch.zeros(count, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.baddbmm(self.b1, x.expand(len(self.w1), -1, -1), self.w1).relu()
        return torch.baddbmm(self.b2, hidden, self.w2)


def bootstrapped_ensemble(watch: Watch) -> Outcome:
    """Each net sees each row as often as chance has it, not at all or twice."""
    x, y = houses()
    model = Ensemble()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    watch(model)
    course = []
    for inputs, target in drawn(x, y, steps=400, size=48):
        counts = torch.poisson(torch.ones(6, 48, 1))
        optimizer.zero_grad()
        loss = (counts * (model(inputs) - target).square()).mean()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def width_of_its_error(watch: Watch) -> Outcome:
    """A mean and a variance for each price, whose likelihood may fall below zero; the course is the squared error."""
    x, y = houses()
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    criterion = nn.GaussianNLLLoss(eps=1e-3)
    watch(model)
    course = []
    for inputs, target in drawn(x, y, steps=500):
        mean, spread = model(inputs).chunk(2, dim=1)
        loss = criterion(mean, target, functional.softplus(spread))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        course.append(functional.mse_loss(mean.detach(), target).item())
    return Outcome(tuple(course))


def calls_per_hour(watch: Watch) -> Outcome:
    """Counts and their Poisson likelihood by hand; the course is the deviance."""
    x, y = houses()
    counts = torch.poisson(torch.exp(0.8 * y + 1))
    model = nn.Sequential(nn.Linear(8, 48), nn.Mish(), nn.Linear(48, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    watch(model)
    course = []
    for _ in range(12):
        for inputs, count in loader(x, counts, size=25):
            rate = model(inputs)
            optimizer.zero_grad()
            (rate.exp() - count * rate).mean().backward()
            optimizer.step()
            gap = rate.detach()
            deviance = torch.xlogy(count, count / gap.exp()) - count + gap.exp()
            course.append(2 * deviance.mean().item())
    return Outcome(tuple(course))


def which_house_is_dearer(watch: Watch) -> Outcome:
    """Pairs of houses and a margin between their scores."""
    x, y = houses()
    model = nn.Sequential(nn.Linear(8, 48), nn.PReLU(), nn.Linear(48, 48), nn.PReLU(), nn.Linear(48, 1))
    optimizer = torch.optim.NAdam(model.parameters(), lr=2e-3)
    criterion = nn.MarginRankingLoss(margin=0.5)
    watch(model)
    course = []
    for _ in range(400):
        a, b = torch.randint(len(x), (2, 64))
        loss = criterion(model(x[a]), model(x[b]), torch.sign(y[a] - y[b]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


class Highway(nn.Module):
    """Layers that pass on what their gates, nearly shut at first, do not replace."""

    def __init__(self, *, width: int = 32, depth: int = 6) -> None:
        super().__init__()
        self.first = nn.Linear(8, width)
        self.layers = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        for layer in self.layers:
            nn.init.constant_(layer.bias[width:], -2.0)
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            new, gate = layer(x).chunk(2, dim=1)
            x = torch.lerp(x, functional.relu(new), gate.sigmoid())
        return self.out(x)


def highway_in_double(watch: Watch) -> Outcome:
    """Double precision, a rate that falls when a validation no longer gets better, and an early end."""
    x, y = (part.double() for part in houses())
    model = Highway().double()
    optimizer = torch.optim.RAdam(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=2)
    watch(model)
    course = []
    for _ in range(16):
        for inputs, target in loader(x[:800], y[:800]):
            optimizer.zero_grad()
            loss = functional.huber_loss(model(inputs), target, delta=0.7)
            loss.backward()
            optimizer.step()
            course.append(loss.item())
        model.eval()
        with torch.no_grad():
            schedule.step(functional.mse_loss(model(x[800:]), y[800:]))
        model.train()
        if optimizer.param_groups[0]["lr"] < 1e-4:
            break
    return Outcome(tuple(course))


def one_in_fifteen(watch: Watch) -> Outcome:
    """A rare class whose mistakes count tenfold, dropout, a loss that is written out, and two rates."""
    x, y = houses()
    rare = (y.squeeze(1) > 1.5).float()
    model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(
        [{"params": model[0].parameters(), "weight_decay": 0.02}, {"params": model[3].parameters(), "lr": 1e-2}], lr=4e-3
    )
    watch(model)
    course = []
    for inputs, label in drawn(x, rare, steps=400, size=64):
        logit = model(inputs).squeeze(1)
        loss = (functional.softplus(-logit) * label * 10 + functional.softplus(logit) * (1 - label)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def a_fifth_of_labels_wrong(watch: Watch) -> Outcome:
    """One label in five is wrong and smoothed, so that the loss stays high; the course is the error of the right ones."""
    x, y = spirals()
    wrong = torch.where(torch.rand(len(y)) < 0.2, torch.randint(3, (len(y),)), y)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.8, dampening=0.2)
    watch(model)
    course = []
    for chosen, _ in drawn(torch.arange(len(x)), y, steps=600, size=48):
        logits = model(x[chosen])
        optimizer.zero_grad()
        functional.cross_entropy(logits, wrong[chosen], label_smoothing=0.1).backward()
        optimizer.step()
        course.append(functional.cross_entropy(logits.detach(), y[chosen]).item())
    return Outcome(tuple(course))


PROGRAMS = (
    Healthy(spirals_by_rprop),
    Healthy(random_waves_lbfgs),
    Healthy(bootstrapped_ensemble),
    Healthy(width_of_its_error),
    Healthy(calls_per_hour),
    Healthy(which_house_is_dearer),
    Healthy(highway_in_double),
    Healthy(one_in_fifteen),
    Healthy(a_fifth_of_labels_wrong),
)
