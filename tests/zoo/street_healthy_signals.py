"""Healthy trainings on pictures, series and words: frozen parts, autocast, contrasts, a bag, gradual unfreezing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.program import Healthy
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.street_healthy_data import WORDS
from tests.zoo.street_healthy_data import drawn
from tests.zoo.street_healthy_data import loader
from tests.zoo.street_healthy_data import pulses
from tests.zoo.street_healthy_data import reviews
from tests.zoo.street_healthy_data import stripes
from tests.zoo.street_healthy_data import weather


class Block(nn.Module):
    """Two convolutions with batch norms, and a way past them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))))


def resnet() -> nn.Sequential:
    body = nn.Sequential(nn.Conv2d(1, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), Block(16), Block(16))
    return nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)))


def resnet_one_cycle(watch: Watch) -> Outcome:
    """Pictures flipped and shifted at random, a rate that rises and falls once, momentum that falls and rises."""
    x, y = stripes()
    model = resnet()
    watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=150)
    course = []
    for _ in range(6):
        for pictures, labels in loader(x, y):
            moved = torch.roll(pictures, int(torch.randint(-2, 3, ())), dims=3)
            loss = functional.cross_entropy(model(moved.flip((2, 3)) if torch.rand(()) < 0.5 else moved), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            course.append(loss.item())
    return Outcome(tuple(course))


def backbone_left_as_it_is(watch: Watch) -> Outcome:
    """A trained backbone stays in evaluation mode, batch norms and all, and only a new head learns."""
    x, y = stripes()
    model = resnet()
    first = torch.optim.Adam(model.parameters(), lr=3e-3)
    for pictures, labels in drawn(x, y % 2, steps=60):
        first.zero_grad()
        functional.cross_entropy(model(pictures), labels).backward()
        first.step()
    body, head = model
    body.eval().requires_grad_(False)
    model[1] = head = nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    watch(model)
    course = []
    for pictures, labels in drawn(x, y, steps=200):
        loss = functional.cross_entropy(model(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def unfrozen_later(watch: Watch) -> Outcome:
    """The body of a trained net joins in at step 80, at a tenth of the head's rate."""
    x, y = stripes()
    body = nn.Sequential(nn.Conv2d(1, 12, 5, stride=2), nn.SiLU(), nn.Conv2d(12, 24, 3), nn.SiLU(), nn.Flatten())
    model = nn.ModuleDict({"body": body, "head": nn.Linear(216, 4)})
    first = torch.optim.Adam(model.parameters(), lr=1e-3)
    for pictures, labels in drawn(x, y // 2, steps=60):
        first.zero_grad()
        functional.cross_entropy(model["head"](body(pictures)), labels).backward()
        first.step()
    model["head"] = nn.Linear(216, 4)
    body.requires_grad_(False)
    groups = [{"params": body.parameters(), "lr": 2e-4}, {"params": model["head"].parameters(), "lr": 2e-3}]
    optimizer = torch.optim.Adam(groups)
    watch(model)
    course = []
    for step, (pictures, labels) in enumerate(drawn(x, y, steps=220)):
        if step == 80:
            body.requires_grad_(True)
        loss = functional.cross_entropy(model["head"](body(pictures)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


class Causal(nn.Module):
    """Convolutions that look back only, each twice as far, added to what they got."""

    def __init__(self, *, width: int = 24) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, width, 1)
        self.layers = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(4))
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.transpose(1, 2))
        for layer in self.layers:
            x = x + functional.glu(layer(functional.pad(x, (layer.dilation[0], 0))), dim=1)
        return self.out(x[:, :, -1])


def causal_forecast(watch: Watch) -> Outcome:
    """Gated convolutions over a series; the rate is warmed up and then falls in two stages."""
    x, y = weather()
    model = Causal()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.98))
    schedules = torch.optim.lr_scheduler
    warmup = schedules.LinearLR(optimizer, 0.1, total_iters=20)
    stages = schedules.MultiStepLR(optimizer, [80, 140], gamma=0.3)
    schedule = schedules.SequentialLR(optimizer, [warmup, stages], [20])
    watch(model)
    course = []
    for series, following in drawn(x, y, steps=220):
        loss = (model(series) - following).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        course.append(loss.item())
    return Outcome(tuple(course))


class Pooled(nn.Module):
    """A bag of words, whose weights an attention of one score a word gives."""

    def __init__(self, *, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width, padding_idx=0)
        self.score = nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, 1))
        self.out = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        words = self.words(tokens)
        scores = self.score(words).squeeze(2).masked_fill(tokens == 0, -1e9)
        return self.out((scores.softmax(1).unsqueeze(2) * words).sum(1) * 3)


