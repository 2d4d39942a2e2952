"""Recurrences and attention as users write them, and what becomes of their signals."""

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
from tests.zoo.town_data import recalled


class Recall(nn.Module):
    """A plain recurrent layer; what it says at the end of a sequence."""

    def __init__(self, *, orthogonal: bool) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(6, 64, batch_first=True), nn.Linear(64, 6)
        if orthogonal:
            inward, recurrent, *_ = self.rnn.parameters()
            nn.init.orthogonal_(recurrent)
            nn.init.normal_(inward, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def nn_rnn_as_it_comes(watch: Watch, faulty: bool) -> Outcome:
    """nn.RNN in torch's own initialisation is to tell the first of 25 symbols."""
    model = Recall(orthogonal=not faulty)
    watch(model)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    losses = []
    for x, first in recalled(length=25, size=48, steps=300):
        loss = functional.cross_entropy(model(x), first)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return Outcome(tuple(losses))


class StateSpace(nn.Module):
    """h = A h + B u step by step, as in control, with a small net to read the state."""

    def __init__(self, *, width: int = 32, gain: float | None) -> None:
        super().__init__()
        self.transition, self.control = nn.Linear(width, width, bias=False), nn.Linear(1, width)
        self.readout = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 1))
        if gain is None:
            nn.init.orthogonal_(self.transition.weight, gain=0.9)
        else:
            nn.init.xavier_normal_(self.transition.weight, gain=gain)

    def forward(self, u: Tensor) -> Tensor:
        state = torch.zeros(len(u), self.transition.in_features)
        for t in range(u.shape[1]):
            state = self.transition(state) + self.control(u[:, t])
        return self.readout(state)


def state_that_grows(watch: Watch, faulty: bool) -> Outcome:
    """Forty linear steps, whose matrix is drawn as for a ReLU: each makes the state 1.4 times as large."""
    model = StateSpace(gain=2**0.5 if faulty else None)
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    decay = 0.85 ** torch.arange(40).flip(0).unsqueeze(1)
    losses = []
    for _ in range(300):
        u = torch.randn(48, 40, 1)
        y = torch.tanh((u * decay).sum(1))
        loss = functional.mse_loss(model(u), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Outcome(tuple(losses))


class Lookup(nn.Module):
    """Which value stands behind the key that is asked for: one attention, written out."""

    def __init__(self, *, temperature: float, width: int = 32) -> None:
        super().__init__()
        self.keys, self.values = nn.Embedding(24, width), nn.Embedding(8, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 8)
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        pairs, asked = x[:, :-1], x[:, -1:]
        told = self.keys(pairs % 24) + self.values(pairs // 24)
        query, key, value = self.query(self.keys(asked)), self.key(told), self.value(told)
        attention = (query @ key.transpose(1, 2) / self.temperature).softmax(dim=-1)
        return self.head(self.norm((attention @ value).squeeze(1)))


def temperature_of_clip(watch: Watch, faulty: bool) -> Outcome:
    """CLIP's temperature of 0.01 in an attention's softmax, where the root of the width was to stand."""
    model = Lookup(temperature=0.01 if faulty else 32**0.5)

    def questions() -> list[tuple[Tensor, Tensor]]:
        batches = []
        for _ in range(350):
            keys = torch.rand(64, 24).argsort(1)[:, :12]
            values = torch.randint(8, (64, 12))
            which = torch.randint(12, (64, 1))
            batches.append((torch.cat([24 * values + keys, keys.gather(1, which)], dim=1), values.gather(1, which).squeeze(1)))
        return batches

    return fit(watch, model, questions(), nn.CrossEntropyLoss(), torch.optim.AdamW(model.parameters(), lr=3e-3))


PROGRAMS = (
    Fault(nn_rnn_as_it_comes, ("recurrent-vanishing",), worse(2)),
    Fault(state_that_grows, ("recurrent-explosion",), worse(2)),
    Fault(temperature_of_clip, ("attention-logit-growth",), worse(1.5)),
)
