"""Where floating-point numbers end: operations without a result, half precision, updates that rounding swallows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo import tasks
from tests.zoo.models import GPT
from tests.zoo.models import he
from tests.zoo.models import mlp
from tests.zoo.program import Batches
from tests.zoo.program import Fault
from tests.zoo.program import Loop
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import fact
from tests.zoo.proofs import not_finite
from tests.zoo.proofs import worse


def logarithm_of_zero(watch: Watch, faulty: bool) -> Outcome:
    """A hand-written cross entropy over probabilities that reach zero, or over a softmax's, which don't."""

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        positive = functional.relu(output)
        probability = positive / (positive.sum(1, keepdim=True) + 1e-6) if faulty else positive.softmax(dim=1)
        return -torch.log(probability[torch.arange(len(labels)), labels]).mean()

    return tasks.classify(watch, he(mlp(20, 64, 64, 10)), tasks.adam, lr=1e-3, steps=120, loss=loss)


def root_of_zero(watch: Watch, faulty: bool) -> Outcome:
    """Distances between two embeddings, of which one pair is of the same sample twice; the root has no slope at zero."""
    x, y = data.clusters()

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        squares = (output - output.roll(1, 0)).square().sum(1)
        distance = squares.sqrt() if faulty else (squares + 1e-6).sqrt()
        alike = (labels == labels.roll(1)).float()
        return (alike * distance + (1 - alike) * functional.relu(3 - distance)).mean()

    def batches() -> Batches:
        for step, (inputs, labels) in enumerate(data.batches(x, y, steps=250)):
            if step == 30:
                inputs[1], labels[1] = inputs[0], labels[0]
            yield inputs, labels

    model = he(mlp(20, 64, 16))
    return fit(watch, model, batches(), loss, torch.optim.Adam(model.parameters(), lr=3e-3))


class Direction(nn.Module):
    """Features divided by their norm, with or without a floor under it."""

    def __init__(self, *, floor: float) -> None:
        super().__init__()
        self.first, self.second, self.floor = nn.Linear(20, 64, bias=False), nn.Linear(64, 10), floor

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        return self.second(8 * x / (x.norm(dim=1, keepdim=True) + self.floor))


def zero_over_zero(watch: Watch, faulty: bool) -> Outcome:
    """From step 25 on a batch holds a row of padding, all zeros."""
    x, y = data.clusters()

    def batches() -> Batches:
        for step, (inputs, labels) in enumerate(data.batches(x, y, steps=150)):
            if step >= 25:
                inputs[0] = 0
            yield inputs, labels

    model = Direction(floor=0.0 if faulty else 1e-6)
    return fit(watch, model, batches(), functional.cross_entropy, torch.optim.Adam(model.parameters(), lr=3e-3))


def nothing_to_predict(watch: Watch, faulty: bool) -> Outcome:
    """All labels of step 30 are padding, and the mean over none of them is 0 / 0; the weights survive it."""

    def batches() -> Batches:
        for step, (tokens, following) in enumerate(data.characters(steps=80)):
            if faulty and step == 30:
                following = torch.full_like(following, -100)
            yield tokens, following

    model = GPT(data.vocabulary_size())
    return fit(watch, model, batches(), functional.cross_entropy, torch.optim.AdamW(model.parameters(), lr=3e-3))


def exponential_by_hand(watch: Watch, faulty: bool) -> Outcome:
    """A softmax at a low temperature, written out without subtracting the maximum."""

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        scores = output / 0.05
        if not faulty:
            scores = scores - scores.detach().amax(1, keepdim=True)
        weights = scores.exp()
        return -(weights[torch.arange(len(labels)), labels] / weights.sum(1)).clamp_min(1e-12).log().mean()

    return tasks.classify(watch, he(mlp(20, 64, 64, 10)), tasks.adam, lr=1e-3, steps=150, loss=loss)


class Masked(nn.Module):
    """Attention over a set whose padding is masked out; a set may be empty."""

    def __init__(self, *, guarded: bool) -> None:
        super().__init__()
        self.key, self.value, self.query = nn.Linear(4, 16), nn.Linear(4, 16), nn.Parameter(0.1 * torch.randn(16))
        self.head, self.guarded = nn.Linear(16, 2), guarded

    def forward(self, x: Tensor) -> Tensor:
        there = x.abs().sum(2) > 0
        scores = (self.key(x) @ self.query).masked_fill(~there, -1e9 if self.guarded else -math.inf)
        return self.head((scores.softmax(1).unsqueeze(2) * self.value(x)).sum(1))


def everything_masked(watch: Watch, faulty: bool) -> Outcome:
    """The set of one sample at step 45 is empty, and its softmax is over minus infinities."""
    x = torch.randn(1500, 8, 4)
    y = (x.sum((1, 2)) > 0).long()

    def batches() -> Batches:
        for step, (inputs, labels) in enumerate(data.batches(x, y, steps=200)):
            if step == 45:
                inputs[2] = 0
            yield inputs, labels

    model = Masked(guarded=not faulty)
    return fit(watch, model, batches(), functional.cross_entropy, torch.optim.Adam(model.parameters(), lr=1e-2))


def bfloat16_weights_sgd(watch: Watch, faulty: bool) -> Outcome:
    """Steps of a few thousandths of the weights, which bfloat16 with its eight bits drops."""
    return _in_precision(watch, he(mlp(20, 128, 128, 10)), torch.bfloat16 if faulty else torch.float32, lr=5e-4, steps=500)


def bfloat16_weights_adam(watch: Watch, faulty: bool) -> Outcome:
    x, y = data.digits()
    x = data.standardised(x).flatten(1)
    model = he(mlp(144, 128, 10)).to(torch.bfloat16 if faulty else torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    batches = data.batches(x.to(torch.bfloat16 if faulty else torch.float32), y, steps=400)
    return fit(watch, model, batches, _float_cross_entropy, optimizer)


def _in_precision(watch: Watch, model: nn.Module, dtype: torch.dtype, *, lr: float, steps: int) -> Outcome:
    x, y = data.clusters()
    model = model.to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return fit(watch, model, data.batches(x.to(dtype), y, steps=steps), _float_cross_entropy, optimizer)


def _float_cross_entropy(output: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(output.float(), labels)


class Half(nn.Module):
    """A net under autocast to half precision."""

    def __init__(self, net: nn.Module, *, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=self.dtype):
            return self.net(x)


def half_without_scaling(watch: Watch, faulty: bool) -> Outcome:
    """A loss with a small weight; its gradients are below what float16 can hold, unless a GradScaler lifts them."""
    model = Half(he(mlp(20, 64, 64, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 / 1e-6)
    loop = Loop(watch, model, lambda output, labels: 1e-6 * _float_cross_entropy(output, labels), optimizer)
    scaler = torch.amp.GradScaler("cpu", enabled=not faulty)
    for x, y in data.batches(*data.clusters(), steps=250):
        optimizer.zero_grad()
        loss = loop.forward(x, y)
        if not loop.stepped_by_remedy():
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return loop.outcome()


def half_weights_adam(watch: Watch, faulty: bool) -> Outcome:
    """Weights in float16 and Adam's eps of 1e-8, which is zero there: where a gradient is zero, 0 / 0."""
    x, y = data.clusters()
    dtype = torch.float16 if faulty else torch.float32
    model = he(mlp(20, 64, 64, 10)).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return fit(watch, model, data.batches(x.to(dtype), y, steps=200), _float_cross_entropy, optimizer)


