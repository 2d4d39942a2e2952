"""Data for the programs named village: crescents, fabrics, motions, loans, rentals, headlines, stories, spots, parcels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SYMBOLS = 30  # that stories are told in
VOCABULARY = 200  # words of headlines; 0 is padding, 1 stands for unknown ones
TOPICS = 6


def crescents(*, count: int = 1000) -> tuple[Tensor, Tensor]:
    """Points on two half circles that reach into one another, [count, 2], and on which of them, 0 or 1."""
    labels = torch.arange(count) % 2
    angle = torch.pi * torch.rand(count)
    side = 1.0 - 2 * labels
    x = torch.stack([side * angle.cos() + 1.0 * labels, side * angle.sin() + 0.5 * labels], dim=1)
    x = x + 0.1 * torch.randn(count, 2)
    return (x - x.mean(0)) / x.std(0), labels


def fabrics(*, count: int = 600, size: int = 16) -> tuple[Tensor, Tensor]:
    """Standardised colour pictures of five weaves, [count, 3, size, size], and which weave each shows."""
    labels = torch.arange(count) % 5
    across = torch.tensor([0.5, 1.0, 0.5, 1.6, 1.0])[labels][:, None, None]
    down = torch.tensor([1.0, 0.5, 1.6, 0.5, 1.0])[labels][:, None, None]
    row = torch.arange(size).float()
    phase = 2 * torch.pi * torch.rand(2, count, 1, 1)
    weave = torch.sin(across * row[None, None, :] + phase[0]) * torch.sin(down * row[None, :, None] + phase[1])
    colours = 0.5 + torch.rand(count, 3, 1, 1)
    pictures = colours * weave.unsqueeze(1) + 0.9 * torch.randn(count, 3, size, size)
    return (pictures - pictures.mean()) / pictures.std(), labels


def motions(*, count: int = 800, length: int = 40) -> tuple[Tensor, Tensor]:
    """Six channels of a sensor, [count, 6, length], and which of four ways of moving it was carried in."""
    labels = torch.arange(count) % 4
    pace = torch.tensor([0.25, 0.4, 0.4, 0.6])[labels][:, None, None]
    lag = torch.tensor([0.5, 0.0, 1.5, 0.5])[labels][:, None, None] * torch.arange(6)[None, :, None]
    time = torch.arange(length).float() + 20 * torch.rand(count, 1, 1)
    waves = 1.2 * torch.sin(pace * time + lag) + 1.8 * torch.randn(count, 6, length)
    return waves / waves.std(), labels


def loans(*, count: int = 1500) -> tuple[Tensor, Tensor]:
    """Twelve standardised columns, [count, 12], and whether the loan failed, [count], which three in ten do."""
    x = torch.randn(count, 12)
    risk = 2 * x[:, 0] - 1.5 * x[:, 1] + 1.5 * x[:, 2] * x[:, 3] + x[:, 4].abs() - x[:, 5] + 0.5 * torch.randn(count)
    return x, (risk > risk.quantile(0.7)).float()


def rentals(*, count: int = 1200) -> tuple[Tensor, Tensor]:
    """Seven columns, of hour, season and weather, [count, 7], and how many bicycles were rented, [count]; about three."""
    hour, season = 2 * torch.pi * torch.rand(2, count)
    weather = torch.randn(count, 3)
    x = torch.stack([hour.cos(), hour.sin(), season.cos(), season.sin(), *weather.unbind(1)], dim=1)
    rate = 0.8 + 0.7 * torch.sin(hour + season) + 0.4 * torch.tanh(weather[:, 0]) - 0.3 * weather[:, 1].clamp_min(0)
    return x / x.std(0), torch.poisson(rate.exp())


def headlines(*, count: int = 1200, length: int = 12) -> tuple[Tensor, Tensor]:
    """Numbers of words, [count, length], a third of them of the headline's topic, and that topic out of six."""
    labels = torch.arange(count) % TOPICS
    words = torch.randint(2, VOCABULARY, (count, length))
    told = 2 + labels[:, None] * 20 + torch.randint(20, (count, length))
    return torch.where(torch.rand(count, length) < 0.33, told, words), labels


def stories(*, length: int = 20, size: int = 16, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of a language in which each symbol has three that may follow, and the same one symbol later, [size, length]."""
    follows = torch.stack([torch.randperm(SYMBOLS) for _ in range(3)], dim=1)
    for _ in range(steps):
        symbols = [torch.randint(SYMBOLS, (size,))]
        for choice in torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), size * length, replacement=True).view(length, size):
            symbols.append(follows[symbols[-1], choice])
        told = torch.stack(symbols, dim=1)
        yield told[:, :-1], told[:, 1:]


def spots(*, count: int = 600, size: int = 16) -> tuple[Tensor, Tensor]:
    """Noisy pictures of one bright spot, [count, 1, size, size], and its place, across and down from -1 to 1, [count, 2]."""
    places = 1.8 * torch.rand(count, 2) - 0.9
    line = torch.linspace(-1, 1, size)
    gaps = (line[None, None, :] - places[:, 0, None, None]).square() + (line[None, :, None] - places[:, 1, None, None]).square()
    pictures = torch.exp(-gaps / 0.05).unsqueeze(1) + 0.1 * torch.randn(count, 1, size, size)
    return (pictures - pictures.mean()) / pictures.std(), places


def parcels(*, count: int = 400, size: int = 16) -> tuple[Tensor, Tensor]:
    """Pictures of fields, [count, 2, size, size], and what grows at each pixel out of three, [count, size, size]."""
    line = torch.arange(size)
    left, top = torch.randint(3, size - 3, (2, count, 1, 1))
    kinds = (line[None, None, :] > left).long() + (line[None, :, None] > top).long()
    signal = torch.tensor([[-1.0, 0.5], [0.2, -1.2], [1.0, 0.8]])[kinds].movedim(3, 1)
    return signal + 0.7 * torch.randn(count, 2, size, size), kinds


def season(*, count: int = 700, length: int = 30, ahead: int = 6) -> tuple[Tensor, Tensor]:
    """Series of two rhythms, [count, 1, length], and how each goes on, [count, ahead]."""
    day = torch.arange(length + ahead)
    phases = 2 * torch.pi * torch.rand(2, count, 1)
    series = (
        torch.sin(0.35 * day + phases[0]) + 0.6 * torch.sin(0.9 * day + phases[1]) + 0.1 * torch.randn(count, length + ahead)
    )
    series = series / series.std()
    return series[:, None, :length], series[:, length:]


def drawn(*tensors: Tensor, size: int = 32, steps: int) -> Iterator[tuple[Tensor, ...]]:
    """Random batches of tensors that belong together."""
    for _ in range(steps):
        chosen = torch.randint(len(tensors[0]), (size,))
        yield tuple(tensor[chosen] for tensor in tensors)


def pairs(x: Tensor, y: Tensor, *, size: int = 32, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches of inputs and what belongs to them."""
    for _ in range(steps):
        chosen = torch.randint(len(x), (size,))
        yield x[chosen], y[chosen]
