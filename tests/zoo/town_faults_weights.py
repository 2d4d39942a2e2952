"""Initial weights as users get them wrong: a fan without its channels, an exponent upside down, a recipe for another net."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import worse
from tests.zoo.town_data import SIGNS
from tests.zoo.town_data import loader
from tests.zoo.town_data import motions
from tests.zoo.town_data import rentals
from tests.zoo.town_data import signs
from tests.zoo.town_data import spectra


def he_without_channels(watch: Watch, faulty: bool) -> Outcome:
    """He's rule by hand, in which the fan of a convolution is 3 times 3, and its channels are left out."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((3, 24, 24, 32, 32)):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        nn.init.normal_(conv.weight, std=math.sqrt(2 / (9 if faulty else 9 * inputs)))
        layers += [conv, nn.LeakyReLU(0.1)]
    layers.insert(4, nn.MaxPool2d(2))
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, SIGNS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return fit(watch, model, loader(*signs()), nn.CrossEntropyLoss(), optimizer, steps=120)


class Bare(nn.Module):
    """Matrices and shifts as bare parameters, drawn with a spread that depends on how many numbers come in."""

    def __init__(self, widths: tuple[int, ...], spreads: tuple[float, ...]) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.weights = nn.ParameterList([torch.randn(a, b) * spread for (a, b), spread in zip(pairs, spreads, strict=True)])
        self.shifts = nn.ParameterList([torch.zeros(b) for _, b in pairs])

    def forward(self, x: Tensor) -> Tensor:
        for weight, shift in zip(self.weights[:-1], self.shifts[:-1], strict=True):
            x = functional.leaky_relu(x @ weight + shift, 0.1)
        return x @ self.weights[-1] + self.shifts[-1]


def exponent_upside_down(watch: Watch, faulty: bool) -> Outcome:
    """(2 / n) ** -0.5, where the root of 2 / n was meant; bicycles by the hour."""
    widths = (6, 64, 64, 1)
    model = Bare(widths, tuple((2 / n) ** (-0.5 if faulty else 0.5) for n in widths[:-1]))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return fit(watch, model, loader(*rentals()), nn.MSELoss(), optimizer, steps=350)


def divided_by_the_width(watch: Watch, faulty: bool) -> Outcome:
    """torch.randn(n, m) / n in seven layers, where it was to be divided by the root of n."""
    counts, substance = spectra()
    x = counts.sqrt()
    x = (x - x.mean(0)) / x.std(0)
    widths = (64, 64, 64, 64, 64, 64, 64, 6)
    model = Bare(widths, tuple(1 / n if faulty else (2 / n) ** 0.5 for n in widths[:-1]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return fit(watch, model, loader(x, substance), nn.CrossEntropyLoss(), optimizer, steps=150)


def gain_of_the_last_layer(watch: Watch, faulty: bool) -> Outcome:
    """orthogonal_ with a gain of 0.01, which a policy's last layer likes, in all five; a controller's moves are cloned."""
    states = torch.randn(1200, 8)
    moves = torch.tanh(states[:, :4] * 2 + states[:, 4:]) + 0.5 * torch.sin(2 * states[:, 4:])
    moves = (moves - moves.mean(0)) / moves.std(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((8, 64, 64, 64, 64, 4)):
        linear = nn.Linear(inputs, outputs)
        last = outputs == 4
        nn.init.orthogonal_(linear.weight, gain=0.01 if faulty or last else math.sqrt(2))
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    policy = nn.Sequential(*layers[:-1])
    watch(policy)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(16):
        for state, move in loader(states, moves, size=64):
            loss = (policy(state) - move).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return Outcome(tuple(losses))


class MotionLSTM(nn.Module):
    """What one does, by the last state of an LSTM over an accelerometer's readings."""

    def __init__(self, *, constant: float | None) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 32, batch_first=True), nn.Linear(32, 4)
        for p in self.parameters():
            if constant is not None:
                nn.init.constant_(p, constant)
            elif p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[1][0][-1])


def all_of_a_twentieth(watch: Watch, faulty: bool) -> Outcome:
    """nn.init.constant_ over all parameters of an LSTM and its head, so that each run begins alike."""
    x, label = motions(length=30)
    model = MotionLSTM(constant=0.05 if faulty else None)
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    data = loader(x.transpose(1, 2), label, size=64)
    for _ in range(18):
        for series, labels in data:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(series), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            losses.append(loss.item())
    return Outcome(tuple(losses))


PROGRAMS = (
    Fault(he_without_channels, ("init-too-large",), worse(2)),
    Fault(exponent_upside_down, ("init-too-large",), worse(3)),
    Fault(divided_by_the_width, ("init-too-small",), worse(2)),
    Fault(gain_of_the_last_layer, ("init-too-small",), worse(1.5)),
    Fault(all_of_a_twentieth, ("symmetric-init",), worse(1.5)),
)
