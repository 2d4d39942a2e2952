"""Learning rates, zero_grad, clipping, accumulation and weight decay as users get them wrong."""

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
from tests.zoo.street_healthy_data import WORDS
from tests.zoo.street_healthy_data import drawn
from tests.zoo.street_healthy_data import houses
from tests.zoo.street_healthy_data import loader
from tests.zoo.street_healthy_data import pulses
from tests.zoo.street_healthy_data import reviews
from tests.zoo.street_healthy_data import spirals
from tests.zoo.street_healthy_data import stripes
from tests.zoo.street_healthy_data import weather


def lenet(kinds: int = 4) -> nn.Sequential:
    """For stripes: two convolutions with pooling and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(144, 48),
        nn.ReLU(),
        nn.Linear(48, kinds),
    )


class Forecaster(nn.Module):
    """A recurrent layer and a linear one on its last state."""

    def __init__(self, kind: type[nn.RNNBase], *, inputs: int = 1, width: int = 32, outputs: int = 1) -> None:
        super().__init__()
        self.recurrent = kind(inputs, width, batch_first=True)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.recurrent(x)[0][:, -1])


class Reader(nn.Module):
    """Words, two transformer layers, the mean over places, two classes."""

    def __init__(self, *, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.words(tokens)).mean(1))


def adam_at_a_fifth(watch: Watch, faulty: bool) -> Outcome:
    """Adam at a rate that would do for plain descent."""
    x, y = stripes()
    model = lenet()
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.2 if faulty else 1e-3)
    criterion = nn.CrossEntropyLoss()
    course = []
    for _ in range(8):
        for pictures, labels in loader(x, y):
            optimizer.zero_grad()
            loss = criterion(model(pictures), labels)
            loss.backward()
            optimizer.step()
            course.append(loss.item())
    return Outcome(tuple(course))


def prices_with_momentum(watch: Watch, faulty: bool) -> Outcome:
    """A rate found without momentum is kept when momentum comes in."""
    x, y = houses()
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.6 if faulty else 0.01, momentum=0.9, nesterov=True)
    watch(model)
    course = []
    for inputs, target in drawn(x, y, steps=400):
        loss = ((model(inputs) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def forecaster_by_rmsprop(watch: Watch, faulty: bool) -> Outcome:
    """RMSprop at 0.3, which stands in a schedule where 0.003 was meant."""
    x, y = weather()
    model = Forecaster(nn.LSTM)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.3 if faulty else 3e-3)
    return fit(watch, model, drawn(x, y, steps=200), functional.l1_loss, optimizer)


def reader_without_warmup(watch: Watch, faulty: bool) -> Outcome:
    """A transformer whose rate was read as 5e-2 where 5e-4 stood."""
    x, y = reviews()
    model = Reader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-2 if faulty else 5e-4)
    watch(model)
    course = []
    for tokens, labels in drawn(x, y, steps=300):
        loss = functional.cross_entropy(model(tokens), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        course.append(loss.item())
    return Outcome(tuple(course))


def fine_tuned_too_fast(watch: Watch, faulty: bool) -> Outcome:
    """A trained net is to learn one more direction of stripes, at a hundred times the rate that would do."""
    x, y = stripes(kinds=5)
    model = lenet(5)
    adam = torch.optim.Adam(model.parameters(), lr=2e-3)
    for pictures, labels in drawn(x[y < 4], y[y < 4], steps=150):
        adam.zero_grad()
        functional.cross_entropy(model(pictures), labels).backward()
        adam.step()
    optimizer = torch.optim.SGD(model.parameters(), lr=4.0 if faulty else 0.04)
    return fit(watch, model, drawn(x, y, steps=200), functional.cross_entropy, optimizer)


def convnet_by_timid_descent(watch: Watch, faulty: bool) -> Outcome:
    """A rate of 0.00001 from a tutorial on fine-tuning, for a net that knows nothing yet."""
    x, y = stripes()
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5 if faulty else 0.1)
    return fit(watch, model, drawn(x, y, steps=300), functional.cross_entropy, optimizer)


def convnet_never_cleared(watch: Watch, faulty: bool) -> Outcome:
    """The line with zero_grad() is not there."""
    x, y = stripes()
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    watch(model)
    course = []
    for pictures, labels in drawn(x, y, steps=250):
        if not faulty:
            optimizer.zero_grad()
        loss = functional.cross_entropy(model(pictures), labels)
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def cleared_once_an_epoch(watch: Watch, faulty: bool) -> Outcome:
    """zero_grad() was indented one level too little and stands in the loop over epochs."""
    x, y = spirals()
    model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))
    watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    course = []
    for _ in range(16):
        optimizer.zero_grad()
        for points, labels in loader(x, y):
            if not faulty:
                optimizer.zero_grad()
            loss = functional.cross_entropy(model(points), labels)
            loss.backward()
            optimizer.step()
            course.append(loss.item())
    return Outcome(tuple(course))


def forecaster_never_cleared(watch: Watch, faulty: bool) -> Outcome:
    """A GRU under Adam; gradients pile up and Adam only sees their direction."""
    x, y = weather()
    model = Forecaster(nn.GRU)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    watch(model)
    course = []
    for series, following in drawn(x, y, steps=200):
        loss = functional.mse_loss(model(series), following)
        if not faulty:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def clipped_to_a_typo(watch: Watch, faulty: bool) -> Outcome:
    """max_norm=1e-4 where 1.0 was meant, under plain descent."""
    x, y = spirals()
    model = nn.Sequential(nn.Linear(2, 48), nn.Softplus(), nn.Linear(48, 48), nn.Softplus(), nn.Linear(48, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    watch(model)
    course = []
    for points, labels in drawn(x, y, steps=500):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(points), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1e-4 if faulty else 1.0)
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def clipped_after_the_step(watch: Watch, faulty: bool) -> Outcome:
    """Some prices are absurd, which clipping would bear; it comes after step(). The course is the error of the sane ones."""
    x, y = houses()
    model = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    watch(model)
    course = []
    for inputs, target in drawn(x, y, steps=400):
        absurd = torch.where(torch.rand(len(target), 1) < 0.02, 60 * torch.randn(len(target), 1), 0.0)
        output = model(inputs)
        optimizer.zero_grad()
        functional.mse_loss(output, target + absurd).backward()
        if not faulty:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        if faulty:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        course.append(functional.mse_loss(output.detach(), target).item())
    return Outcome(tuple(course))


def eight_pieces_added(watch: Watch, faulty: bool) -> Outcome:
    """Eight batches of sixteen make one step, as memory is short; their losses are not divided by eight."""
    x, y = pulses()
    model = nn.Sequential(
        nn.Conv1d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv1d(16, 16, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(208, 3)
    )
    watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.18)
    course = []
    for i, (waves, labels) in enumerate(drawn(x, y, steps=2400, size=16)):
        loss = functional.cross_entropy(model(waves), labels)
        (loss if faulty else loss / 8).backward()
        if (i + 1) % 8 == 0:
            optimizer.step()
            optimizer.zero_grad()
        course.append(loss.item())
    return Outcome(tuple(course))


PROGRAMS = (
    Fault(adam_at_a_fifth, ("lr-too-high",), worse(2)),
    Fault(prices_with_momentum, ("lr-too-high",), worse(2)),
    Fault(forecaster_by_rmsprop, ("lr-too-high",), worse(2)),
    Fault(reader_without_warmup, ("lr-too-high",), worse(1.5)),
    Fault(fine_tuned_too_fast, ("lr-too-high",), worse(2)),
    Fault(convnet_by_timid_descent, ("lr-too-low",), worse(2)),
    Fault(convnet_never_cleared, ("missing-zero-grad",), worse(2)),
    Fault(cleared_once_an_epoch, ("missing-zero-grad",), worse(2)),
    Fault(forecaster_never_cleared, ("missing-zero-grad",), worse(2)),
    Fault(clipped_to_a_typo, ("clipping-too-tight",), worse(2)),
    Fault(clipped_after_the_step, ("clipping-misplaced", "outlier-batch"), worse(1.5)),
    Fault(eight_pieces_added, ("accumulation-not-averaged",), worse(2)),
)
