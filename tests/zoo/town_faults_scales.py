"""Inputs and targets in units of their own."""

from __future__ import annotations

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
from tests.zoo.town_data import signs
from tests.zoo.town_data import spectra


def counts_of_a_spectrometer(watch: Watch, faulty: bool) -> Outcome:
    """Counts of up to a few thousand in each channel, as the instrument writes them."""
    x, substance = spectra()
    if not faulty:
        x = (x - x.mean(0)) / x.std(0)
    layers = [nn.Linear(64, 48), nn.Tanh(), nn.Dropout(0.1), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 6)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return fit(watch, model, loader(x, substance), nn.CrossEntropyLoss(), optimizer, steps=250)


def trips(*, count: int = 1500) -> tuple[Tensor, Tensor]:
    """Where and when a taxi set out, in degrees and in days, where it went, and how long it took, standardised."""
    start, end = torch.randn(2, count, 2)
    day = 17000 + 700 * torch.rand(count, 1)
    rush = torch.cos(6.28 * (day % 1))
    took = (end - start).norm(dim=1, keepdim=True) * (1 + 0.5 * rush) + 0.2 * start[:, :1]
    near = torch.tensor([40.75, -73.97])
    x = torch.cat([near + 0.03 * start, near + 0.03 * end, day, 24 * (day % 1)], dim=1)
    return x, (took - took.mean()) / took.std()


def degrees_and_days(watch: Watch, faulty: bool) -> Outcome:
    """Degrees that differ in their second decimal, beside days since 1970."""
    x, took = trips()
    if not faulty:
        x = (x - x.mean(0)) / x.std(0)
    model = nn.Sequential(nn.Linear(6, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 1))
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(9):
        for row, minutes in loader(x, took):
            optimizer.zero_grad()
            loss = functional.l1_loss(model(row), minutes)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return Outcome(tuple(losses))


def slices(*, count: int = 240, size: int = 20) -> tuple[Tensor, Tensor]:
    """Slices of a scan in Hounsfield units, air at -1000 and bone at 1000, and where the bone is."""
    place = torch.arange(size) - size / 2
    middle = 2 * torch.randn(2, count, 1, 1)
    away = ((place[:, None] - middle[0]).square() + (place[None, :] - middle[1]).square()).sqrt()
    radius = 5 + 2 * torch.rand(count, 1, 1)
    bone = (away < radius) & (away > radius - 2)
    body = torch.where(away < radius + 2, 40.0, -1000.0)
    scan = torch.where(bone, 700.0, body) + 150 * torch.randn(count, size, size)
    return scan.unsqueeze(1), bone.float().unsqueeze(1)


def hounsfield(watch: Watch, faulty: bool) -> Outcome:
    """A scan as it comes from its file, from -1000 to 1000, into a net without norms that marks the bone."""
    scan, bone = slices()
    if not faulty:
        scan = (scan - scan.mean()) / scan.std()
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 12), (12, 16), (16, 16)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(16, 1, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return fit(watch, model, loader(scan, bone, size=16), nn.BCEWithLogitsLoss(), optimizer, steps=200)


def ages(pictures: Tensor) -> Tensor:
    """Something that a picture shows, in years: 42 on average, give or take 14."""
    bright = pictures[:, :, 6:10, 6:10].mean((1, 2, 3))
    return (42 + 14 * (bright - bright.mean()) / bright.std()).unsqueeze(1)


class Eye(nn.Module):
    """Convolutions with group norms and one number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.conv2, self.norm2 = nn.Conv2d(16, 24, 3, padding=1), nn.GroupNorm(4, 24)
        self.fc = nn.Linear(24 * 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.norm1(self.conv1(x))), 2)
        x = functional.max_pool2d(functional.relu(self.norm2(self.conv2(x))), 2)
        return self.fc(x.flatten(1))


def ages_in_years(watch: Watch, faulty: bool) -> Outcome:
    """Ages in years and a mean absolute error; the course is the error over the ages' spread of 14."""
    pictures, _ = signs()
    years = ages(pictures)
    shift, scale = (0.0, 1.0) if faulty else (42.0, 14.0)
    model = Eye()
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    course = []
    for _ in range(6):
        for x, y in loader(pictures, years):
            loss = functional.l1_loss(model(x), (y - shift) / scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            course.append(loss.item() * scale / 14)
    return Outcome(tuple(course))


def critic_of_points(watch: Watch, faulty: bool) -> Outcome:
    """A critic of a game learns returns in points, thousands of them; the course is its squared error over their variance."""
    states = torch.randn(2000, 10)
    won = torch.sin(states[:, 0]) + states[:, 1] * states[:, 2].sigmoid() + 0.3 * states[:, 3:].sum(1).tanh()
    points = (6000 + 2500 * (won - won.mean()) / won.std()).unsqueeze(1)
    shift, scale = (0.0, 1.0) if faulty else (6000.0, 2500.0)
    critic = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    watch(critic)
    optimizer = torch.optim.RMSprop(critic.parameters(), lr=1e-3)
    course = []
    for rows in (torch.randint(2000, (64,)) for _ in range(400)):
        loss = functional.mse_loss(critic(states[rows]), (points[rows] - shift) / scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item() * (scale / 2500) ** 2)
    return Outcome(tuple(course))


PROGRAMS = (
    Fault(counts_of_a_spectrometer, ("unnormalized-input",), worse(2)),
    Fault(degrees_and_days, ("unnormalized-input",), worse(1.5)),
    Fault(hounsfield, ("unnormalized-input",), worse(1.5)),
    Fault(ages_in_years, ("unscaled-target",), worse(1.5)),
    Fault(critic_of_points, ("unscaled-target",), worse(2)),
)
