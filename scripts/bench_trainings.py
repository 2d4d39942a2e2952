"""The trainings that scripts/bench times: small real ones on data that is computed or that every Python has."""

from __future__ import annotations

import argparse
import inspect
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.functional import mse_loss
from torch.nn.functional import scaled_dot_product_attention

BATCHES = 8  # made beforehand and gone through in turn, so that no step pays for its data

Batches = list[tuple[torch.Tensor, torch.Tensor]]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Training:
    """A model with all that a step of its training takes."""

    model: nn.Module
    batches: Batches
    loss: Loss
    optimizer: torch.optim.Optimizer

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
    """One row of the benchmark. ``stretch`` steps are made in one go, ``rounds`` times, shared out to ``sets`` of processes."""

    title: str
    batch: str
    make: Callable[[], Training]
    stretch: int
    rounds: int
    sets: int


def mlp() -> Training:
    width = 192
    hidden = (layer for _ in range(8) for layer in (nn.Linear(width, width), nn.ReLU()))
    model = nn.Sequential(*hidden, nn.Linear(width, 1))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    inputs = [torch.randn(256, width) for _ in range(BATCHES)]
    batches = [(x, (x[:, :1] * x[:, 1:2] + x[:, 2:3]) / 2**0.5) for x in inputs]
    return Training(model, batches, mse_loss, torch.optim.Adam(model.parameters(), lr=3e-4))


def gpt() -> Training:
    model = _Gpt(vocabulary=128, width=256, blocks=6, context=128)
    return Training(model, _text(rows=8, context=128), _token_loss, torch.optim.AdamW(model.parameters(), lr=3e-4))


def resnet() -> Training:
    model = _ResNet()
    prototypes = torch.randn(10, 3, 32, 32)
    labels = [torch.randint(10, (8,)) for _ in range(BATCHES)]
    batches = [(prototypes[y] + torch.randn(8, 3, 32, 32), y) for y in labels]
    return Training(model, batches, cross_entropy, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9))


def lstm() -> Training:
    model = _Lstm(vocabulary=128, width=192)
    return Training(model, _text(rows=8, context=48), _token_loss, torch.optim.Adam(model.parameters(), lr=1e-3))


CASES = {
    "mlp": Case("MLP", "256 rows", mlp, stretch=20, rounds=150, sets=3),
    "gpt": Case("GPT", "8 rows of 128 tokens", gpt, stretch=1, rounds=50, sets=1),
    "resnet": Case("ResNet-18", "8 pictures of 32 x 32", resnet, stretch=1, rounds=50, sets=1),
    "lstm": Case("LSTM", "8 rows of 48 tokens", lstm, stretch=10, rounds=40, sets=2),
}


def _text(*, rows: int, context: int) -> Batches:
    """Characters of the standard library's source text, and the character that follows each."""
    text = torch.tensor([min(ord(c), 127) for c in inspect.getsource(argparse)])
    starts = torch.randint(len(text) - context - 1, (BATCHES, rows))
    windows = [torch.stack([text[s : s + context + 1] for s in some]) for some in starts.tolist()]
    return [(window[:, :-1].contiguous(), window[:, 1:].contiguous()) for window in windows]


def _token_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits.flatten(0, 1), target.flatten())


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        nn.Module.__init__(self)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, context, width = x.shape
        query, key, value = self.qkv(x).view(rows, context, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(rows, context, width))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        nn.Module.__init__(self)
        self.norm1 = nn.LayerNorm(width)
        self.attention = _Attention(width, heads=4)
        self.norm2 = nn.LayerNorm(width)
        wide = nn.Linear(width, 4 * width)
        self.mlp = nn.Sequential(OrderedDict(wide=wide, gelu=nn.GELU(), narrow=nn.Linear(4 * width, width)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class _Gpt(nn.Module):
    def __init__(self, *, vocabulary: int, width: int, blocks: int, context: int) -> None:
        nn.Module.__init__(self)
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.apply(_small)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))  # type: ignore[no-any-return]


def _small(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


class _Residual(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        nn.Module.__init__(self)
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        fits = stride == 1 and before == width
        self.short = (
            nn.Identity() if fits else nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.short(x)
        return self.relu(y)  # type: ignore[no-any-return]


class _ResNet(nn.Sequential):
    """ResNet-18 for 32 x 32 pixels."""

    def __init__(self) -> None:
        stages = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        shapes = [shape for before, width, stride in stages for shape in ((before, width, stride), (width, width, 1))]
        stem = (nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
        blocks = (_Residual(*shape) for shape in shapes)
        nn.Sequential.__init__(self, *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class _Lstm(nn.Module):
    def __init__(self, *, vocabulary: int, width: int) -> None:
        nn.Module.__init__(self)
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: tuple[torch.Tensor, Any] = self.lstm(self.embedding(tokens))
        return self.head(found[0])  # type: ignore[no-any-return]
