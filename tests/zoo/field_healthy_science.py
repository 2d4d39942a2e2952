"""Healthy trainings whose loss is out of the ordinary: equations, densities, rewards, weights made by a net."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.field_faults_losses import Mixture
from tests.zoo.field_faults_losses import bent
from tests.zoo.field_faults_losses import mixture_likelihood
from tests.zoo.models import mlp
from tests.zoo.program import Healthy
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit


def equation_of_a_string(watch: Watch) -> Outcome:
    """u'' = -π² sin πx with both ends held, by derivatives of the net itself."""
    model = mlp(1, 32, 32, 1, activation=nn.Tanh)
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(300):
        x = torch.rand(64, 1, requires_grad=True)
        u = model(x)
        slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        bend = torch.autograd.grad(slope.sum(), x, create_graph=True)[0]
        inside = (bend + torch.pi**2 * torch.sin(torch.pi * x)).square().mean()
        loss = inside + 10 * model(torch.tensor([[0.0], [1.0]])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return Outcome(tuple(losses))


def mixture_density(watch: Watch) -> Outcome:
    """Several answers to one question; the course is the likelihood's distance to -1."""
    model = Mixture()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    outcome = fit(
        watch, model, data.batches(*bent(), size=128, steps=300), lambda o, t: mixture_likelihood(o, t).mean(), optimizer
    )
    return Outcome(tuple(value + 1 for value in outcome.course))


class Flow(nn.Module):
    """A state that moves along a learned field, in twenty steps by the midpoint rule."""

    def __init__(self) -> None:
        super().__init__()
        self.field = mlp(2, 32, 2, activation=nn.Tanh)

    def forward(self, state: Tensor) -> Tensor:
        for _ in range(20):
            state = state + 0.1 * self.field(state + 0.05 * self.field(state))
        return state


def learned_dynamics(watch: Watch) -> Outcome:
    """Where points on a spiral are two seconds later."""
    matrix = torch.linalg.matrix_exp(2 * torch.tensor([[-0.1, 1.0], [-1.0, -0.1]]))
    x = torch.randn(1000, 2)
    model = Flow()
    return fit(
        watch,
        model,
        data.batches(x, x @ matrix.T, steps=200),
        functional.mse_loss,
        torch.optim.Adam(model.parameters(), lr=1e-2),
    )


class Hyper(nn.Module):
    """A net whose output is the weights of another."""

    def __init__(self) -> None:
        super().__init__()
        self.task, self.maker = nn.Embedding(6, 8), mlp(8, 48, 8 * 16 + 16, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        made = self.maker(self.task(x[:, 0].long()))
        hidden = torch.tanh(torch.bmm(x[:, None, 1:], made[:, :128].view(-1, 8, 16)).squeeze(1))
        return (hidden * made[:, 128:]).sum(1, keepdim=True)


def weights_made_by_a_net(watch: Watch) -> Outcome:
    """Six tasks, whose number is the first column."""
    tasks, x = torch.randint(6, (2000, 1)), torch.randn(2000, 8)
    rules = torch.randn(6, 8)
    y = torch.tanh((x * rules[tasks.squeeze(1)]).sum(1, keepdim=True) / 2)
    model = Hyper()
    batches = data.batches(torch.cat([tasks.float(), x], dim=1), y, steps=400)
    return fit(watch, model, batches, functional.smooth_l1_loss, torch.optim.AdamW(model.parameters(), lr=3e-3))


def ranked_grades(watch: Watch) -> Outcome:
    """Five ordered grades by a score and four thresholds."""

    class Grades(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score, self.limits = mlp(10, 32, 1, activation=nn.Softplus), nn.Parameter(torch.linspace(-1, 1, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.score(x) - self.limits

    x, y = data.taught()
    above = (y > torch.tensor([-1.0, -0.3, 0.3, 1.0])).float()
    model = Grades()
    optimizer = torch.optim.Rprop(model.parameters(), lr=1e-3)
    return fit(watch, model, ((x, above) for _ in range(150)), functional.binary_cross_entropy_with_logits, optimizer)


def support_vectors(watch: Watch) -> Outcome:
    """One linear layer, a squared hinge loss and a penalty on the weights, one of ten classes against the rest."""
    x, y = data.clusters()
    model = nn.Linear(20, 10)
    signs = 2 * functional.one_hot(y, 10).float() - 1

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (1 - output * target).clamp_min(0).square().sum(1).mean() + 1e-3 * model.weight.square().sum()

    return fit(watch, model, data.batches(x, signs, size=100, steps=250), loss, torch.optim.SGD(model.parameters(), lr=0.05))


def grid_policy(watch: Watch) -> Outcome:
    """REINFORCE on a walk to a corner, with a baseline and a bonus for entropy; the course is the mean time it takes."""
    model = nn.ModuleDict({"policy": mlp(10, 32, 4, activation=nn.Tanh), "baseline": nn.Linear(10, 1)})
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    moves = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]])
    course = []
    for _ in range(150):
        place, logs, values, entropy = torch.randint(5, (32, 2)), [], [], torch.zeros(())
        there, times = torch.zeros(32, dtype=torch.bool), torch.zeros(32)
        for _ in range(12):
            seen = torch.cat([functional.one_hot(place[:, 0], 5), functional.one_hot(place[:, 1], 5)], dim=1).float()
            choice = torch.distributions.Categorical(logits=model["policy"](seen))
            move = choice.sample()
            logs.append(choice.log_prob(move) * ~there)
            values.append(model["baseline"](seen).squeeze(1))
            entropy = entropy + choice.entropy().mean() / 12
            place = torch.where(there.unsqueeze(1), place, (place + moves[move]).clamp(0, 4))
            times += ~there
            there = there | (place == 4).all(1)
        left = (times.unsqueeze(0) - torch.arange(12).unsqueeze(1)).clamp_min(0) / 12
        value = torch.stack(values)
        policy = -(torch.stack(logs) * (-left - value).detach()).sum(0).mean()
        loss = policy + functional.mse_loss(value, -left) - 0.02 * entropy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(float(times.mean()))
    return Outcome(tuple(course))


def quantiles_of_heavy_tails(watch: Watch) -> Outcome:
    """Three quantiles of targets that are now and then a hundred times too far out."""
    x, y = data.taught()
    target = y + 0.2 * torch.distributions.StudentT(1.5).sample(y.shape)
    levels = torch.tensor([0.25, 0.5, 0.75])

    def pinball(output: Tensor, numbers: Tensor) -> Tensor:
        gap = numbers[:, :1] - output
        return torch.maximum(levels * gap, (levels - 1) * gap).mean()

    def course(output: Tensor, numbers: Tensor) -> float:
        return float((output[:, 1:2] - numbers[:, 1:]).abs().mean())

    model = mlp(10, 64, 3, activation=nn.Mish)
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    errors = []
    for inputs, numbers in data.batches(x, torch.cat([target, y], dim=1), steps=300):
        output = model(inputs)
        optimizer.zero_grad()
        pinball(output, numbers).backward()
        optimizer.step()
        errors.append(course(output.detach(), numbers))
    return Outcome(tuple(errors))


PROGRAMS = (
    Healthy(equation_of_a_string, falls_to=0.2),
    Healthy(mixture_density, falls_to=0.7),
    Healthy(learned_dynamics, falls_to=0.2),
    Healthy(weights_made_by_a_net, falls_to=0.4),
    Healthy(ranked_grades, falls_to=0.6),
    Healthy(support_vectors, falls_to=0.6),
    Healthy(grid_policy, falls_to=0.7),
    Healthy(quantiles_of_heavy_tails, falls_to=0.5),
)
