"""Models of kinds that the other programs do not have."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.field_data import SYMBOLS
from tests.zoo.field_data import TONES


class UNet(nn.Module):
    """Two levels down and up again, with connections across; one logit a pixel."""

    def __init__(self, *, width: int = 8) -> None:
        super().__init__()
        self.outer, self.inner = twice(1, width), twice(width, 2 * width)
        self.middle = twice(2 * width, 2 * width)
        self.rise = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.merge = twice(2 * width, width)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        outer = self.outer(x)
        inner = self.middle(self.inner(functional.max_pool2d(outer, 2)))
        return self.head(self.merge(torch.cat([outer, self.rise(inner)], dim=1)))


def twice(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, group norm and ReLU, two times."""
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.GroupNorm(2, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def separable(inputs: int, outputs: int, *, stride: int = 1, norm: bool = True) -> nn.Sequential:
    """A convolution of each channel by itself, then one across the channels."""
    depthwise = nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=not norm)
    pointwise = nn.Conv2d(inputs, outputs, 1, bias=not norm)
    if not norm:
        return nn.Sequential(depthwise, nn.ReLU6(), pointwise, nn.ReLU6())
    return nn.Sequential(depthwise, nn.BatchNorm2d(inputs), nn.Hardswish(), pointwise, nn.BatchNorm2d(outputs), nn.Hardswish())


def mobile(*, norm: bool = True, classes: int = 10) -> nn.Sequential:
    """For digits: a stem, three separable convolutions, the mean over places."""
    stem = nn.Conv2d(1, 16, 3, padding=1)
    blocks = [separable(16, 24, stride=2, norm=norm), separable(24, 32, stride=2, norm=norm), separable(32, 48, norm=norm)]
    return nn.Sequential(stem, nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, classes))


def tone_net(*, norm: bool = True, dropout: float = 0.0) -> nn.Sequential:
    """Strided convolutions over a wave."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv1d(inputs, outputs, 7, stride=2, padding=3), *([nn.BatchNorm1d(outputs)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(32, TONES))


class MixerBlock(nn.Module):
    def __init__(self, places: int, width: int, *, norm: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for _ in range(2))
        self.across = nn.Sequential(nn.Linear(places, 2 * places), nn.GELU(), nn.Linear(2 * places, places))
        self.within = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norms[1](x))


class Mixer(nn.Module):
    """For digits: patches of 3 x 3, mixed across places and within them."""

    def __init__(self, *, width: int = 32, depth: int = 2, norm: bool = True) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 3, stride=3)
        self.blocks = nn.Sequential(*(MixerBlock(16, width, norm=norm) for _ in range(depth)))
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


class Seq2Seq(nn.Module):
    """A GRU that reads and a GRU that writes, which is told the right symbol before each; logits [size, SYMBOLS, length]."""

    def __init__(self, *, width: int = 48, detached: bool = False) -> None:
        super().__init__()
        self.token = nn.Embedding(SYMBOLS + 1, width)  # the last is the start sign
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, SYMBOLS)
        self.detached = detached

    def forward(self, symbols: Tensor) -> Tensor:
        _, state = self.encoder(self.token(symbols))
        if self.detached:
            state = state.detach()
        start = torch.full_like(symbols[:, :1], SYMBOLS)
        told = torch.cat([start, symbols.flip(1)[:, :-1]], dim=1)
        return self.head(self.decoder(self.token(told), state)[0]).transpose(1, 2)


class GraphNet(nn.Module):
    """Rounds of messages along the edges, weights kept as bare parameters; one number a graph."""

    def __init__(self, *, nodes: int = 10, width: int = 32, rounds: int = 3, std: float | None = None) -> None:
        super().__init__()
        widths = [4, *[width] * rounds]
        self.nodes = nodes
        self.weights = nn.ParameterList(
            torch.randn(2, a, b) * ((1 / a**0.5) if std is None else std) for a, b in pairwise(widths)
        )
        self.head = nn.Linear(width, 1)

    def forward(self, graph: Tensor) -> Tensor:
        adjacency, x = graph[:, :, : self.nodes], graph[:, :, self.nodes :]
        adjacency = adjacency / adjacency.sum(2, keepdim=True).clamp_min(1)
        for own, others in self.weights:
            x = functional.relu(x @ own + adjacency @ x @ others)
        return self.head(x.mean(1))