def attention_pooled_autocast(watch: Watch) -> Outcome:
    """Reviews of several lengths with padding, under autocast to bfloat16, in pieces of two a step."""
    x, y = reviews()
    x[:, 8:] *= (torch.rand(len(x), 1) < 0.9).long()
    model = Pooled()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    watch(model)
    course = []
    for i, (tokens, labels) in enumerate(drawn(x, y, steps=600)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = functional.cross_entropy(model(tokens), labels)
        (loss / 2).backward()
        if i % 2:
            optimizer.step()
            optimizer.zero_grad()
        course.append(loss.item())
    return Outcome(tuple(course))


def two_views_of_a_pulse(watch: Watch) -> Outcome:
    """Two noisy, shifted views of a pulse find each other among 48 by the cosine of their codes, at a low temperature."""
    x, _ = pulses()
    model = nn.Sequential(
        nn.Conv1d(1, 24, 7, stride=2), nn.BatchNorm1d(24), nn.GELU(), nn.Conv1d(24, 24, 5, stride=2), nn.GELU(), nn.Flatten()
    )
    model.extend([nn.Linear(312, 64), nn.GELU(), nn.Linear(64, 16)])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    watch(model)
    course = []
    for waves, _ in drawn(x, x, steps=200, size=48):
        views = torch.cat([waves, torch.roll(waves, 1, dims=2)])
        codes = functional.normalize(model(views + 0.1 * torch.randn_like(views)))
        likeness = (codes @ codes.T / 0.1).masked_fill(torch.eye(96, dtype=torch.bool), -torch.inf)
        loss = functional.cross_entropy(likeness, torch.arange(96).roll(48))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def annealed_variational(watch: Watch) -> Outcome:
    """A variational autoencoder of pulses whose divergence counts more and more; the course is the pulses' error."""
    x, _ = pulses()
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.LeakyReLU(0.1), nn.Linear(96, 16))
    decoder = nn.Sequential(nn.Linear(8, 96), nn.LeakyReLU(0.1), nn.Linear(96, 64))
    model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    optimizer = torch.optim.Adamax(model.parameters(), lr=4e-3)
    watch(model)
    course = []
    for step, (waves, _) in enumerate(drawn(x, x, steps=500, size=64)):
        mean, spread = encoder(waves).chunk(2, dim=1)
        error = (decoder(mean + torch.randn_like(mean) * (spread / 2).exp()) - waves.flatten(1)).square().sum(1).mean()
        divergence = 0.5 * (mean.square() + spread.exp() - 1 - spread).sum(1).mean()
        optimizer.zero_grad()
        ((error + min(1.0, step / 250) * divergence) / 64).backward()
        optimizer.step()
        course.append(error.item() / 64)
    return Outcome(tuple(course))


class Adder(nn.Module):
    """A GRU cell step by step, its state normed in between, with an orthogonal start."""

    def __init__(self, *, width: int = 32) -> None:
        super().__init__()
        self.cell = nn.GRUCell(2, width)
        nn.init.orthogonal_(self.cell.weight_hh)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.cell.hidden_size)
        for entry in x.unbind(1):
            state = self.norm(self.cell(entry, state))
        return self.out(state)


def two_marked_numbers(watch: Watch) -> Outcome:
    """The sum of the two numbers out of ten that are marked, gradients clipped."""
    model = Adder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    watch(model)
    course = []
    for _ in range(250):
        numbers = torch.rand(64, 10) * 2 - 1
        marks = torch.zeros(64, 10).scatter_(1, torch.rand(64, 10).topk(2, dim=1).indices, 1.0)
        loss = functional.mse_loss(model(torch.stack([numbers, marks], dim=2)).squeeze(1), (numbers * marks).sum(1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


PROGRAMS = (
    Healthy(resnet_one_cycle),
    Healthy(backbone_left_as_it_is),
    Healthy(unfrozen_later),
    Healthy(causal_forecast),
    Healthy(attention_pooled_autocast),
    Healthy(two_views_of_a_pulse),
    Healthy(annealed_variational),
    Healthy(two_marked_numbers),
)
