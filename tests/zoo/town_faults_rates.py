"""Learning rates as users get them wrong: for sines, by hand, in a warm-up, for many workers, in a schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import worse
from tests.zoo.town_data import LETTERS
from tests.zoo.town_data import SIGNS
from tests.zoo.town_data import TONGUES
from tests.zoo.town_data import customers
from tests.zoo.town_data import loader
from tests.zoo.town_data import motions
from tests.zoo.town_data import names
from tests.zoo.town_data import signs


class Sine(nn.Module):
    """sin(w x), drawn as its paper has it (SIREN)."""

    def __init__(self, inputs: int, outputs: int, *, first: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / 12
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(12 * self.linear(x))


def sines_at_a_fiftieth(watch: Watch, faulty: bool) -> Outcome:
    """A picture as a function of its coordinates, by a net of sines, at a rate of 0.02, where 0.0005 stood."""
    line = torch.linspace(-1, 1, 28)
    places = torch.cartesian_prod(line, line)
    picture = torch.sin(6 * places[:, :1] + 3 * torch.rand(1)) * torch.cos(
        5 * places[:, 1:] * places[:, :1] + 3 * torch.rand(1)
    )
    picture = (picture - picture.mean()) / picture.std()
    model = nn.Sequential(Sine(2, 48, first=True), Sine(48, 48), Sine(48, 48), nn.Linear(48, 1))
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2 if faulty else 5e-4)
    losses = []
    for _ in range(250):
        optimizer.zero_grad()
        loss = functional.mse_loss(model(places), picture)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Outcome(tuple(losses))


class Line(nn.Module):
    """One weight a feature, and a bias, as in a first lesson on autograd."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.zeros(features, 1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w + self.b


def waves_added_up(watch: Watch, faulty: bool) -> Outcome:
    """A curve as a sum of thirty waves, by full-batch descent with a rate of three."""
    x = 6.28 * torch.rand(400, 1)
    turns = x * torch.arange(1, 16)
    features = torch.cat([turns.sin(), turns.cos()], dim=1) * 2**0.5
    curve = features @ torch.randn(30, 1) / 30**0.5 + 0.1 * torch.randn(400, 1)
    model = Line(30)
    watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=3.0 if faulty else 0.1)
    losses = []
    for _ in range(120):
        loss = ((model(features) - curve) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return Outcome(tuple(losses))


class Reader(nn.Module):
    """Names by torch's own encoder layers; the mean over the letters that are there."""

    def __init__(self, *, width: int = 32) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, width)
        self.places = nn.Parameter(0.02 * torch.randn(10, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, TONGUES)

    def forward(self, letters: Tensor) -> Tensor:
        there = (letters > 0).unsqueeze(2)
        x = self.encoder(self.letters(letters) + self.places, src_key_padding_mask=letters == 0)
        return self.head(self.norm((x * there).sum(1) / there.sum(1)))


def warmup_not_divided(watch: Watch, faulty: bool) -> Outcome:
    """LambdaLR gets min(step, 80), without dividing by 80, and the rate climbs to eighty times what it should be."""
    model = Reader()
    watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = LambdaLR(optimizer, lambda step: min(step + 1, 80) / (1 if faulty else 80))
    losses = []
    data = loader(*names())
    for _ in range(8):
        for letters, tongue in data:
            loss = functional.cross_entropy(model(letters), tongue)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return Outcome(tuple(losses))


class Block(nn.Module):
    """A residual block with batch norms."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def resnet(*, classes: int = SIGNS) -> nn.Sequential:
    """For signs: a stem and three residual blocks."""
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [Block(16, 16, stride=1), Block(16, 24, stride=2), Block(24, 32, stride=2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))


def rate_for_many_workers(watch: Watch, faulty: bool) -> Outcome:
    """The rate is multiplied by the 64 workers of a paper, in a training with one."""
    model = resnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * (64 if faulty else 1), momentum=0.9)
    return fit(watch, model, loader(*signs()), nn.CrossEntropyLoss(), optimizer, steps=110)


class Customer(nn.Module):
    """Codes by embeddings, beside numbers, through a net; one logit."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.ModuleList(nn.Embedding(12, 4) for _ in range(3))
        self.body = nn.Sequential(nn.Linear(18, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        embedded = [embed(codes[:, i]) for i, embed in enumerate(self.codes)]
        return self.body(torch.cat([numbers, *embedded], dim=1)).squeeze(1)


def customers_at_a_quarter(watch: Watch, faulty: bool) -> Outcome:
    """Adam at 0.25, which a search over rates had as its upper end."""
    numbers, codes, leaves = customers()
    model = Customer()
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.25 if faulty else 3e-3)
    criterion = nn.BCEWithLogitsLoss()
    losses = []
    for _ in range(12):
        for rows in torch.randperm(len(leaves)).split(64):
            loss = criterion(model(numbers[rows], codes[rows]), leaves[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return Outcome(tuple(losses))


def motion_net() -> nn.Sequential:
    """Convolutions along time, layer by layer half as long."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 24), (24, 32), (32, 48)):
        layers += [nn.Conv1d(inputs, outputs, 5, padding=2), nn.GroupNorm(4, outputs), nn.SiLU(), nn.AvgPool1d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(48, 4))


def lambda_is_the_rate(watch: Watch, faulty: bool) -> Outcome:
    """LambdaLR's function gives the rate itself, and torch multiplies it with the optimizer's: a thousandth of a thousandth."""
    model = motion_net()
    watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    peak = 2e-3 if faulty else 1.0
    schedule = LambdaLR(optimizer, lambda step: peak * (1 + math.cos(math.pi * step / 200)) / 2)
    losses = []
    data = loader(*motions())
    for _ in range(8):
        for x, label in data:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), label)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return Outcome(tuple(losses))


class Bag(nn.Module):
    """The letters and pairs of letters of a name, in any order."""

    def __init__(self, *, width: int = 48) -> None:
        super().__init__()
        self.pairs = nn.EmbeddingBag(LETTERS * LETTERS, width, mode="mean")
        self.head = nn.Sequential(nn.Linear(width, 48), nn.ReLU(), nn.Linear(48, TONGUES))

    def forward(self, letters: Tensor) -> Tensor:
        return self.head(self.pairs(LETTERS * letters[:, :-1] + letters[:, 1:]))


def rate_for_fine_tuning(watch: Watch, faulty: bool) -> Outcome:
    """2e-5, as one fine-tunes a language model with Adam, for plain descent from scratch."""
    model = Bag()
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-5 if faulty else 0.1, momentum=0.9)
    return fit(watch, model, loader(*names()), nn.CrossEntropyLoss(), optimizer, steps=400)


PROGRAMS = (
    Fault(sines_at_a_fiftieth, ("lr-too-high",), worse(3)),
    Fault(waves_added_up, ("lr-too-high",), worse(3)),
    # At eighty times the rate the logits of an attention grow to thousands and its softmax is of no use any more, before any
    # loss blows up: both names are true, and both say to lower the rate.
    Fault(warmup_not_divided, ("lr-too-high", "attention-logit-growth"), worse(1.5)),
    Fault(rate_for_many_workers, ("lr-too-high",), worse(2)),
    Fault(customers_at_a_quarter, ("lr-too-high",), worse(1.5)),
    Fault(lambda_is_the_rate, ("lr-too-low",), worse(2)),
    Fault(rate_for_fine_tuning, ("lr-too-low",), worse(1.5)),
)
