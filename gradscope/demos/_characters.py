"""A character model's parts: the standard library's source as text, and a small GPT."""

from __future__ import annotations

import argparse
import inspect
import typing
from typing import final

import torch
from torch import nn
from torch.nn import functional

CHARACTERS = 128  # ASCII
CONTEXT = 64  # characters that the model sees at once


def source_text() -> torch.Tensor:
    """Some 200,000 characters of Python, as numbers below 128."""
    text = "".join(inspect.getsource(module) for module in (argparse, inspect, typing))
    return torch.tensor(list(text.encode("ascii", "replace")))


def batch_of(text: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random stretches of the text, and the character that follows each of theirs; both [size, CONTEXT]."""
    starts = torch.randint(len(text) - CONTEXT, (size, 1))
    stretches = text[starts + torch.arange(CONTEXT + 1)]
    return stretches[:, :-1], stretches[:, 1:]


def next_character_loss(logits: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), following.flatten())


@final
class Block(nn.Module):
    """Attention and a feed-forward layer, each normalised before and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.forward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mixed(self._attended(self.attention_norm(x)))
        thought: torch.Tensor = self.contract(functional.gelu(self.expand(self.forward_norm(x))))
        return x + thought

    def _attended(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.queries_keys_values(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts  # [batch, heads, characters, width / heads] each
        return functional.scaled_dot_product_attention(queries, keys, values, is_causal=True).transpose(1, 2).flatten(2)


@final
class CharacterGPT(nn.Module):
    """Predicts each next character of a text; GPT-2's layout and initialisation (Radford et al., 2019), small."""

    def __init__(self, *, width: int = 64, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.characters = nn.Embedding(CHARACTERS, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CHARACTERS)
        self.apply(_initialise)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        places = torch.arange(characters.shape[1])
        x = self.blocks(self.characters(characters) + self.positions(places))
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
