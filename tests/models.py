"""Small models with the traits that watching could trip over: in-place operations, dropout, buffers, recurrence."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

torch.set_num_threads(1)  # on models this small, threads only wait for one another


class Block(nn.Module):
    """A pre-norm transformer block that adds in place."""

    def __init__(self, width):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Dropout(0.1))

    def forward(self, x):
        parts = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.1 if self.training else 0.0)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        y = self.mlp(self.norm2(x))
        y += x
        return y


class GPT(nn.Module):
    def __init__(self, *, vocabulary=17, width=16, depth=2):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.drop = nn.Dropout(0.1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.drop(self.embed(tokens))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self, *, channels=8, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(Residual(channels), Residual(channels))
        self.drop = nn.Dropout2d(0.1)
        self.head = nn.Linear(channels, classes)

    def forward(self, images):
        return self.head(self.drop(self.blocks(self.stem(images))).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, *, vocabulary=17, width=16):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens):
        return self.head(self.lstm(self.embed(tokens))[0])


def mlp(*widths):
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(*[part for layer in layers[:-1] for part in (layer, nn.ReLU())], layers[-1])


def tokens(batch=4, length=8, vocabulary=17):
    return torch.randint(vocabulary, (batch, length))


def next_token_loss(model, batch):
    return nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def classification_loss(model, batch):
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels)


def images(batch=4):
    return torch.randn(batch, 3, 8, 8), torch.randint(4, (batch,))


# name -> (model, batch, loss of model and batch)
KINDS = {
    "gpt": (GPT, tokens, next_token_loss),
    "resnet": (ResNet, images, classification_loss),
    "lstm": (Recurrent, tokens, next_token_loss),
}


def regress(model, optimizer, *, steps, batch=8, zero_grad=True, seed=0):
    """A usual loop on fixed random data; returns its losses."""
    width = next(model.parameters()).shape[1]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, width, generator=generator)
    losses = []
    for _ in range(steps):
        if zero_grad:
            optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
