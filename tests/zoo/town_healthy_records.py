"""Healthy trainings on records of all kinds: customers, names, words, signs, spectra, series."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence
from torch.optim.lr_scheduler import MultiStepLR

from tests.zoo.program import Healthy
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.town_data import LETTERS
from tests.zoo.town_data import SIGNS
from tests.zoo.town_data import TONGUES
from tests.zoo.town_data import customers
from tests.zoo.town_data import loader
from tests.zoo.town_data import motions
from tests.zoo.town_data import names
from tests.zoo.town_data import signs
from tests.zoo.town_data import spectra


class Leaving(nn.Module):
    """Codes by embeddings, batch norms and dropout, as one has it for tables."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.ModuleList(nn.Embedding(12, 5) for _ in range(3))
        self.numbers = nn.BatchNorm1d(6)
        inner = [nn.Linear(21, 96), nn.ReLU(), nn.BatchNorm1d(96), nn.Dropout(0.2)]
        self.body = nn.Sequential(*inner, nn.Linear(96, 48), nn.ReLU(), nn.BatchNorm1d(48), nn.Dropout(0.1), nn.Linear(48, 1))

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        embedded = [embed(column) for embed, column in zip(self.codes, codes.unbind(1), strict=True)]
        return self.body(torch.cat([self.numbers(numbers), *embedded], dim=1)).squeeze(1)


