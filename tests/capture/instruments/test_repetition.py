"""Whether an input is the one of the sampled step before."""

from __future__ import annotations

import math

import torch
from torch import nn

from tests.capture.watching import step
from tests.capture.watching import watching
from tests.models import GPT
from tests.models import mlp

NAME = "input.repeated"


def repeated(model, batches, *, every=1):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model, every=every) as seen:
        for batch in batches:
            step(model, optimizer, *batch)
    return [frame.columns[NAME].tolist() for frame in seen.frames]


def test_batches_that_differ_and_batches_that_do_not():
    x, y = torch.randn(2, 8, 4)
    first, *rest = repeated(mlp(4, 8, 2), [(x,), (x,), (y,), (x,), (x.clone(),)])
    assert math.isnan(first[0])
    assert rest == [[1], [0], [0], [1]]


def test_the_step_before_is_the_sampled_one():
    x, y = torch.randn(2, 8, 4)
    first, *rest = repeated(mlp(4, 8, 2), [(x,), (y,), (x,), (x,), (y,)], every=2)
    assert math.isnan(first[0])
    assert rest == [[1], [0]]


def test_what_is_not_a_number_repeats_too():
    x = torch.randn(8, 4)
    x[0] = math.nan
    assert repeated(mlp(4, 8, 2), [(x,)] * 3)[1:] == [[1], [1]]


def test_every_input_stands_for_itself():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, a, b):
            return self.layer(a + b)

    x = torch.randn(8, 4)
    assert repeated(Two(), [(x, torch.randn(8, 4)) for _ in range(3)])[1:] == [[1, 0]] * 2


def test_tokens_are_no_inputs_of_this_sort():
    assert repeated(GPT(), [(torch.randint(17, (2, 6)),)] * 2) == [[], []]
