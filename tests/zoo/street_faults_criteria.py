"""Losses that get what they are not made for, as users hand it to them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.proofs import worse
from tests.zoo.street_faults_rates import Forecaster
from tests.zoo.street_faults_rates import lenet
from tests.zoo.street_faults_starts import stack
from tests.zoo.street_healthy_data import WORDS
from tests.zoo.street_healthy_data import drawn
from tests.zoo.street_healthy_data import houses
from tests.zoo.street_healthy_data import loader
from tests.zoo.street_healthy_data import pulses
from tests.zoo.street_healthy_data import reviews
from tests.zoo.street_healthy_data import spirals
from tests.zoo.street_healthy_data import stripes
from tests.zoo.street_healthy_data import weather


def probabilities_into_cross_entropy(watch: Watch, faulty: bool) -> Outcome:
    """The model ends in nn.Softmax and the criterion is nn.CrossEntropyLoss."""
    x, y = stripes()
    model = nn.Sequential(lenet(), nn.Softmax(dim=1)) if faulty else nn.Sequential(lenet())
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    course = []
    for _ in range(10):
        for pictures, labels in loader(x, y):
            optimizer.zero_grad()
            loss = criterion(model(pictures), labels)
            loss.backward()
            optimizer.step()
            course.append(loss.item())
    return Outcome(tuple(course))


class Bag(nn.Module):
    """The mean of words' vectors, a hidden layer, one number."""

    def __init__(self, *, squash: bool) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(WORDS, 24)
        self.hidden = nn.Linear(24, 32)
        self.out = nn.Linear(32, 1)
        self.squash = squash

    def forward(self, tokens: Tensor) -> Tensor:
        score = self.out(functional.relu(self.hidden(self.words(tokens)))).squeeze(1)
        return torch.sigmoid(score) if self.squash else score


def sigmoid_and_with_logits(watch: Watch, faulty: bool) -> Outcome:
    """torch.sigmoid as forward()'s last line, and BCEWithLogitsLoss."""
    x, y = reviews()
    model = Bag(squash=faulty)
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    criterion = nn.BCEWithLogitsLoss()
    course = []
    for tokens, labels in drawn(x, y, steps=400):
        optimizer.zero_grad()
        loss = criterion(model(tokens), labels.float())
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def scores_into_nll(watch: Watch, faulty: bool) -> Outcome:
    """nn.NLLLoss on a last linear layer, whose log_softmax was left out; the course is the cross entropy."""
    x, y = pulses()
    model = nn.Sequential(nn.Conv1d(1, 16, 7, stride=2), nn.ELU(), nn.Conv1d(16, 16, 7, stride=2), nn.ELU(), nn.Flatten())
    model.append(nn.Linear(192, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    watch(model)
    criterion = nn.NLLLoss()
    course = []
    for waves, labels in drawn(x, y, steps=300):
        output = model(waves)
        optimizer.zero_grad()
        criterion(output if faulty else functional.log_softmax(output, dim=1), labels).backward()
        optimizer.step()
        course.append(functional.cross_entropy(output.detach(), labels).item())
    return Outcome(tuple(course))


def classes_one_and_two(watch: Watch, faulty: bool) -> Outcome:
    """A table codes no and yes as 1 and 2, and so they go into a binary cross entropy; the course is that of 0 and 1."""
    x, _ = houses()
    yes = (x[:, :1] * x[:, 1:2] + x[:, 2:3] > 0.3).float()
    model = stack(8, 64, 64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    watch(model)
    course = []
    for inputs, target in drawn(x, yes, steps=400):
        logits = model(inputs)
        loss = functional.binary_cross_entropy_with_logits(logits, target + 1 if faulty else target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(functional.binary_cross_entropy_with_logits(logits.detach(), target).item())
    return Outcome(tuple(course))


def squeezed_on_one_side(watch: Watch, faulty: bool) -> Outcome:
    """The output is squeezed to (N,), the target stays (N, 1), and the error is written by hand."""
    x, y = weather()
    model = Forecaster(nn.LSTM)
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    course = []
    for series, following in drawn(x, y, steps=200):
        output = model(series).squeeze(1)
        loss = (output - (following if faulty else following.squeeze(1))).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def relu_at_the_end_of_prices(watch: Watch, faulty: bool) -> Outcome:
    """Standardised prices, of which half are below zero, from a net with a ReLU after its last layer, too."""
    x, y = houses()
    model = stack(8, 64, 64, 1)
    if faulty:
        model.append(nn.ReLU())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    watch(model)
    course = []
    for inputs, target in drawn(x, y, steps=400):
        loss = functional.mse_loss(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


class Variational(nn.Module):
    """Pictures through four random numbers and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(196, 64), nn.ReLU(), nn.Linear(64, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 196))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, spread = self.encoder(x).chunk(2, dim=1)
        return self.decoder(mean + torch.randn_like(mean) * (spread / 2).exp()), mean, spread


def divergence_subtracted(watch: Watch, faulty: bool) -> Outcome:
    """A variational autoencoder whose divergence has the wrong sign; the course is the bound as it should be."""
    x, _ = stripes()
    model = Variational()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    watch(model)
    course = []
    for pictures, _ in drawn(x, x, steps=400):
        output, mean, spread = model(pictures)
        error = (output - pictures.flatten(1)).square().mean()
        divergence = -0.5 * (1 + spread - mean.square() - spread.exp()).mean()
        loss = error - 0.05 * divergence if faulty else error + 0.05 * divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append((error + 0.05 * divergence).item())
    return Outcome(tuple(course))


def autoencoder_summed(watch: Watch, faulty: bool) -> Outcome:
    """reduction="sum" over batch and pixels, at the rate for the mean; the course is the mean."""
    x, _ = pulses()
    model = stack(64, 48, 8, 48, 64, activation=nn.Tanh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    watch(model)
    course = []
    for waves, _ in drawn(x.flatten(1), x, steps=500, size=64):
        loss = functional.mse_loss(model(waves), waves, reduction="sum" if faulty else "mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item() / (waves.numel() if faulty else 1))
    return Outcome(tuple(course))


def log_odds_beyond_tanh(watch: Watch, faulty: bool) -> Outcome:
    """Log-odds as targets of a net that ends in a tanh, because targets once lay between -1 and 1."""
    x, labels = spirals()
    odds = 4.0 * functional.one_hot(labels, 3) - 2.0
    model = stack(2, 64, 64, 3, activation=nn.SiLU)
    if faulty:
        model.append(nn.Tanh())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    watch(model)
    course = []
    for points, target in drawn(x, odds, steps=500):
        loss = functional.mse_loss(model(points), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


PROGRAMS = (
    Fault(probabilities_into_cross_entropy, ("double-softmax",), worse(2)),
    Fault(sigmoid_and_with_logits, ("double-softmax",), worse(2)),
    Fault(scores_into_nll, ("loss-input-mismatch", "loss-unbounded-below"), worse(2)),
    Fault(classes_one_and_two, ("loss-input-mismatch", "loss-unbounded-below"), worse(2)),
    Fault(squeezed_on_one_side, ("loss-shape-broadcast",), worse(2)),
    Fault(relu_at_the_end_of_prices, ("output-range",), worse(2)),
    Fault(divergence_subtracted, ("loss-unbounded-below",), worse(2)),
    Fault(autoencoder_summed, ("loss-reduction-sum",), worse(2)),
    Fault(log_odds_beyond_tanh, ("output-range",), worse(2)),
)
