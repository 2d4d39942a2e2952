"""Data for the programs named field: masks of shapes, tones, sequences to reverse, graphs, ratings, curves."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SYMBOLS = 8  # that sequences are made of
TONES = 4


def shapes(*, count: int = 600, size: int = 16) -> tuple[Tensor, Tensor]:
    """Noisy pictures of one bright disc each, standardised, and the discs' masks: [count, 1, size, size] both."""
    row = torch.arange(size).float()
    centres = 3 + (size - 6) * torch.rand(count, 2, 1, 1)
    radii = 2 + 2.5 * torch.rand(count, 1, 1)
    squares = (row[:, None] - centres[:, 0]).square() + (row[None, :] - centres[:, 1]).square()
    masks = (squares < radii.square()).float().unsqueeze(1)
    pictures = masks * (0.5 + torch.rand(count, 1, 1, 1)) + 0.4 * torch.randn(count, 1, size, size)
    return (pictures - pictures.mean()) / pictures.std(), masks


def tones(*, count: int = 800, length: int = 96) -> tuple[Tensor, Tensor]:
    """Noisy tones of four pitches at any phase, [count, 1, length], and which pitch each has."""
    labels = torch.arange(count) % TONES
    pitch = torch.tensor([0.2, 0.35, 0.55, 0.8])[labels].unsqueeze(1)
    phase = 2 * torch.pi * torch.rand(count, 1)
    waves = torch.sin(pitch * torch.arange(length) + phase) * 1.3 + 0.5 * torch.randn(count, length)
    return waves.unsqueeze(1), labels


def sequences(*, length: int = 6, size: int = 64, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Symbols and the same symbols backwards, [size, length] each."""
    for _ in range(steps):
        symbols = torch.randint(SYMBOLS, (size, length))
        yield symbols, symbols.flip(1)


def graphs(*, count: int = 800, nodes: int = 10) -> tuple[Tensor, Tensor]:
    """Random graphs as [count, nodes, nodes + 4]: adjacency beside four features a node; a number of each, [count, 1]."""
    upper = (torch.rand(count, nodes, nodes) < 0.3).float().triu(1)
    adjacency = upper + upper.transpose(1, 2)
    features = torch.randn(count, nodes, 4)
    messages = torch.tanh(adjacency @ features[:, :, :1]) * features[:, :, 1:2]
    numbers = messages.sum(1)
    return torch.cat([adjacency, features], dim=2), (numbers - numbers.mean()) / numbers.std()


def ratings(*, users: int = 60, items: int = 40) -> tuple[Tensor, Tensor]:
    """All pairs of a user and an item, [users * items, 2], and noisy ratings of rank three, about 0."""
    tastes, kinds = torch.randn(users, 3), torch.randn(items, 3)
    pairs = torch.cartesian_prod(torch.arange(users), torch.arange(items))
    return pairs, (tastes[pairs[:, 0]] * kinds[pairs[:, 1]]).sum(1) / 3**0.5 + 0.1 * torch.randn(len(pairs))


def tags(*, count: int = 1200, width: int = 24, kinds: int = 12) -> tuple[Tensor, Tensor]:
    """Features and which of a dozen rare tags hold for each sample, as numbers 0 and 1."""
    x = torch.randn(count, width)
    scores = x @ torch.randn(width, kinds) / width**0.5
    return x, (scores > 1.2).float()


def first_of_many(*, length: int = 25, size: int = 64, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Noise of [size, length, 2] whose first entry tells the label, out of two."""
    for _ in range(steps):
        x = 0.5 * torch.randn(size, length, 2)
        labels = torch.randint(2, (size,))
        x[:, 0, 0] = 2.0 * labels - 1
        yield x, labels
