"""Small models of the usual families."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.data import CLASSES


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU, norm: bool = False) -> nn.Sequential:
    """Linear layers with activations between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), *([nn.LayerNorm(outputs)] if norm else []), activation()]
    return nn.Sequential(*layers[: -2 if norm else -1])


def he(model: nn.Module) -> nn.Module:
    """He's initialisation for all linear layers and convolutions."""
    return drawn(model, gain=math.sqrt(2))


def drawn(model: nn.Module, *, gain: float = 1.0, std: float | None = None) -> nn.Module:
    """Weights from a normal distribution of this ``std``, or of gain / sqrt(fan_in), and no biases."""
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(layer.weight, std=std or gain / math.sqrt(layer.weight[0].numel()))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def convnet(*, norm: bool = True, inplace: bool = True) -> nn.Sequential:
    """Two convolutions with batch norms, global pooling and a linear layer; for images of one channel."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        batch_norm = [nn.BatchNorm2d(outputs)] if norm else []
        return [nn.Conv2d(inputs, outputs, 3, padding=1), *batch_norm, nn.ReLU(inplace=inplace), nn.MaxPool2d(2)]

    return nn.Sequential(*block(1, 12), *block(12, 24), nn.Flatten(), nn.Linear(24 * 9, CLASSES))


class ResidualBlock(nn.Module):
    def __init__(self, width: int, *, norm: bool = True, zero: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)
        he(self)
        if zero:
            nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(functional.relu(self.up(self.norm(x))))


def residual_net(inputs: int, *, depth: int, width: int = 32, norm: bool = True, zero: bool = False) -> nn.Sequential:
    blocks = [ResidualBlock(width, norm=norm, zero=zero) for _ in range(depth)]
    last = [nn.LayerNorm(width)] if norm else []
    return nn.Sequential(nn.Linear(inputs, width), *blocks, *last, nn.Linear(width, CLASSES))


class Attention(nn.Module):
    def __init__(self, width: int, *, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, *, heads: int = 2, causal: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads=heads, causal=causal)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """A character model: logits [batch, characters, length], as cross_entropy takes them."""

    def __init__(
        self, characters: int, *, width: int = 32, depth: int = 2, length: int = 32, tied: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(characters, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, dropout=dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters, bias=False)
        for embedding in (self.token, self.position):
            nn.init.normal_(embedding.weight, std=0.02)
        if tied:
            self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2)


class ViT(nn.Module):
    """A classifier of 12 x 12 images by patches of 4 x 4."""

    def __init__(self, *, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.position = nn.Parameter(0.02 * torch.randn(10, width))
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(images), -1, -1), patches], dim=1) + self.position
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class CharacterLSTM(nn.Module):
    def __init__(self, characters: int, *, width: int = 48, cell: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.token = nn.Embedding(characters, width)
        self.recurrent = cell(width, width, batch_first=True)
        self.head = nn.Linear(width, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.recurrent(self.token(tokens))[0]).transpose(1, 2)


class LowRank(nn.Module):
    """A frozen linear layer and a trained correction of low rank, zero at the start."""

    def __init__(self, frozen: nn.Linear, *, rank: int = 4) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Linear(frozen.in_features, rank, bias=False)
        self.up = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.up(self.down(x))
