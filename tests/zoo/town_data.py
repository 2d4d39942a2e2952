"""Data for the programs named town: signs, motions, rentals, customers, names, spectra, molecules, drawings."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

LETTERS = 14  # that names are made of; 0 is padding
TONGUES = 4
SIGNS = 5


def signs(*, count: int = 700, size: int = 16) -> tuple[Tensor, Tensor]:
    """Standardised pictures in colour of a disc, square, triangle, cross or ring, [count, 3, size, size], and which."""
    labels = torch.arange(count) % SIGNS
    place = torch.arange(size).float()
    centre = size / 2 + 4 * torch.rand(2, count, 1, 1) - 2
    down, right = place[:, None] - centre[0], place[None, :] - centre[1]
    reach = 3.5 + 1.5 * torch.rand(count, 1, 1)
    away, widest = (down.square() + right.square()).sqrt(), torch.maximum(down.abs(), right.abs())
    outlines = (
        away < reach,
        widest < 0.85 * reach,
        (right.abs() < (down + reach) / 2) & (down < reach),
        (torch.minimum(down.abs(), right.abs()) < 1.2) & (widest < reach),
        (away < reach) & (away > reach - 1.8),
    )
    mask = torch.stack(outlines).float()[labels, torch.arange(count)].unsqueeze(1)
    paint, ground = torch.rand(2, count, 3, 1, 1)
    pictures = ground + mask * (paint - ground + 0.8) + 0.25 * torch.randn(count, 3, size, size)
    return (pictures - pictures.mean((0, 2, 3), keepdim=True)) / pictures.std((0, 2, 3), keepdim=True), labels


def motions(*, count: int = 800, length: int = 48) -> tuple[Tensor, Tensor]:
    """Three axes of an accelerometer, standardised, [count, 3, length], and whether one sits, walks, climbs or runs."""
    labels = torch.arange(count) % 4
    pace = torch.tensor([0.0, 0.35, 0.25, 0.6])[labels, None, None] * (1 + 0.1 * torch.randn(count, 1, 1))
    force = torch.tensor([0.1, 0.8, 0.9, 1.2])[labels, None, None] * (1 + 0.2 * torch.randn(count, 1, 1))
    phase = 6.28 * torch.rand(count, 3, 1)
    wave = torch.sin(pace * torch.arange(length) + phase) + 0.4 * torch.sin(2 * pace * torch.arange(length) + phase)
    x = force * wave + 0.5 * torch.randn(count, 3, 1) + 0.6 * torch.randn(count, 3, length)
    return (x - x.mean((0, 2), keepdim=True)) / x.std((0, 2), keepdim=True), labels


def rentals(*, count: int = 1500) -> tuple[Tensor, Tensor]:
    """Hour as sine and cosine, warmth, wind, rain and a holiday, and how many bicycles are out; all standardised."""
    hour = 6.28 * torch.rand(count)
    warmth, wind, rain = torch.randn(3, count)
    holiday = (torch.rand(count) < 0.3).float()
    out = (1 - holiday) * torch.sin(2 * hour) + holiday * torch.sin(hour) + 0.7 * warmth - 0.5 * rain.clamp_min(0) * wind
    x = torch.stack([hour.sin(), hour.cos(), warmth, wind, rain, holiday], dim=1)
    y = (out + 0.15 * torch.randn(count)).unsqueeze(1)
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def customers(*, count: int = 1600) -> tuple[Tensor, Tensor, Tensor]:
    """Six standardised columns, [count, 6], three of codes below 12, [count, 3], and who leaves: 0 or 1, [count]."""
    numbers, codes = torch.randn(count, 6), torch.randint(12, (count, 3))
    worth = torch.randn(3, 12)
    score = numbers[:, 0] * numbers[:, 1] + numbers[:, 2] + worth[torch.arange(3), codes].sum(1)
    leaves = (score + 0.5 * torch.randn(count) > 0.8).float()
    return numbers, codes, leaves


def names(*, count: int = 1200, length: int = 10) -> tuple[Tensor, Tensor]:
    """Letters of made-up names, [count, length], 0 after their end, and whose tongue they come from."""
    labels = torch.arange(count) % TONGUES
    follows = (2.2 * torch.randn(TONGUES, LETTERS, LETTERS - 1)).softmax(2)
    letters = torch.zeros(count, length, dtype=torch.long)
    before = torch.zeros(count, dtype=torch.long)
    for place in range(length):
        before = 1 + torch.multinomial(follows[labels, before], 1).squeeze(1)
        letters[:, place] = before
    ends = torch.randint(5, length + 1, (count, 1))
    return letters * (torch.arange(length) < ends), labels


def spectra(*, count: int = 900, channels: int = 64) -> tuple[Tensor, Tensor]:
    """Counts in the channels of a spectrometer, [count, channels], a few thousand at the most, and which of six substances."""
    labels = torch.arange(count) % 6
    lines = channels * torch.rand(6, 5, 1)
    heights = 200 + 600 * torch.rand(6, 5, 1)
    pure = (heights * torch.exp(-((torch.arange(channels) - lines) / 2.5).square())).sum(1)
    strength = 0.5 + torch.rand(count, 1)
    ground = 500 + 300 * torch.rand(count, 1) + 4 * torch.arange(channels)
    return (strength * pure[labels] + ground + 350 * torch.randn(count, channels)).round().clamp_min(0), labels


def molecules(*, count: int = 700, atoms: int = 12) -> tuple[Tensor, Tensor]:
    """Bonds beside four features of an atom, [count, atoms, atoms + 4], and a standardised property, [count, 1]."""
    upper = (torch.rand(count, atoms, atoms) < 0.3).float().triu(1)
    bonds = upper + upper.transpose(1, 2)
    kinds = torch.nn.functional.one_hot(torch.randint(4, (count, atoms)), 4).float()
    charge = (bonds @ kinds)[:, :, 0] * kinds[:, :, 1] - (bonds @ kinds)[:, :, 2] * kinds[:, :, 3]
    y = charge.sum(1, keepdim=True)
    return torch.cat([bonds, kinds], dim=2), (y - y.mean()) / y.std()


def drawings(*, count: int = 600, size: int = 10) -> Tensor:
    """Pictures of one frame each in black and white, [count, 1, size, size], pixels 0 and 1."""
    place = torch.arange(size)
    first, second = torch.randint(0, size // 2, (2, 2, count, 1, 1)).unbind(0)
    top, bottom = first[0], first[0] + second[0] + 1
    left, right = first[1], first[1] + second[1] + 1
    down, across = place[:, None], place[None, :]
    inside = (down >= top) & (down <= bottom) & (across >= left) & (across <= right)
    inner = (down > top) & (down < bottom) & (across > left) & (across < right)
    return (inside & ~inner).float().unsqueeze(1)


def moons(count: int) -> Tensor:
    """Points on two half circles that reach into each other, [count, 2], of about mean 0 and variance 1."""
    angle, upper = 3.1416 * torch.rand(count), torch.rand(count) < 0.5
    across = torch.where(upper, angle.cos(), 1 - angle.cos())
    up = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    points = torch.stack([(across - 0.5) / 0.87, (up - 0.25) / 0.5], dim=1)
    return points + 0.08 * torch.randn(count, 2)


def recalled(*, length: int, size: int = 64, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Symbols one-hot, [size, length, 6], of which the first is the answer, and the answer."""
    for _ in range(steps):
        symbols = torch.randint(6, (size, length))
        yield torch.nn.functional.one_hot(symbols, 6).float(), symbols[:, 0]


def loader(x: Tensor, y: Tensor, *, size: int = 32) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(x, y), batch_size=size, shuffle=True, drop_last=True)