def customers_who_leave(watch: Watch) -> Outcome:
    """Validated after each epoch on a fourth of the rows; a rate that falls along a cosine; the rarer answer weighs more."""
    numbers, codes, leaves = customers()
    model = Leaving()
    watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 14)
    criterion = nn.BCEWithLogitsLoss(pos_weight=(1 - leaves[:1200]).sum() / leaves[:1200].sum())
    losses = []
    for _ in range(14):
        model.train()
        for rows in torch.randperm(1200).split(60):
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(model(numbers[rows], codes[rows]), leaves[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
        model.eval()
        with torch.no_grad():
            criterion(model(numbers[1200:], codes[1200:]), leaves[1200:])
    return Outcome(tuple(losses))


class BothWays(nn.Module):
    """An LSTM in both directions over names of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, 24, padding_idx=0)
        self.lstm = nn.LSTM(24, 32, batch_first=True, bidirectional=True)
        self.dropout, self.head = nn.Dropout(0.2), nn.Linear(64, TONGUES)

    def forward(self, letters: Tensor) -> Tensor:
        lengths = (letters > 0).sum(1)
        packed = pack_padded_sequence(self.letters(letters), lengths, batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        return self.head(self.dropout(torch.cat([hidden[0], hidden[1]], dim=1)))


def names_packed(watch: Watch) -> Outcome:
    model = BothWays()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return fit(watch, model, loader(*names()), nn.CrossEntropyLoss(), optimizer, clip=1.0, steps=200)


def words_and_their_neighbours(watch: Watch) -> Outcome:
    """Word vectors from what stands beside them, against five words at random (word2vec), at a rate that falls to zero."""
    topics = torch.randint(8, (4000, 1))
    text = 15 * topics + (15 * torch.rand(4000, 6).square()).long()
    inner, outer = nn.Embedding(120, 24), nn.Embedding(120, 24)
    nn.init.uniform_(inner.weight, -0.5 / 24, 0.5 / 24)
    nn.init.zeros_(outer.weight)
    model = nn.ModuleList([inner, outer])
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=300)
    losses = []
    for _ in range(300):
        lines = text[torch.randint(4000, (128,))]
        word, near, far = lines[:, 2], lines[:, 3], torch.randint(120, (128, 5))
        middle = inner(word)
        right = (middle * outer(near)).sum(1)
        wrong = (outer(far) @ middle.unsqueeze(2)).squeeze(2)
        loss = -functional.logsigmoid(right).mean() - functional.logsigmoid(-wrong).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return Outcome(tuple(losses))


def pair_of_convolutions(inputs: int, outputs: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.MaxPool2d(2)]


def five_signs_of_each(watch: Watch) -> Outcome:
    """Prototypes of the five kinds from five signs each, new ones in every step (Snell et al., 2017)."""
    pictures, kinds = signs(count=500)
    layers = [*pair_of_convolutions(3, 24), *pair_of_convolutions(24, 32), *pair_of_convolutions(32, 32)]
    model = nn.Sequential(*layers, nn.Flatten())
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(130):
        chosen = torch.stack([torch.nonzero(kinds == kind).squeeze(1)[torch.randperm(100)[:11]] for kind in range(SIGNS)])
        codes = model(pictures[chosen.flatten()]).view(SIGNS, 11, -1)
        prototypes, asked = codes[:, :5].mean(1), codes[:, 5:].flatten(0, 1)
        distances = torch.cdist(asked, prototypes).square() / codes.shape[2]
        loss = functional.cross_entropy(-distances, torch.arange(SIGNS).repeat_interleave(6))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Outcome(tuple(losses))


class Detector(nn.Module):
    """What is on a picture and where its middle lies."""

    def __init__(self) -> None:
        super().__init__()
        layers = [*pair_of_convolutions(3, 24), *pair_of_convolutions(24, 32), *pair_of_convolutions(32, 32)]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.kind, self.place = nn.Linear(128, SIGNS), nn.Linear(128, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.kind(x), self.place(x)


def what_and_where(watch: Watch) -> Outcome:
    """Two heads, two losses, Nesterov's momentum, and a rate that is cut twice; half of the pictures are mirrored."""
    pictures, kinds = signs(count=640)
    middles = torch.rand(640, 1)
    shifts = (6 * middles - 3).round().long().squeeze(1)
    moved = torch.stack([picture.roll(shift, dims=2) for picture, shift in zip(pictures, shifts.tolist(), strict=True)])
    where = shifts.float().unsqueeze(1) / 2
    model = Detector()
    watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = MultiStepLR(optimizer, [5, 7], gamma=0.2)
    losses = []
    for _ in range(8):
        for rows in torch.randperm(640).split(32):
            mirrored = torch.rand(32, 1) < 0.5
            x = torch.where(mirrored[:, :, None, None], moved[rows].flip(3), moved[rows])
            kind, place = model(x)
            aim = torch.where(mirrored, -where[rows], where[rows])
            loss = functional.cross_entropy(kind, kinds[rows]) + functional.smooth_l1_loss(place, aim)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
    return Outcome(tuple(losses))


def few_lines_of_many(watch: Watch) -> Outcome:
    """Multinomial regression with a penalty that makes most weights small; all spectra in each step, nothing hidden."""
    counts, substance = spectra()
    x = counts.sqrt()
    x = (x - x.mean(0)) / x.std(0)
    model = nn.Linear(64, 6)
    watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        error = functional.cross_entropy(model(x), substance)
        (error + 2e-3 * model.weight.abs().sum()).backward()
        optimizer.step()
        losses.append(error.item())
    return Outcome(tuple(losses))


class Chain(nn.Module):
    """Scores of labels along a series and of what follows what: a conditional random field over a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.scores = nn.GRU(3, 24, batch_first=True, bidirectional=True), nn.Linear(48, 4)
        self.follows = nn.Parameter(torch.zeros(4, 4))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The negative log-likelihood of the labels, per place."""
        scores = self.scores(self.gru(x)[0])
        told = scores.gather(2, labels.unsqueeze(2)).sum((1, 2)) + self.follows[labels[:, :-1], labels[:, 1:]].sum(1)
        total = scores[:, 0]
        for place in range(1, x.shape[1]):
            total = torch.logsumexp(total.unsqueeze(2) + self.follows, dim=1) + scores[:, place]
        return (total.logsumexp(1) - told).mean() / x.shape[1]


def what_one_does_when(watch: Watch) -> Outcome:
    """Two motions one after the other; the loss is worked out within the model."""
    x, label = motions(length=12)
    x = x.transpose(1, 2)
    model = Chain()
    watch(model)
    optimizer = torch.optim.NAdam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(200):
        first, second = torch.randint(len(x), (2, 32))
        both = torch.cat([x[first], x[second]], dim=1)
        done = torch.stack([label[first], label[second]], dim=1).repeat_interleave(12, dim=1)
        loss = model(both, done)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Outcome(tuple(losses))


def brightness_as_it_is(watch: Watch) -> Outcome:
    """Pixels between 0 and 1, torch's defaults all over, Adam at 0.001, no schedule: rough, and it works."""
    pictures, kinds = signs()
    x = (0.5 + pictures / 4).clamp(0, 1)
    layers = [nn.Conv2d(3, 24, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(24, 40, 3), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(160, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, SIGNS))
    return fit(watch, model, loader(x, kinds), nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters()), steps=300)


PROGRAMS = (
    Healthy(customers_who_leave, falls_to=0.7),
    Healthy(names_packed, falls_to=0.5),
    Healthy(words_and_their_neighbours, falls_to=0.7),
    Healthy(five_signs_of_each, falls_to=0.5),
    Healthy(what_and_where, falls_to=0.5),
    Healthy(few_lines_of_many, falls_to=0.5),
    Healthy(what_one_does_when, falls_to=0.7),
    Healthy(brightness_as_it_is, falls_to=0.6),
)
