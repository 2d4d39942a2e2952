"""A sound training, for comparison: a small GPT learns to write Python."""

# mypy: disallow-untyped-calls=False
# Torch leaves Tensor.backward() without types.

from __future__ import annotations

from pathlib import Path

import torch

import gradscope
from gradscope.demos import Demo
from gradscope.demos import Progress
from gradscope.demos._characters import CharacterGPT
from gradscope.demos._characters import batch_of
from gradscope.demos._characters import next_character_loss
from gradscope.demos._characters import source_text

WARM_UP = 30  # steps over which the learning rate rises to its full size


def train(logdir: Path, progress: Progress) -> gradscope.Report:
    text = source_text()
    model = CharacterGPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    with gradscope.attach(model, logdir) as scope:
        for _ in progress(150):
            characters, following = batch_of(text, 8)
            loss = next_character_loss(model(characters), following)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            warm_up.step()
        return scope.report()


DEMO = Demo(
    name="healthy",
    story="A small GPT learns the next character of Python's own source, with AdamW and a warm-up: nothing is wrong.",
    expected=None,
    train=train,
)
