"""Healthy trainings with weights that are shared or bare, and losses that are weighed, masked or picked."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.program import Healthy
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.village_data import SYMBOLS
from tests.zoo.village_data import drawn
from tests.zoo.village_data import fabrics
from tests.zoo.village_data import loans
from tests.zoo.village_data import pairs
from tests.zoo.village_data import season
from tests.zoo.village_data import spots
from tests.zoo.village_data import stories


class Tied(nn.Module):
    """An LSTM language model that writes with the vectors it reads with, and hands its state on."""

    def __init__(self, *, width: int = 40) -> None:
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, width)
        nn.init.uniform_(self.symbols.weight, -0.1, 0.1)
        self.recurrent = nn.LSTM(width, width, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.bias = nn.Parameter(torch.zeros(SYMBOLS))

    def forward(self, symbols: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        read, state = self.recurrent(self.dropout(self.symbols(symbols)), state)
        return functional.linear(self.dropout(read), self.symbols.weight, self.bias), state


def one_long_story(watch: Watch) -> Outcome:
    """Sixteen long stories, twenty symbols a step; the state goes on without its graph, and the rate falls when it sticks."""
    ((told, following),) = stories(length=20 * 250, steps=1)
    model = Tied()
    watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=30)
    state, course = None, []
    for symbols, wanted in zip(told.split(20, dim=1), following.split(20, dim=1), strict=True):
        logits, state = model(symbols, state)
        state = (state[0].detach(), state[1].detach())
        loss = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step(loss.item())
        course.append(loss.item())
    return Outcome(tuple(course))


class Pointing(nn.Module):
    """A map by convolutions, and the mean place under its softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Sequential(
            nn.Conv2d(1, 12, 5, padding=2), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 1)
        )
        self.register_buffer("line", torch.linspace(-1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.map(x).flatten(1).softmax(1).view(-1, 16, 16)
        return torch.stack([weights.sum(1) @ self.line, weights.sum(2) @ self.line], dim=1)


def mean_place_of_a_map(watch: Watch) -> Outcome:
    """Places by a softmax over all pixels, and their distance in a straight line."""
    model = Pointing()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3, centered=True)

    def loss(output: Tensor, place: Tensor) -> Tensor:
        return ((output - place).square().sum(1) + 1e-6).sqrt().mean()

    return fit(watch, model, pairs(*spots(), steps=250), loss, optimizer)


class WeighsItself(nn.Module):
    """A class and three numbers of a fabric, and how unsure each of the two tasks is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.GELU(), nn.Flatten(), nn.Linear(256, 48), nn.GELU())
        self.weave, self.colour = nn.Linear(48, 5), nn.Linear(48, 3)
        self.unsure = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shared = self.stem(x)
        return self.weave(shared), self.colour(shared)


def tasks_weigh_themselves(watch: Watch) -> Outcome:
    """Each task's loss is over a learned variance (Kendall et al. 2018), so the sum goes below zero; the course is without."""
    x, y = fabrics()
    spread = x.std(dim=(2, 3))
    strengths = (spread - spread.mean(0)) / spread.std(0)
    model = WeighsItself()
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    course = []
    for pictures, labels, strength in drawn(x, y, strengths, steps=400):
        weave, colour = model(pictures)
        losses = torch.stack([functional.cross_entropy(weave, labels), functional.mse_loss(colour, strength)])
        loss = ((-model.unsure).exp() * losses + 0.5 * model.unsure).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(losses.sum().item())
    return Outcome(tuple(course))


class Filling(nn.Module):
    """A transformer over pieces of three days, of which some are replaced by a vector of their own."""

    def __init__(self, *, width: int = 32) -> None:
        super().__init__()
        self.piece = nn.Linear(3, width)
        self.hidden = nn.Parameter(0.02 * torch.randn(width))
        self.place = nn.Parameter(0.02 * torch.randn(10, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(width, 3)

    def forward(self, pieces: Tensor, masked: Tensor) -> Tensor:
        seen = torch.where(masked.unsqueeze(2), self.hidden, self.piece(pieces))
        return self.out(self.encoder(seen + self.place))


def hidden_days(watch: Watch) -> Outcome:
    """Four of ten pieces of a series are hidden, and only what is said of those counts."""
    x, _ = season()
    pieces = x.view(-1, 10, 3)
    model = Filling()
    watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 30))
    course = []
    for batch, _ in pairs(pieces, pieces, steps=250):
        masked = torch.rand(32, 10).argsort(1) < 4
        loss = (model(batch, masked) - batch)[masked].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def hardest_half(watch: Watch) -> Outcome:
    """From step 50 on only the harder half of each batch counts; the course is the mean over all of it."""
    x, y = loans()
    model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    course = []
    for step, (inputs, labels) in enumerate(pairs(x, y, size=64, steps=400)):
        each = functional.binary_cross_entropy_with_logits(model(inputs).squeeze(1), labels, reduction="none")
        loss = each.mean() if step < 50 else each.topk(32).values.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(each.mean().item())
    return Outcome(tuple(course))


class Bare(nn.Module):
    """A column's weight, its products with all others, and nothing made of modules."""

    def __init__(self, *, columns: int = 12, rank: int = 6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(columns))
        self.factors = nn.Parameter(0.1 * torch.randn(columns, rank))
        self.bend = nn.Parameter(torch.zeros(columns))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        products = 0.5 * ((x @ self.factors).square() - x.square() @ self.factors.square()).sum(1)
        return self.bias + x @ self.weight + x.abs() @ self.bend + products


def factorisation_machine(watch: Watch) -> Outcome:
    """A logistic regression with products of columns, in bare parameters, its loss by hand."""
    x, y = loans()
    model = Bare()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)

    def loss(output: Tensor, failed: Tensor) -> Tensor:
        return (functional.softplus(output) - failed * output).mean()

    return fit(watch, model, pairs(x, y, size=50, steps=400), loss, optimizer)


PROGRAMS = (
    Healthy(one_long_story),
    Healthy(mean_place_of_a_map),
    Healthy(tasks_weigh_themselves),
    Healthy(hidden_days),
    Healthy(hardest_half),
    Healthy(factorisation_machine),
)
