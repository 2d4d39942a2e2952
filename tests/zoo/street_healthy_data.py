"""Data for the programs named street: spirals, stripes, houses, weather, reviews, pulses."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

WORDS = 150  # that reviews are made of; 0 is padding


def spirals(*, count: int = 900, arms: int = 3) -> tuple[Tensor, Tensor]:
    """Points in the plane, [count, 2], and on which arm of a spiral each lies."""
    labels = torch.arange(count) % arms
    radius = 0.15 + torch.rand(count)
    angle = 4 * radius + labels * 2 * torch.pi / arms + 0.15 * torch.randn(count)
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return x / x.std(), labels


def stripes(*, count: int = 800, size: int = 14, kinds: int = 4) -> tuple[Tensor, Tensor]:
    """Standardised pictures of stripes, [count, 1, size, size], and their direction out of ``kinds``."""
    labels = torch.arange(count) % kinds
    angle = (torch.pi * labels / kinds)[:, None, None]
    row = torch.arange(size).float()
    place = angle.cos() * row[None, :, None] + angle.sin() * row[None, None, :]
    pictures = torch.sin(1.2 * place + 2 * torch.pi * torch.rand(count, 1, 1)) + 0.5 * torch.randn(count, size, size)
    return (pictures / pictures.std()).unsqueeze(1), labels


def houses(*, count: int = 1000) -> tuple[Tensor, Tensor]:
    """Eight standardised columns and a standardised price, [count, 1]."""
    x = torch.randn(count, 8)
    prices = x[:, 0] + 0.6 * x[:, 1] * x[:, 2] + torch.sin(2 * x[:, 3]) + 0.8 * x[:, 4].clamp_min(0)
    prices = prices + 0.1 * torch.randn(count)
    return x, ((prices - prices.mean()) / prices.std()).unsqueeze(1)


def weather(*, count: int = 600, length: int = 24) -> tuple[Tensor, Tensor]:
    """Series of two rhythms, [count, length, 1], and the value that comes next, [count, 1]."""
    hour = torch.arange(length + 1)
    phases = 2 * torch.pi * torch.rand(2, count, 1)
    series = torch.sin(0.4 * hour + phases[0]) + 0.5 * torch.sin(1.1 * hour + phases[1])
    series = (series + 0.05 * torch.randn(series.shape)) / 0.8
    return series[:, :-1, None], series[:, -1:]


def reviews(*, count: int = 1200, length: int = 12) -> tuple[Tensor, Tensor]:
    """Numbers of words, [count, length], and whether the words' feelings add up to more than zero."""
    feelings = torch.randn(WORDS)
    tokens = torch.randint(1, WORDS, (count, length))
    return tokens, (feelings[tokens].sum(1) > 0).long()


def pulses(*, count: int = 600, length: int = 64) -> tuple[Tensor, Tensor]:
    """A narrow bump, a wide one or two of them somewhere in noise, [count, 1, length], and which."""
    labels = torch.arange(count) % 3
    place = torch.arange(length) - (16 + 32 * torch.rand(count, 1))
    width = torch.tensor([2.0, 6.0, 2.0])[labels].unsqueeze(1)
    second = torch.exp(-((place - 10) / 2).square()) * (labels == 2).unsqueeze(1)
    waves = torch.exp(-(place / width).square()) + second + 0.15 * torch.randn(count, length)
    return ((waves - waves.mean()) / waves.std()).unsqueeze(1), labels


def drawn(x: Tensor, y: Tensor, *, steps: int, size: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches."""
    for _ in range(steps):
        chosen = torch.randint(len(x), (size,))
        yield x[chosen], y[chosen]


def loader(x: Tensor, y: Tensor, *, size: int = 32, shuffle: bool = True) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(x, y), batch_size=size, shuffle=shuffle, drop_last=True)
