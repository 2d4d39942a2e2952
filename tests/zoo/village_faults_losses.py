"""Losses whose shapes, inputs or signs do not fit."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import fact
from tests.zoo.proofs import worse
from tests.zoo.village_data import TOPICS
from tests.zoo.village_data import VOCABULARY
from tests.zoo.village_data import headlines
from tests.zoo.village_data import loans
from tests.zoo.village_data import motions
from tests.zoo.village_data import pairs
from tests.zoo.village_data import parcels
from tests.zoo.village_data import rentals
from tests.zoo.village_data import season
from tests.zoo.village_data import spots


class Outlook(nn.Module):
    """Convolutions over a series and the next six values, which may keep the axis of its one channel."""

    def __init__(self, *, channel: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 16, 6, stride=3), nn.ELU(), nn.Conv1d(16, 16, 3, stride=2), nn.ELU())
        self.out = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ELU(), nn.Linear(32, 6))
        self.channel = channel

    def forward(self, x: Tensor) -> Tensor:
        following = self.out(self.body(x))
        return following.unsqueeze(1) if self.channel else following


def outlook_with_a_channel(watch: Watch, faulty: bool) -> Outcome:
    """Forecasts of (N, 1, 6) against what came, (N, 6), by MSELoss, which warns and goes on."""
    x, y = season()
    model = Outlook(channel=faulty)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    outcome = fit(watch, model, pairs(x, y, steps=400), nn.MSELoss(), optimizer)
    with torch.no_grad():
        left = (model(x).reshape(-1, 6) - y).square().mean()
    return replace(outcome, facts={"left": float(left)})


def rates_against_a_column(watch: Watch, faulty: bool) -> Outcome:
    """Logarithms of rates, (N, 1), and counts as the table's column has them, (N,), in a Poisson likelihood by hand."""
    x, counts = rentals()
    model = nn.Sequential(nn.Linear(7, 64), nn.Softplus(), nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 1))

    def loss(output: Tensor, count: Tensor) -> Tensor:
        rate = output if faulty else output.squeeze(1)
        return (rate.exp() - count * rate + torch.lgamma(count + 1)).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    outcome = fit(watch, model, pairs(x, counts, size=64, steps=400), loss, optimizer)
    with torch.no_grad():
        rate = model(x).squeeze(1).exp()
    return replace(outcome, facts={"unexplained": float((rate - counts).square().mean() / counts.var())})


def pixels_softmaxed(watch: Watch, faulty: bool) -> Outcome:
    """What grows where: a segmentation that ends in Softmax2d, under cross_entropy."""
    x, y = parcels()
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1),
        nn.PReLU(),
        nn.Conv2d(12, 12, 3, padding=2, dilation=2),
        nn.PReLU(),
        nn.Conv2d(12, 3, 1),
    )
    if faulty:
        model.append(nn.Softmax2d())
    optimizer = torch.optim.RAdam(model.parameters(), lr=1e-2)
    return fit(watch, model, pairs(x, y, size=8, steps=250), functional.cross_entropy, optimizer)


class Topical(nn.Module):
    """An LSTM in both directions over words; its classes may come as probabilities."""

    def __init__(self, *, probabilities: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 24)
        self.recurrent = nn.LSTM(24, 24, batch_first=True, bidirectional=True)
        self.out = nn.Linear(48, TOPICS)
        self.probabilities = probabilities

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.out(self.recurrent(self.words(tokens))[0].amax(1))
        return functional.softmax(logits, dim=1) if self.probabilities else logits


def topics_as_probabilities(watch: Watch, faulty: bool) -> Outcome:
    """return F.softmax(x, dim=1), and a CrossEntropyLoss with smoothed labels."""
    x, y = headlines()
    model = Topical(probabilities=faulty)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    return fit(watch, model, pairs(x, y, steps=250), criterion, torch.optim.NAdam(model.parameters(), lr=4e-3))


