"""Numbers that are out of range or no numbers: a sale, a price of zero, a class that is missing, an action at its bound."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.program import Batches
from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import not_finite
from tests.zoo.proofs import worse
from tests.zoo.town_data import loader
from tests.zoo.town_data import motions
from tests.zoo.town_data import rentals
from tests.zoo.town_data import signs


def day_of_a_wrong_unit(watch: Watch, faulty: bool) -> Outcome:
    """In the 90th batch one row has its warmth in thousandths of a degree and its rentals summed over years."""
    x, y = rentals()

    def batches() -> Batches:
        step = 0
        while step < 250:
            for row, out in loader(x, y):
                if faulty and step == 90:
                    row[5, 2], out[5] = row[5, 2] * 3000, -800.0
                yield row, out
                step += 1

    layers = [nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return fit(watch, model, batches(), nn.MSELoss(), optimizer, steps=250)


def weights_by_the_batch(watch: Watch, faulty: bool) -> Outcome:
    """Classes count by how rare they are in the batch; that of step 60 lacks one, which then is 1 / 0 times 0."""
    x, label = motions(length=32)
    model = nn.Sequential(nn.Conv1d(3, 24, 5, 2), nn.BatchNorm1d(24), nn.ReLU(), nn.Conv1d(24, 32, 5, 2), nn.ReLU())
    model.extend([nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(32, 4)])
    watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rest = torch.nonzero(label != 3).squeeze(1)
    losses = []
    for step in range(200):
        rows = rest[torch.randint(len(rest), (48,))] if step == 60 else torch.randint(len(x), (48,))
        counts = torch.bincount(label[rows], minlength=4).float()
        weight = 12 / (counts if faulty else counts.clamp_min(1))
        errors = -functional.log_softmax(model(x[rows]), dim=1) * functional.one_hot(label[rows], 4)
        loss = (errors * weight).sum() / 48
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Outcome(tuple(losses))


class Squashed(nn.Module):
    """A Gaussian through a tanh (SAC): an action, and the logarithm of its density."""

    def __init__(self, *, slack: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.mean, self.log_std, self.slack = nn.Linear(48, 2), nn.Linear(48, 2), slack

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(state)
        gauss = torch.distributions.Normal(self.mean(x), self.log_std(x).clamp(-5, 2).exp(), validate_args=False)
        before = gauss.rsample()
        action = before.tanh()
        return action, (gauss.log_prob(before) - torch.log(1 - action**2 + self.slack)).sum(1)


def action_at_its_bound(watch: Watch, faulty: bool) -> Outcome:
    """log(1 - tanh²) without the usual 1e-6, which is of zero once an action is 1. The course is 1 less the reward."""
    policy = Squashed(slack=0.0 if faulty else 1e-6)
    watch(policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    aim = torch.randn(5, 2)
    course = []
    for _ in range(400):
        state = torch.randn(128, 5)
        action, density = policy(state)
        reward = action * torch.tanh(4 * state @ aim)
        optimizer.zero_grad()
        (0.03 * density - reward.sum(1)).mean().backward()
        optimizer.step()
        course.append(1.05 - reward.mean().item())
    return Outcome(tuple(course))


def markets(*, count: int = 900, days: int = 20) -> Tensor:
    """Prices from day to day that follow their own movement a little, [count, days + 2]."""
    moves = torch.randn(count, days + 1)
    for day in range(1, days + 1):
        moves[:, day] = 0.8 * moves[:, day - 1] + 0.6 * moves[:, day]
    return 100 * torch.exp(torch.cat([torch.zeros(count, 1), 0.02 * moves.cumsum(1)], dim=1))


class Trend(nn.Module):
    """What comes next, by a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(1, 24, batch_first=True), nn.Linear(24, 1)

    def forward(self, past: Tensor) -> Tensor:
        states, _ = self.gru(past)
        return self.head(states[:, -1])


def returns_from_zero(watch: Watch, faulty: bool) -> Outcome:
    """Returns are prices over those of the day before; one share in three hundred has a day with a price of zero."""
    prices = markets()
    if faulty:
        prices[::300, 9] = 0.0
    returns = (prices[:, 1:] / prices[:, :-1] - 1) / 0.02
    x, y = returns[:, :-1].unsqueeze(2), returns[:, -1:]
    model = Trend()
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(8):
        for past, following in loader(x, y):
            loss = functional.mse_loss(model(past), following)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return Outcome(tuple(losses))


def autocast_without_scaler(watch: Watch, faulty: bool) -> Outcome:
    """Autocast to float16 and no GradScaler; a mean over pixels counts a thousandth, as in a paper, in four pieces a step."""
    pictures, _ = signs(count=512, size=24)
    x = pictures.flatten(1)
    encoder = [nn.Linear(1728, 96), nn.ReLU(), nn.Linear(96, 32)]
    model = nn.Sequential(*encoder, nn.ReLU(), nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 1728))
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-12)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, enabled=not faulty)
    losses = []
    for _ in range(20):
        for rows in torch.randperm(512).split(128):
            optimizer.zero_grad()
            errors = []
            for piece in rows.split(32):
                with torch.autocast("cpu", dtype=torch.float16):
                    error = functional.mse_loss(model(x[piece]), x[piece])
                scaler.scale(0.001 * error / 4).backward()
                errors.append(error.item())
            scaler.step(optimizer)
            scaler.update()
            losses.append(sum(errors) / 4)
    return Outcome(tuple(losses))


PROGRAMS = (
    Fault(day_of_a_wrong_unit, ("outlier-batch",), worse(2), begins=90),
    Fault(weights_by_the_batch, ("nonfinite-origin",), not_finite, begins=60),
    Fault(action_at_its_bound, ("nonfinite-origin",), not_finite),
    Fault(returns_from_zero, ("nonfinite-input",), not_finite),
    Fault(autocast_without_scaler, ("fp16-underflow",), worse(1.5)),
)
