"""Layers as users stack them wrongly: no norms in a deep net, sigmoids or softmaxes in a row, units that nothing wakes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
from tests.zoo.town_data import loader
from tests.zoo.town_data import molecules
from tests.zoo.town_data import motions
from tests.zoo.town_data import rentals
from tests.zoo.town_data import spectra


class Rounds(nn.Module):
    """Atoms add up what their neighbours know (GIN), round by round."""

    def __init__(self, *, rounds: int = 8, width: int = 32, norm: bool) -> None:
        super().__init__()
        self.first = nn.Linear(4, width)
        self.inner = nn.ModuleList(stack((width, width, width), nn.ReLU) for _ in range(rounds))
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for _ in range(rounds))
        for linear in (layer for layer in self.inner.modules() if isinstance(layer, nn.Linear)):
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        self.last = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, 1)

    def forward(self, molecule: Tensor) -> Tensor:
        bonds, atoms = molecule[:, :, :12], molecule[:, :, 12:]
        x = self.first(atoms)
        for inner, norm in zip(self.inner, self.norms, strict=True):
            x = x + inner(norm(x + bonds @ x))
        return self.head(self.last(x.mean(1)))


def neighbours_added_up(watch: Watch, faulty: bool) -> Outcome:
    """Eight rounds of sums over neighbours, without a norm."""
    model = Rounds(norm=not faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(watch, model, loader(*molecules()), nn.MSELoss(), optimizer, steps=200)


class Dilated(nn.Module):
    """A residual block of two convolutions with holes, as in a temporal convolutional net."""

    def __init__(self, width: int, dilation: int, *, norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            conv = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            layers += [conv, *([nn.BatchNorm1d(width)] if norm else []), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.body(x))


def dilated_without_norms(watch: Watch, faulty: bool) -> Outcome:
    """Fourteen residual blocks over an accelerometer's readings; the norms are left out, as the batches are small."""
    x, label = motions(length=32)
    blocks = [Dilated(16, 2 ** (i % 4), norm=not faulty) for i in range(14)]
    model = nn.Sequential(nn.Conv1d(3, 16, 1), *blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4))
    watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(4):
        for series, labels in loader(x, label):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(series), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return Outcome(tuple(losses))


def stack(widths: tuple[int, ...], activation: Callable[[], nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def sigmoids_for_bicycles(watch: Watch, faulty: bool) -> Outcome:
    """Seven hidden layers, each with nn.Sigmoid, as neurons fire between 0 and 1."""
    model = stack((6, 48, 48, 48, 48, 48, 48, 48, 1), nn.Sigmoid if faulty else nn.SiLU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return fit(watch, model, loader(*rentals()), nn.SmoothL1Loss(), optimizer, steps=350)


def softmax_in_between(watch: Watch, faulty: bool) -> Outcome:
    """A softmax after each hidden layer, since the last one is to have one."""
    counts, substance = spectra()
    x = counts.sqrt()
    x = (x - x.mean(0)) / x.std(0)
    model = stack((64, 64, 48, 32, 6), partial(nn.Softmax, dim=-1) if faulty else nn.ELU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return fit(watch, model, loader(x, substance), nn.CrossEntropyLoss(), optimizer, steps=250)


class Sparse(nn.Module):
    """A wide code of which each sample uses little; returns the reconstruction and the code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.relu, self.decoder = nn.Linear(24, 96), nn.ReLU(), nn.Linear(96, 24)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.relu(self.encoder(x - self.decoder.bias))
        return self.decoder(code), code


def code_under_penalty(watch: Watch, faulty: bool) -> Outcome:
    """A sparse autoencoder whose penalty on the code is 200 times too strong; the course is what is left of x."""
    directions = functional.normalize(torch.randn(40, 24), dim=1)
    strength = (torch.rand(2500, 40) < 0.06) * (1 + torch.rand(2500, 40))
    x = strength @ directions
    x = (x - x.mean(0)) / x.std()
    model = Sparse()
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    course = []
    for rows in (torch.randint(2500, (128,)) for _ in range(500)):
        restored, code = model(x[rows])
        error = functional.mse_loss(restored, x[rows])
        optimizer.zero_grad()
        (error + (1.0 if faulty else 5e-3) * code.abs().sum(1).mean()).backward()
        optimizer.step()
        course.append(error.item())
    return Outcome(tuple(course))


class Thresholded(nn.Module):
    """Only what is above a threshold goes on; the threshold is learned."""

    def __init__(self, inputs: int, outputs: int, *, threshold: float) -> None:
        super().__init__()
        self.linear, self.relu = nn.Linear(inputs, outputs), nn.ReLU()
        self.threshold = nn.Parameter(torch.full((outputs,), threshold))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.linear(x) - self.threshold)


def threshold_of_eight(watch: Watch, faulty: bool) -> Outcome:
    """Learned thresholds that begin at 8, where what comes in is about 1."""
    x, label = motions()
    threshold = 8.0 if faulty else 0.05
    layers = [Thresholded(144, 64, threshold=threshold), Thresholded(64, 64, threshold=threshold), nn.Linear(64, 4)]
    model = nn.Sequential(nn.Flatten(), *layers)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return fit(watch, model, loader(x, label), nn.CrossEntropyLoss(), optimizer, steps=250)


PROGRAMS = (
    Fault(neighbours_added_up, ("missing-normalization",), worse(1.5)),
    Fault(dilated_without_norms, ("missing-normalization",), worse(1.5)),
    Fault(sigmoids_for_bicycles, ("saturating-activation",), worse(2)),
    Fault(softmax_in_between, ("saturating-activation",), worse(2)),
    Fault(code_under_penalty, ("dead-units",), worse(2)),
    Fault(threshold_of_eight, ("dead-units", "saturating-activation"), worse(1.5)),
)
