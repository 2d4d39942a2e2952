"""The trainings that scripts/bench times: small real ones on data that is computed or that every Python has."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from bench_nets import Deep
from bench_nets import Gpt
from bench_nets import Lstm
from bench_nets import Mlp
from bench_nets import ResNet
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.functional import mse_loss

BATCHES = 8  # made beforehand and gone through in turn, so that no step pays for its data
_CHARACTERS = 128

Batches = list[tuple[torch.Tensor, torch.Tensor]]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Training:
    """A model with all that a step of its training takes."""

    model: nn.Module
    batches: Batches
    loss: Loss
    optimizer: torch.optim.Optimizer

    def on(self, device: str) -> Training:
        """The same on a device; nothing has been trained yet."""
        batches = [(inputs.to(device), target.to(device)) for inputs, target in self.batches]
        return Training(self.model.to(device), batches, self.loss, self.optimizer)

    def steps(self) -> Iterator[torch.Tensor]:
        """Train on without end; each item is one whole step's loss."""
        while True:
            for inputs, target in self.batches:
                loss = self.loss(self.model(inputs), target)
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                self.optimizer.zero_grad()
                yield loss


@dataclass(frozen=True)
class Case:
    """One training of the benchmark, and how much of it is timed.

    ``turns`` turns of ``turn`` steps are shared out to ``sets`` of processes. Before them come ``first`` steps, in which
    gradscope looks closely whatever that costs. ``others`` are the further ways that it is compared with.
    """

    title: str
    batch: str
    make: Callable[[], Training]
    turn: int
    turns: int
    sets: int = 1
    first: int = 110
    others: tuple[str, ...] = ()


def mlp(*, width: int, hidden: int, rows: int, batches: int) -> Training:
    model = Mlp(width=width, hidden=hidden)
    return Training(model, _products(rows, width, batches), mse_loss, torch.optim.Adam(model.parameters(), lr=3e-4))


def deep() -> Training:
    model = Deep(width=64, blocks=500)
    return Training(model, _products(64, 64, BATCHES), mse_loss, torch.optim.Adam(model.parameters(), lr=3e-4))


def gpt(*, width: int, blocks: int, heads: int) -> Training:
    model = Gpt(vocabulary=_CHARACTERS, width=width, blocks=blocks, heads=heads, context=128)
    return Training(model, _text(rows=8, context=128), _token_loss, torch.optim.AdamW(model.parameters(), lr=3e-4))


def mixture() -> Training:
    model = Gpt(vocabulary=_CHARACTERS, width=128, blocks=4, heads=4, context=64, experts=8)
    return Training(model, _text(rows=8, context=64), _token_loss, torch.optim.AdamW(model.parameters(), lr=3e-4))


def resnet(*, pictures: int) -> Training:
    model = ResNet()
    prototypes = torch.randn(10, 3, 32, 32)
    labels = [torch.randint(10, (pictures,)) for _ in range(BATCHES)]
    batches = [(prototypes[y] + torch.randn(pictures, 3, 32, 32), y) for y in labels]
    return Training(model, batches, cross_entropy, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9))


def lstm(*, rows: int) -> Training:
    model = Lstm(vocabulary=_CHARACTERS, width=192)
    return Training(model, _text(rows=rows, context=48), _token_loss, torch.optim.Adam(model.parameters(), lr=1e-3))


_LOGGERS = ("wandb", "histograms")
_ALL = (*_LOGGERS, "torchmortem", "traintools")

CASES = {
    "mlp-1ms": Case(
        "MLP, 1 ms", "64 rows", lambda: mlp(width=128, hidden=6, rows=64, batches=32), turn=50, turns=150, sets=3
    ),
    "mlp-6ms": Case(
        "MLP, 6 ms", "256 rows", lambda: mlp(width=192, hidden=8, rows=256, batches=BATCHES),
        turn=20, turns=90, sets=3, others=_ALL,
    ),
    "resnet": Case(
        "ResNet-18", "32 pictures of 32 x 32", lambda: resnet(pictures=32), turn=1, turns=32, first=40, others=_ALL
    ),
    "resnet-8": Case("ResNet-18, 8 pictures", "8 pictures of 32 x 32", lambda: resnet(pictures=8), turn=1, turns=50),
    "gpt-5m": Case(
        "GPT, 5 M", "8 rows of 128 tokens", lambda: gpt(width=256, blocks=6, heads=4), turn=1, turns=50, others=_ALL
    ),
    "gpt-30m": Case(
        "GPT, 30 M", "8 rows of 128 tokens", lambda: gpt(width=448, blocks=12, heads=7), turn=1, turns=18, first=14
    ),
    "lstm": Case("LSTM", "32 rows of 48 tokens", lambda: lstm(rows=32), turn=5, turns=60, sets=2, others=_ALL),
    "lstm-8": Case("LSTM, 8 rows", "8 rows of 48 tokens", lambda: lstm(rows=8), turn=10, turns=40),
    "experts": Case("mixture of experts", "8 rows of 64 tokens", mixture, turn=3, turns=40),
    "deep": Case("2,000 modules", "64 rows", deep, turn=2, turns=50),
}  # fmt: skip


def _products(rows: int, width: int, batches: int) -> Batches:
    """Rows of normal numbers; the target is the product of the first two, and the third."""
    inputs = [torch.randn(rows, width) for _ in range(batches)]
    return [(x, (x[:, :1] * x[:, 1:2] + x[:, 2:3]) / 2**0.5) for x in inputs]


def _text(*, rows: int, context: int) -> Batches:
    """Characters of the standard library's source text, and the character that follows each."""
    text = torch.tensor([min(ord(c), _CHARACTERS - 1) for c in inspect.getsource(argparse)])
    starts = torch.randint(len(text) - context - 1, (BATCHES, rows))
    windows = [torch.stack([text[s : s + context + 1] for s in some]) for some in starts.tolist()]
    return [(window[:, :-1].contiguous(), window[:, 1:].contiguous()) for window in windows]


def _token_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits.flatten(0, 1), target.flatten())
