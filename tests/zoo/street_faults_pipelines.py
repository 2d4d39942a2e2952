"""Data that comes wrong out of a pipeline, and numbers that stop being numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.proofs import worse
from tests.zoo.street_faults_rates import Reader
from tests.zoo.street_faults_rates import lenet
from tests.zoo.street_faults_starts import descend
from tests.zoo.street_faults_starts import stack
from tests.zoo.street_healthy_data import drawn
from tests.zoo.street_healthy_data import houses
from tests.zoo.street_healthy_data import loader
from tests.zoo.street_healthy_data import reviews
from tests.zoo.street_healthy_data import stripes


class Amounts(nn.Module):
    """Takes the logarithm of amounts, with or without a thought of negative ones, and foretells a price."""

    def __init__(self, *, signed: bool) -> None:
        super().__init__()
        self.net = stack(8, 64, 64, 1)
        self.signed = signed

    def forward(self, x: Tensor) -> Tensor:
        small = x.sign() * torch.log1p(x.abs()) if self.signed else torch.log1p(x)
        return self.net(small - 2)


def refunds_in_a_logarithm(watch: Watch, faulty: bool) -> Outcome:
    """log1p within the model, against long tails; four rows of a thousand hold a refund, which is an amount below -1."""
    x, y = houses()
    amounts = torch.expm1(x + 2).clamp_min(0)
    amounts[torch.randperm(len(x))[:4], 3] = -40.0
    model = Amounts(signed=not faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return descend(watch, model, optimizer, amounts, y)


class PowerPooled(nn.Module):
    """Convolutions and the generalised mean over places, with or without a floor under its root."""

    def __init__(self, *, floor: float) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.power = nn.Parameter(torch.tensor(3.0))
        self.out = nn.Linear(16, 4)
        self.floor = floor

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x).clamp(min=self.floor)
        return self.out(features.pow(self.power).mean((2, 3)).pow(1 / self.power))


def pooled_by_powers(watch: Watch, faulty: bool) -> Outcome:
    """A channel that is zero everywhere in a picture has a root without a slope."""
    x, y = stripes()
    model = PowerPooled(floor=0.0 if faulty else 1e-3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return descend(watch, model, optimizer, x, y)


def rare_flag_standardised(watch: Watch, faulty: bool) -> Outcome:
    """Each batch is standardised by its own deviation, which is zero where a rare flag is set in no row."""
    x, y = houses()
    x = torch.cat([x, (torch.rand(len(x), 1) < 0.12).float()], dim=1)
    model = stack(9, 64, 64, 1, activation=nn.ELU)
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    course = []
    for inputs, target in drawn(x, y, steps=400):
        inputs = (inputs - inputs.mean(0)) / (inputs.std(0) + (0.0 if faulty else 1e-2))
        loss = functional.mse_loss(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def gaps_in_a_table(watch: Watch, faulty: bool) -> Outcome:
    """pandas reads an empty cell as NaN; three rows of a thousand have one."""
    x, y = houses()
    holes = x.clone()
    holes[torch.randperm(len(x))[:3], 5] = torch.nan
    model = nn.Sequential(nn.BatchNorm1d(8), *stack(8, 64, 1, activation=nn.GELU))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return descend(watch, model, optimizer, holes if faulty else holes.nan_to_num(0.0), y)


def sentinel_for_missing(watch: Watch, faulty: bool) -> Outcome:
    """A missing value is written as -9999, and the one row with it comes at step 80."""
    x, y = houses()
    model = stack(8, 64, 64, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    watch(model)
    course = []
    for step, (inputs, target) in enumerate(drawn(x, y, steps=250)):
        if step == 80:
            inputs[5, 2] = -9999.0 if faulty else 0.0
        loss = functional.mse_loss(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def folder_by_folder(watch: Watch, faulty: bool) -> Outcome:
    """The loader does not shuffle, and the files lie class by class; the course is the loss over all of them."""
    x, y = stripes()
    order = y.argsort()
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    watch(model)
    course = []
    for _ in range(8):
        for step, (pictures, labels) in enumerate(loader(x[order], y[order], shuffle=not faulty)):
            optimizer.zero_grad()
            functional.cross_entropy(model(pictures), labels).backward()
            optimizer.step()
            if step % 2 == 0:
                model.eval()
                with torch.no_grad():
                    course.append(functional.cross_entropy(model(x[::8]), y[::8]).item())
                model.train()
    return Outcome(tuple(course))


def two_loaders(watch: Watch, faulty: bool) -> Outcome:
    """Pictures and labels come from a loader each, and each of them shuffles."""
    x, y = stripes(count=2400)
    model = lenet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch(model)
    course = []
    for _ in range(5):
        for pictures, labels in _apart(x, y) if faulty else loader(x, y):
            loss = functional.cross_entropy(model(pictures), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            course.append(loss.item())
    return Outcome(tuple(course))


def cut_to_the_padding(watch: Watch, faulty: bool) -> Outcome:
    """Reviews are padded in front to forty words, and the first twelve are kept in place of the last."""
    x, y = reviews()
    padded = torch.cat([torch.zeros(len(x), 28, dtype=torch.long), x], dim=1)
    tokens = padded[:, :12] if faulty else padded[:, -12:]
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return descend(watch, model, optimizer, tokens, y, steps=250)


def _apart(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for (pictures, _), (_, labels) in zip(loader(x, y), loader(x, y), strict=True):
        yield pictures, labels


PROGRAMS = (
    Fault(refunds_in_a_logarithm, ("nonfinite-origin",), worse(2)),
    Fault(pooled_by_powers, ("nonfinite-origin",), worse(2)),
    Fault(rare_flag_standardised, ("nonfinite-input",), worse(2)),
    Fault(gaps_in_a_table, ("nonfinite-input",), worse(2)),
    Fault(sentinel_for_missing, ("outlier-batch",), worse(2), begins=80),
    Fault(folder_by_folder, ("unshuffled-data",), worse(2)),
    Fault(two_loaders, ("labels-unrelated", "loss-plateau"), worse(2), aside=True),
    Fault(cut_to_the_padding, ("constant-input",), worse(1.5)),
)
