"""Data that is computed, or stands in the standard library: clusters, a teacher's answers, drawn digits, source text."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch import nn

CLASSES = 10
GLYPHS = (  # ten digits, five rows of three pixels each
    "111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001",
    "111100111001111", "111100111101111", "111001010010010", "111101111101111", "111101111001111",
)  # fmt: skip


def clusters(*, count: int = 2000, width: int = 20) -> tuple[Tensor, Tensor]:
    """Ten Gaussian clusters that overlap a little; every feature has about mean 0 and variance 1."""
    labels = torch.arange(count) % CLASSES
    x = torch.randn(CLASSES, width)[labels] + 0.6 * torch.randn(count, width)
    return (x - x.mean(0)) / x.std(0), labels


def taught(*, count: int = 2000, width: int = 10) -> tuple[Tensor, Tensor]:
    """A regression: a fixed random two-layer tanh net's answers, [count, 1], standardised."""
    x = torch.randn(count, width)
    with torch.no_grad():
        y = torch.tanh(x @ torch.randn(width, 16) / width**0.5) @ torch.randn(16, 1)
    return x, (y - y.mean()) / y.std()


def digits(*, count: int = 1500, size: int = 12) -> tuple[Tensor, Tensor]:
    """Drawn digits, twice as large as their glyphs, shifted, noisy, with pixels from 0 to 255: [count, 1, size, size]."""
    labels = torch.arange(count) % CLASSES
    glyphs = torch.tensor([[float(pixel) for pixel in glyph] for glyph in GLYPHS]).reshape(CLASSES, 1, 5, 3)
    drawn = nn.functional.interpolate(glyphs, scale_factor=2)[labels]
    images = torch.zeros(count, 1, size, size)
    tops, lefts = torch.randint(size - 9, (count,)), torch.randint(size - 5, (count,))
    for image, glyph, top, left in zip(images, drawn, tops.tolist(), lefts.tolist(), strict=True):
        image[:, top : top + 10, left : left + 6] = glyph
    return (200 * images + 55 * torch.rand_like(images)), labels


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean()) / x.std()


def batches(x: Tensor, y: Tensor, *, size: int = 64, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches without replacement within an epoch; the last, smaller one of an epoch is dropped."""
    order = torch.randperm(len(x))
    place = 0
    for _ in range(steps):
        if place + size > len(x):
            order, place = torch.randperm(len(x)), 0
        chosen = order[place : place + size]
        place += size
        yield x[chosen], y[chosen]


@cache
def _text() -> tuple[Tensor, int]:
    source = inspect.getsource(argparse)
    vocabulary = {character: i for i, character in enumerate(sorted(set(source)))}
    return torch.tensor([vocabulary[character] for character in source]), len(vocabulary)


def vocabulary_size() -> int:
    return _text()[1]


def characters(*, length: int = 32, size: int = 16, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of source text and the same pieces one character later: [size, length] each."""
    text, _ = _text()
    for _ in range(steps):
        starts = torch.randint(len(text) - length - 1, (size, 1)) + torch.arange(length)
        yield text[starts], text[starts + 1]