def probabilities_into_nll(watch: Watch, faulty: bool) -> Outcome:
    """NLLLoss after a softmax, without the logarithm; the loss is negative. The course is the cross entropy."""
    x, y = motions()
    model = nn.Sequential(nn.Conv1d(6, 16, 7, stride=3), nn.BatchNorm1d(16), nn.ReLU(), nn.Flatten(), nn.Linear(192, 4))
    model.append(nn.Softmax(dim=1) if faulty else nn.LogSoftmax(dim=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    criterion = nn.NLLLoss()
    watch(model)
    course = []
    for waves, labels in pairs(x, y, steps=250):
        output = model(waves)
        loss = criterion(output, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            course.append(criterion(output.clamp_min(1e-9).log() if faulty else output, labels).item())
    return Outcome(tuple(course))


def labels_of_minus_one(watch: Watch, faulty: bool) -> Outcome:
    """Labels of a support vector machine, -1 and 1, in BCEWithLogitsLoss. The course is the entropy of 0 and 1."""
    x, y = loans()
    model = nn.Sequential(nn.Linear(12, 48), nn.Mish(), nn.Linear(48, 48), nn.Mish(), nn.Linear(48, 1), nn.Flatten(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    criterion = nn.BCEWithLogitsLoss()
    watch(model)
    course = []
    for inputs, labels in pairs(x, y, size=64, steps=400):
        output = model(inputs)
        loss = criterion(output, 2 * labels - 1 if faulty else labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            course.append(criterion(output, labels).item())
    return Outcome(tuple(course))


class Scorecard(nn.Module):
    """Three layers with a ReLU after each, or after all but the last."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 64), nn.Linear(64, 32), nn.Linear(32, 1)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.fc2(functional.relu(self.fc1(x))))
        x = self.fc3(x)
        return (functional.relu(x) if self.last else x).squeeze(1)


def loans_never_safe(watch: Watch, faulty: bool) -> Outcome:
    """A ReLU on the logit: no loan is less likely than not to fail."""
    x, y = loans()
    model = Scorecard(last=faulty)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return fit(watch, model, pairs(x, y, steps=500), nn.BCEWithLogitsLoss(), optimizer)


def places_from_a_sigmoid(watch: Watch, faulty: bool) -> Outcome:
    """Places are told from -1 to 1, and the net ends in a sigmoid, as if the picture began at zero."""
    x, y = spots()
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.GELU(), nn.Conv2d(8, 16, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(144, 2)
    )
    if faulty:
        model.append(nn.Sigmoid())
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return fit(watch, model, pairs(x, y, steps=400), nn.SmoothL1Loss(), optimizer)


def critic_off_its_leash(watch: Watch, faulty: bool) -> Outcome:
    """A critic of two clouds without the penalty on its slope. The course is its distance from theirs, two."""
    model = nn.Sequential(nn.Linear(4, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    watch(model)
    shift = torch.tensor([2.0, 0.0, 0.0, 0.0])
    course = []
    for _ in range(400):
        real, fake = torch.randn(64, 4) + shift, torch.randn(64, 4)
        loss = model(fake).mean() - model(real).mean()
        course.append(abs(2 + loss.item()))
        if not faulty:
            between = fake.lerp(real, torch.rand(64, 1)).requires_grad_()
            (slope,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
            loss = loss + 10 * (slope.norm(dim=1) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Outcome(tuple(course))


PROGRAMS = (
    Fault(outlook_with_a_channel, ("loss-shape-broadcast",), fact("left", least=0.8, most=0.3)),
    Fault(rates_against_a_column, ("loss-shape-broadcast",), fact("unexplained", least=0.9, most=0.7), falls_to=0.95),
    Fault(pixels_softmaxed, ("double-softmax",), worse(2)),
    Fault(topics_as_probabilities, ("double-softmax",), worse(1.5)),
    Fault(probabilities_into_nll, ("loss-input-mismatch",), worse(1.5)),
    Fault(labels_of_minus_one, ("loss-input-mismatch", "loss-unbounded-below"), worse(2)),
    Fault(loans_never_safe, ("output-range",), worse(1.5)),
    Fault(places_from_a_sigmoid, ("output-range",), worse(2)),
    Fault(critic_off_its_leash, ("loss-unbounded-below",), worse(10)),
)
