"""The models that scripts/bench trains."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention


class Mlp(nn.Sequential):
    def __init__(self, *, width: int, hidden: int) -> None:
        layers = (layer for _ in range(hidden) for layer in (nn.Linear(width, width), nn.ReLU()))
        nn.Sequential.__init__(self, *layers, nn.Linear(width, 1))
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


class Deep(nn.Sequential):
    """A residual net of ``4 * blocks`` modules in its blocks, each of which has little to do."""

    def __init__(self, *, width: int, blocks: int) -> None:
        nn.Sequential.__init__(self, *(_Step(width, share=blocks**-0.5) for _ in range(blocks)), nn.Linear(width, 1))


class _Step(nn.Module):
    def __init__(self, width: int, share: float) -> None:
        nn.Module.__init__(self)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.gelu = nn.GELU()
        self.share = share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.share * self.gelu(self.linear(self.norm(x)))  # type: ignore[no-any-return]


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
    def __init__(self, width: int, heads: int, experts: int) -> None:
        nn.Module.__init__(self)
        self.norm1 = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mixture(width, experts) if experts else _feed_forward(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


def _feed_forward(width: int) -> nn.Sequential:
    wide, narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    return nn.Sequential(OrderedDict(wide=wide, gelu=nn.GELU(), narrow=narrow))


class _Mixture(nn.Module):
    """Each token goes to two of the experts, and each expert sees as many tokens as happen to come to it."""

    def __init__(self, width: int, experts: int) -> None:
        nn.Module.__init__(self)
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(_feed_forward(width) for _ in range(experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, 1)
        shares, chosen = self.router(tokens).softmax(-1).topk(2, -1)
        mixed = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, rank = (chosen == number).nonzero(as_tuple=True)
            mixed = mixed.index_add(0, rows, shares[rows, rank, None] * expert(tokens[rows]))
        return mixed.view_as(x)


class Gpt(nn.Module):
    """Characters in, the next one out; with ``experts`` each block has so many feed-forward nets to choose from."""

    def __init__(self, *, vocabulary: int, width: int, blocks: int, heads: int, context: int, experts: int = 0) -> None:
        nn.Module.__init__(self)
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(_Block(width, heads, experts) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.apply(_small)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
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


class ResNet(nn.Sequential):
    """ResNet-18 for 32 x 32 pixels."""

    def __init__(self) -> None:
        stages = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        shapes = [shape for before, width, stride in stages for shape in ((before, width, stride), (width, width, 1))]
        stem = (nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
        blocks = (_Residual(*shape) for shape in shapes)
        nn.Sequential.__init__(self, *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class Lstm(nn.Module):
    def __init__(self, *, vocabulary: int, width: int) -> None:
        nn.Module.__init__(self)
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: tuple[torch.Tensor, Any] = self.lstm(self.embedding(tokens))
        return self.head(found[0])  # type: ignore[no-any-return]
