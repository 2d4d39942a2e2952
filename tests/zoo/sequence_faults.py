"""Recurrent nets and transformers: recurrences that grow or forget, attention whose logits run away."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo import tasks
from tests.zoo.models import GPT
from tests.zoo.models import CharacterLSTM
from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import fact
from tests.zoo.proofs import not_finite
from tests.zoo.proofs import worse


class Recurrence(nn.Module):
    """A recurrence whose last state is classified, from a hidden weight of this radius."""

    def __init__(self, *, radius: float, nonlinearity: str = "relu") -> None:
        super().__init__()
        self.cell = nn.RNN(4, 32, nonlinearity=nonlinearity, batch_first=True)
        self.head = nn.Linear(32, 4)
        with torch.no_grad():
            self.cell.weight_hh_l0.copy_(radius * torch.eye(32))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def recurrence_that_grows(watch: Watch, faulty: bool) -> Outcome:
    x = torch.randn(1500, 60, 4)
    y = x[:, -3:].sum(1).argmax(1)
    model = Recurrence(radius=1.2 if faulty else 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return fit(watch, model, data.batches(x, y, steps=200), functional.cross_entropy, optimizer)


class ByHand(nn.Module):
    """A recurrence written out over Linear layers, thirty times in a forward pass."""

    def __init__(self, *, radius: float) -> None:
        super().__init__()
        self.inward, self.onward, self.head = nn.Linear(4, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, 4)
        with torch.no_grad():
            self.onward.weight.copy_(radius * torch.linalg.qr(torch.randn(32, 32)).Q)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 32)
        for part in x.unbind(1):
            state = self.inward(part) + self.onward(state)
        return self.head(state)


def recurrence_by_hand(watch: Watch, faulty: bool) -> Outcome:
    x = torch.randn(1500, 30, 4)
    y = x[:, -3:].sum(1).argmax(1)
    model = ByHand(radius=1.4 if faulty else 0.7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return fit(watch, model, data.batches(x, y, steps=200), functional.cross_entropy, optimizer)


def recurrence_that_forgets(watch: Watch, faulty: bool) -> Outcome:
    """The first of 30 inputs is the answer, and the state shrinks to a third in each step, or keeps its size."""
    x = 0.3 * torch.randn(1500, 30, 4)
    y = torch.arange(1500) % 4
    x[:, 0] = 2 * functional.one_hot(y, 4)
    model = Recurrence(radius=0.3 if faulty else 1.0, nonlinearity="tanh" if faulty else "relu")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return fit(watch, model, data.batches(x, y, steps=300), functional.cross_entropy, optimizer)


def attention_rates_too_high(watch: Watch, faulty: bool) -> Outcome:
    """Queries and keys learn at fifty times the rate of the rest."""
    model = GPT(data.vocabulary_size(), width=64)
    attention = [block.attention.qkv.weight for block in model.blocks]
    others = [parameter for parameter in model.parameters() if all(parameter is not weight for weight in attention)]
    groups = [{"params": others}, {"params": attention, "lr": 0.1 if faulty else 2e-3}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    outcome = fit(watch, model, data.characters(steps=130), functional.cross_entropy, optimizer)
    return Outcome(outcome.course, outcome.moved, facts={"logit": _largest_logit(model)})


def _largest_logit(model: GPT) -> float:
    """Of the first block's attention, over a batch of text."""
    tokens, _ = next(data.characters(steps=1))
    with torch.no_grad():
        block = model.blocks[0]
        x = block.attention_norm(model.token(tokens) + model.position(torch.arange(tokens.shape[1])))
        q, k, _ = block.attention.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return float((q @ k.mT / q.shape[-1] ** 0.5).abs().max())


def gpt_rate_without_warmup(watch: Watch, faulty: bool) -> Outcome:
    return tasks.read(watch, GPT(data.vocabulary_size(), width=64, depth=3), tasks.adamw, lr=3e-2 if faulty else 2e-3)


def lstm_rate_tenth(watch: Watch, faulty: bool) -> Outcome:
    model = CharacterLSTM(data.vocabulary_size())
    return tasks.read(watch, model, tasks.adam, lr=0.3 if faulty else 5e-3, steps=150)


def no_zero_grad_lstm(watch: Watch, faulty: bool) -> Outcome:
    model = CharacterLSTM(data.vocabulary_size(), cell=nn.GRU)
    return tasks.read(watch, model, tasks.sgd, lr=0.5, steps=150, clear=not faulty)


def optimizer_on_blocks(watch: Watch, faulty: bool) -> Outcome:
    """A transformer of which the optimizer got the blocks, not the embeddings and the head."""
    model = GPT(data.vocabulary_size())
    optimizer = torch.optim.AdamW((model.blocks if faulty else model).parameters(), lr=3e-3)
    return fit(watch, model, data.characters(steps=120), functional.cross_entropy, optimizer)


def schedule_that_is_zero(watch: Watch, faulty: bool) -> Outcome:
    """A warm-up whose quotient is taken as an integer."""
    model = GPT(data.vocabulary_size())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step, 500) // 500 if faulty else min(1.0, (step + 1) / 20)
    )
    return fit(
        watch,
        model,
        data.characters(steps=120),
        functional.cross_entropy,
        optimizer,
        each=lambda step: schedule.step(),
    )


def rate_tiny_gpt(watch: Watch, faulty: bool) -> Outcome:
    return tasks.read(watch, GPT(data.vocabulary_size()), tasks.adamw, lr=1e-7 if faulty else 3e-3, steps=200)


def weights_scaled_lstm(watch: Watch, faulty: bool) -> Outcome:
    """Weights scaled down after each step, where gradients were meant, in a loop that also clips these."""
    model = CharacterLSTM(data.vocabulary_size())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def scale(step: int) -> None:
        for parameter in model.parameters() if faulty else ():
            parameter.data.mul_(0.95)

    return fit(watch, model, data.characters(steps=150), functional.cross_entropy, optimizer, clip=1.0, each=scale)


PROGRAMS = (
    Fault(
        recurrence_that_grows,
        ("recurrent-explosion", "exploding-gradients", "nonfinite-gradients"),
        not_finite,
        remedy="start",
    ),
    Fault(recurrence_by_hand, ("recurrent-explosion", "exploding-gradients"), worse(2), remedy="start"),
    Fault(recurrence_that_forgets, ("recurrent-vanishing", "loss-plateau"), worse(3), aside=True, remedy="start"),
    Fault(
        attention_rates_too_high,
        ("attention-logit-growth", "lr-too-high"),
        fact("logit", least=100, most=50),
        falls_to=0.8,
        remedy="start",
    ),
    Fault(gpt_rate_without_warmup, ("lr-too-high",), worse(1.2), remedy="start"),
    Fault(lstm_rate_tenth, ("lr-too-high",), worse(1.08), falls_to=0.75, remedy="start"),
    Fault(
        no_zero_grad_lstm,
        ("missing-zero-grad",),
        lambda fault, twin: fault.carried >= 149 and not twin.carried,
        falls_to=0.9,
        remedy="step",
    ),
    Fault(
        optimizer_on_blocks,
        ("optimizer-misses-parameters",),
        lambda fault, twin: fault.moved["head.weight"] == 0,
        remedy="start",
    ),
    Fault(schedule_that_is_zero, ("weights-not-moving",), lambda fault, twin: max(fault.moved.values()) == 0),
    Fault(rate_tiny_gpt, ("lr-too-low",), worse(1.5), remedy="start"),
    Fault(weights_scaled_lstm, ("weights-changed-outside-optimizer",), worse(1.1), falls_to=0.8, remedy="step"),
)
