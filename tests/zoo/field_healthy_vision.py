"""Healthy trainings on pictures and tones, with schedules and regularisation as practice has them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from torch.optim.lr_scheduler import OneCycleLR

from tests.zoo import data
from tests.zoo.field_data import shapes
from tests.zoo.field_data import tags
from tests.zoo.field_data import tones
from tests.zoo.field_models import Mixer
from tests.zoo.field_models import UNet
from tests.zoo.field_models import mobile
from tests.zoo.field_models import tone_net
from tests.zoo.models import mlp
from tests.zoo.program import Healthy
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit


def unet_dice(watch: Watch) -> Outcome:
    """A segmentation by binary cross entropy and the overlap of the masks."""
    model = UNet()

    def loss(output: Tensor, masks: Tensor) -> Tensor:
        covered = output.sigmoid()
        overlap = (2 * (covered * masks).sum((1, 2, 3)) + 1) / (covered.sum((1, 2, 3)) + masks.sum((1, 2, 3)) + 1)
        return functional.binary_cross_entropy_with_logits(output, masks) + (1 - overlap).mean()

    return fit(watch, model, data.batches(*shapes(), size=16, steps=100), loss, torch.optim.AdamW(model.parameters(), lr=2e-3))


def separable_nadam(watch: Watch) -> Outcome:
    """Separable convolutions with hard swishes; rare mistakes count more (focal loss)."""
    x, y = data.digits()
    model = mobile()

    def focal(output: Tensor, labels: Tensor) -> Tensor:
        right = output.log_softmax(1).gather(1, labels.unsqueeze(1))
        return -((1 - right.exp()).square() * right).mean()

    return fit(
        watch, model, data.batches(data.standardised(x), y, steps=120), focal, torch.optim.NAdam(model.parameters(), lr=3e-3)
    )


def tones_one_cycle(watch: Watch) -> Outcome:
    waves, labels = tones()
    model = tone_net(dropout=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-3)
    schedule = OneCycleLR(optimizer, 0.2, total_steps=200)
    batches = data.batches(waves, labels, size=32, steps=200)
    return fit(watch, model, batches, functional.cross_entropy, optimizer, each=lambda step: schedule.step())


def mixer_mixup(watch: Watch) -> Outcome:
    """Pictures and labels mixed in pairs; the loss of soft labels cannot come near zero."""
    x, y = data.digits()
    model = Mixer()
    watch(model)
    optimizer = torch.optim.RAdam(model.parameters(), lr=5e-3, weight_decay=1e-2)
    losses = []
    for pictures, labels in data.batches(data.standardised(x), y, steps=250):
        share = float(torch.distributions.Beta(0.4, 0.4).sample())
        order = torch.randperm(len(labels))
        output = model(share * pictures + (1 - share) * pictures[order])
        loss = share * functional.cross_entropy(output, labels) + (1 - share) * functional.cross_entropy(output, labels[order])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return Outcome(tuple(losses))


def warm_restarts(watch: Watch) -> Outcome:
    """A rate that falls along a cosine and starts again at the top after 40 and 120 steps."""
    waves, labels = tones()
    layers = [
        nn.Conv1d(1, 24, 9, stride=3),
        nn.InstanceNorm1d(24, affine=True),
        nn.ELU(),
        nn.Conv1d(24, 24, 9, stride=3),
        nn.ELU(),
    ]
    model = nn.Sequential(*layers, nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(24, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = CosineAnnealingWarmRestarts(optimizer, 40, T_mult=2)
    batches = data.batches(waves, labels, size=64, steps=280)
    return fit(watch, model, batches, functional.cross_entropy, optimizer, each=lambda step: schedule.step())


def weight_normed(watch: Watch) -> Outcome:
    """Directions and lengths of weights apart."""
    x, y = data.taught()
    model = mlp(10, 64, 64, 1, activation=nn.SELU)
    for place in (0, 2):
        weight_norm(model[place])
    return fit(
        watch, model, data.batches(x, y, steps=300), functional.huber_loss, torch.optim.Adamax(model.parameters(), lr=5e-3)
    )


def spectral_critic(watch: Watch) -> Outcome:
    """A critic of slope one at most tells two clouds apart; the course is its distance to theirs, three."""
    layers = [spectral_norm(nn.Linear(4, 48)), nn.LeakyReLU(0.2), spectral_norm(nn.Linear(48, 48)), nn.LeakyReLU(0.2)]
    model = nn.Sequential(*layers, spectral_norm(nn.Linear(48, 1)))
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.0, 0.9))
    course = []
    for _ in range(300):
        real, fake = torch.randn(64, 4) + 1.5, torch.randn(64, 4) - 1.5
        loss = (1 - model(real)).clamp_min(0).mean() + (1 + model(fake)).clamp_min(0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(float(loss.detach()))
    return Outcome(tuple(course))


def tags_adagrad(watch: Watch) -> Outcome:
    """A dozen rare tags a sample, the rare answers weighted up."""
    x, y = tags()
    model = nn.Sequential(nn.Linear(24, 96), nn.PReLU(), nn.Dropout(0.3), nn.Linear(96, 12))
    weight = (1 - y).sum(0) / y.sum(0)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(output, target, pos_weight=weight)

    return fit(watch, model, data.batches(x, y, size=48, steps=250), loss, torch.optim.Adagrad(model.parameters(), lr=0.05))


class TiedAutoencoder(nn.Module):
    """Decodes by the encoder's own matrices, the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(144, 64), nn.Linear(64, 24)])
        self.shifts = nn.ParameterList([torch.zeros(64), torch.zeros(144)])

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layers
        code = functional.leaky_relu(second(functional.leaky_relu(first(x))))
        inner = functional.leaky_relu(functional.linear(code, second.weight.T, self.shifts[0]))
        return functional.linear(inner, first.weight.T, self.shifts[1])