class Squares(nn.Module):
    """Features and their squares, through a norm: large in between, and harmless after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.rest = nn.Linear(20, 64), nn.LayerNorm(64), mlp(64, 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(functional.relu(self.norm(self.first(x))))


def half_overflows(watch: Watch, faulty: bool) -> Outcome:
    """From step 130 on each fourth batch holds large numbers, which the norm takes back, but float16 can't hold."""
    x, y = data.clusters()

    def batches() -> Batches:
        for step, (inputs, labels) in enumerate(data.batches(x, y, steps=400)):
            yield (inputs * 1e5 if step >= 130 and step % 4 == 0 else inputs), labels

    def forward(names: dict[str, Any]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16 if faulty else torch.bfloat16):
            return names["model"](names["x"])

    model = Squares()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    scaler = torch.amp.GradScaler("cpu", enabled=faulty)
    loop = Loop(watch, model, _float_cross_entropy, optimizer, forward=forward, scaler=scaler)
    scaler = loop.names["scaler"]
    for inputs, labels in batches():
        optimizer.zero_grad()
        scaler.scale(loop.forward(inputs, labels)).backward()
        scaler.step(optimizer)
        scaler.update()
    return loop.outcome(inverse_scale=1 / scaler.get_scale() if scaler.is_enabled() else 0.0)


PROGRAMS = (
    Fault(logarithm_of_zero, ("nonfinite-origin",), not_finite),
    Fault(root_of_zero, ("nonfinite-origin",), not_finite, falls_to=0.8, begins=30),
    Fault(zero_over_zero, ("nonfinite-origin",), not_finite, begins=25),
    Fault(
        nothing_to_predict,
        ("nonfinite-origin", "nonfinite-loss"),
        lambda fault, twin: math.isnan(fault.course[30]),
        begins=30,
    ),
    Fault(exponential_by_hand, ("nonfinite-origin",), not_finite),
    Fault(everything_masked, ("nonfinite-origin",), not_finite, begins=45),
    Fault(bfloat16_weights_sgd, ("bf16-stalled-updates",), worse(1.5), remedy="start"),
    Fault(bfloat16_weights_adam, ("bf16-stalled-updates",), worse(1.5), remedy="start"),
    Fault(half_without_scaling, ("fp16-underflow",), worse(10), falls_to=0.4, remedy="start"),
    Fault(half_weights_adam, ("fp16-underflow", "nonfinite-origin"), not_finite, falls_to=0.4, remedy="start"),
    Fault(half_overflows, ("fp16-overflow",), fact("inverse_scale", least=1.0, most=0.5), remedy="start"),
)
