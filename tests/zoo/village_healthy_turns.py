"""Healthy trainings whose loops have more than one optimizer, piece, closure or player."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from tests.zoo.program import Healthy
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.village_data import TOPICS
from tests.zoo.village_data import VOCABULARY
from tests.zoo.village_data import crescents
from tests.zoo.village_data import fabrics
from tests.zoo.village_data import headlines
from tests.zoo.village_data import motions
from tests.zoo.village_data import pairs
from tests.zoo.village_data import rentals


class Beside(nn.Module):
    """Two convolutions with group norms, added to what they are given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.way = nn.Sequential(
            nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.way(x)


def pieces_and_a_remainder(watch: Watch) -> Outcome:
    """Five pieces make a step and an epoch has 24, so that its last step has four; losses are divided by what there is."""
    x, y = fabrics()
    model = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), Beside(16), Beside(16), nn.Flatten(), nn.Linear(256, 5))
    watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    loader = DataLoader(TensorDataset(x, y), batch_size=25, shuffle=True)
    course = []
    for _ in range(20):
        for i, (pictures, labels) in enumerate(loader):
            pieces = 5 if i < 20 else 4
            loss = functional.cross_entropy(model(pictures), labels)
            (loss / pieces).backward()
            if i % 5 == 4 or i == len(loader) - 1:
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
            course.append(loss.item())
    return Outcome(tuple(course))


def energy_distance(one: Tensor, other: Tensor) -> float:
    return float(2 * torch.cdist(one, other).mean() - torch.cdist(one, one).mean() - torch.cdist(other, other).mean())


def forged_crescents(watch: Watch) -> Outcome:
    """Two players with an optimizer each, one label smoothed; the course is the energy distance of the forged points."""
    x, _ = crescents()
    forger = nn.Sequential(nn.Linear(4, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2), nn.Linear(48, 2))
    judge = nn.Sequential(nn.Linear(2, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1))
    watch(forger, name="forger")
    watch(judge, name="judge")
    forging = torch.optim.Adam(forger.parameters(), lr=1e-3, betas=(0.5, 0.9))
    judging = torch.optim.Adam(judge.parameters(), lr=1e-3, betas=(0.5, 0.9))
    entropy = functional.binary_cross_entropy_with_logits
    course = []
    for points, _ in pairs(x, x, size=64, steps=500):
        forged = forger(torch.randn(64, 4))
        judging.zero_grad()
        (entropy(judge(points), torch.full((64, 1), 0.9)) + entropy(judge(forged.detach()), torch.zeros(64, 1))).backward()
        judging.step()
        forging.zero_grad()
        entropy(judge(forged), torch.ones(64, 1)).backward()
        forging.step()
        course.append(energy_distance(forged.detach(), points))
    return Outcome(tuple(course))


def counts_by_closure(watch: Watch) -> Outcome:
    """Every step is a closure that clears, works out a Poisson likelihood, goes back and clips."""
    x, counts = rentals()
    model = nn.Sequential(nn.Linear(7, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1), nn.Flatten(0))
    watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    criterion = nn.PoissonNLLLoss(full=True)
    course: list[float] = []
    for inputs, count in pairs(x, counts, size=64, steps=400):

        def closure(inputs: Tensor = inputs, count: Tensor = count) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = criterion(model(inputs), count)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            return loss

        course.append(float(optimizer.step(closure)))
    return Outcome(tuple(course))


def words_sparse_rest_dense(watch: Watch) -> Outcome:
    """SparseAdam for the words' vectors, AdamW for the rest."""
    x, y = headlines()
    words = nn.EmbeddingBag(VOCABULARY, 24, sparse=True)
    rest = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 32), nn.GELU(), nn.Linear(32, TOPICS))
    model = nn.Sequential(words, rest)
    watch(model)
    optimizers = [torch.optim.SparseAdam(words.parameters(), lr=5e-3), torch.optim.AdamW(rest.parameters(), lr=3e-3)]
    course = []
    for tokens, labels in pairs(x, y, size=48, steps=250):
        loss = functional.cross_entropy(model(tokens), labels)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


class Product(nn.Module):
    """A table as the product of two, each of which stands as a parameter."""

    def __init__(self, rows: int, columns: int, *, rank: int = 3) -> None:
        super().__init__()
        self.left = nn.Parameter(0.3 * torch.randn(rows, rank))
        self.right = nn.Parameter(0.3 * torch.randn(rank, columns))

    def forward(self) -> Tensor:
        return self.left @ self.right


def left_and_right_by_turns(watch: Watch) -> Outcome:
    """A table with gaps is filled by two factors that learn in turn, five steps each; the other is held still."""
    table = torch.randn(40, 3) @ torch.randn(3, 30) / 3**0.5 + 0.1 * torch.randn(40, 30)
    known = torch.rand(40, 30) < 0.7
    model = Product(40, 30)
    watch(model)
    optimizers = (torch.optim.Adam([model.left], lr=0.02), torch.optim.Adam([model.right], lr=0.02))
    course = []
    for step in range(400):
        turn = step // 5 % 2
        model.left.requires_grad_(turn == 0)
        model.right.requires_grad_(turn == 1)
        loss = (model() - table)[known].square().mean()
        optimizers[turn].zero_grad()
        loss.backward()
        optimizers[turn].step()
        course.append(loss.item())
    return Outcome(tuple(course))


class Reversed(torch.autograd.Function):
    """Passes what it gets, and turns its gradient round."""

    @staticmethod
    def forward(context: Any, x: Tensor, strength: float) -> Tensor:
        context.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -context.strength * gradient, None


def two_makes_of_sensor(watch: Watch) -> Outcome:
    """Features that tell motions apart and not from which sensor they are (Ganin et al. 2016). The course is the first."""
    x, y = motions()
    make = (torch.rand(len(x)) < 0.5).long()
    x = x * torch.where(make == 1, 1.2, 0.9)[:, None, None] + 0.3 * make[:, None, None]
    body = nn.Sequential(
        nn.Conv1d(6, 24, 5, stride=2), nn.BatchNorm1d(24), nn.ReLU(), nn.Flatten(), nn.Linear(432, 32), nn.ReLU()
    )
    model = nn.ModuleDict({"body": body, "motion": nn.Linear(32, 4)})
    model["make"] = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    course = []
    for step in range(300):
        rows = torch.randint(len(x), (48,))
        features = body(x[rows])
        told = functional.cross_entropy(model["motion"](features), y[rows])
        strength = min(1.0, step / 150) * 0.5
        loss = told + functional.cross_entropy(model["make"](Reversed.apply(features, strength)), make[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(told.item())
    return Outcome(tuple(course))


PROGRAMS = (
    Healthy(pieces_and_a_remainder),
    Healthy(forged_crescents, falls_to=0.5),
    Healthy(counts_by_closure, falls_to=0.95),
    Healthy(words_sparse_rest_dense),
    Healthy(left_and_right_by_turns),
    Healthy(two_makes_of_sensor),
)