def tied_autoencoder(watch: Watch) -> Outcome:
    x, _ = data.digits()
    clean = data.standardised(x).flatten(1)
    model = TiedAutoencoder()
    batches = data.batches(clean + 0.3 * torch.randn_like(clean), clean, steps=250)
    return fit(watch, model, batches, functional.mse_loss, torch.optim.RMSprop(model.parameters(), lr=1e-3))


class Quantised(nn.Module):
    """An autoencoder whose code is one of 32 vectors; gradients pass it as if it weren't there."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(20, 48, 8, activation=nn.GELU), mlp(8, 48, 20, activation=nn.GELU)
        self.codes = nn.Embedding(32, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.encoder(x)
        near = self.codes(torch.cdist(raw, self.codes.weight).argmin(1))
        held = functional.mse_loss(near, raw.detach()) + 0.25 * functional.mse_loss(raw, near.detach())
        return self.decoder(raw + (near - raw).detach()), held


def vector_quantised(watch: Watch) -> Outcome:
    x, _ = data.clusters()
    model = Quantised()
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    course = []
    for inputs, _ in data.batches(x, x, steps=400):
        output, held = model(inputs)
        error = functional.mse_loss(output, inputs)
        optimizer.zero_grad()
        (error + held).backward()
        optimizer.step()
        course.append(float(error.detach()))
    return Outcome(tuple(course))


PROGRAMS = (
    Healthy(unet_dice, falls_to=0.6),
    Healthy(separable_nadam, falls_to=0.3),
    Healthy(tones_one_cycle, falls_to=0.2),
    Healthy(mixer_mixup, falls_to=0.7),
    Healthy(warm_restarts, falls_to=0.2),
    Healthy(weight_normed, falls_to=0.4),
    Healthy(spectral_critic, falls_to=0.5),
    Healthy(tags_adagrad, falls_to=0.5),
    Healthy(tied_autoencoder, falls_to=0.7),
    Healthy(vector_quantised, falls_to=0.75),
)
