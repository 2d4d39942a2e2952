"""Trainings whose parameters, recurrences or losses are written by hand, and slips of the same kind as elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import fact
from tests.zoo.proofs import worse
from tests.zoo.street_faults_starts import descend
from tests.zoo.street_faults_starts import stack
from tests.zoo.street_healthy_data import WORDS
from tests.zoo.street_healthy_data import drawn
from tests.zoo.street_healthy_data import houses
from tests.zoo.street_healthy_data import reviews
from tests.zoo.street_healthy_data import spirals


class Written(nn.Module):
    """Two layers as bare matrices, applied by functional calls."""

    def __init__(self, *, width: int = 64) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(width, 2))
        self.b1 = nn.Parameter(torch.randn(width))
        self.w2 = nn.Parameter(torch.randn(3, width) / width**0.5)
        self.b2 = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(functional.leaky_relu(functional.linear(x, self.w1, self.b1)), self.w2, self.b2)


def written_out_and_too_fast(watch: Watch, faulty: bool) -> Outcome:
    """Bare matrices, a cross entropy by logsumexp, and a rate of ten."""
    x, y = spirals()
    model = Written()
    optimizer = torch.optim.SGD([model.w1, model.b1, model.w2, model.b2], lr=10.0 if faulty else 0.1, momentum=0.9)
    watch(model)
    course = []
    for points, labels in drawn(x, y, steps=500):
        scores = model(points)
        loss = (scores.logsumexp(1) - scores.gather(1, labels.unsqueeze(1)).squeeze(1)).mean()
        for parameter in model.parameters():
            parameter.grad = None
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def written_out_and_never_cleared(watch: Watch, faulty: bool) -> Outcome:
    """model.parameters() can be gone through once; the optimizer did so, and the loop that clears finds nothing there."""
    x, y = spirals()
    model = Written()
    parameters = model.parameters() if faulty else list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.2)
    watch(model)
    course = []
    for points, labels in drawn(x, y, steps=500):
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        loss = functional.cross_entropy(model(points), labels)
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


class Remembering(nn.Module):
    """A tanh recurrence over bare matrices; the hidden one is a rotation times ``gain``."""

    def __init__(self, *, gain: float, width: int = 32) -> None:
        super().__init__()
        self.hidden = nn.Parameter(gain * nn.init.orthogonal_(torch.empty(width, width)))
        self.inward = nn.Parameter(0.3 * torch.randn(3, width))
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), len(self.hidden))
        for entry in x.unbind(1):
            state = torch.tanh(entry @ self.inward + state @ self.hidden)
        return self.out(state)


def short_memory_by_hand(watch: Watch, faulty: bool) -> Outcome:
    """The first of 25 entries tells the label, and the state is halved in each step."""
    model = Remembering(gain=0.5 if faulty else 1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    watch(model)
    course = []
    for _ in range(300):
        labels = torch.randint(2, (48,))
        x = 0.1 * torch.randn(48, 25, 3)
        x[:, 0, 0] += 2.0 * labels - 1
        loss = functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


class Words(nn.Module):
    """The sum of words' vectors, a norm, a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 32)
        self.norm = nn.LayerNorm(32)
        self.hidden = nn.Linear(32, 64)
        self.out = nn.Linear(64, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(functional.silu(self.hidden(self.norm(self.words(tokens).sum(1))))).float()


def all_in_bfloat16(watch: Watch, faulty: bool) -> Outcome:
    """model.bfloat16() to save memory, and a small rate."""
    x, y = reviews()
    model = Words()
    if faulty:
        model = model.bfloat16()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, eps=1e-7)
    return descend(watch, model, optimizer, x, y, steps=1500)


def loss_smoothed_with_its_graph(watch: Watch, faulty: bool) -> Outcome:
    """A running mean of the loss is what backward() is called on, with retain_graph=True against the error message."""
    x, _ = houses()
    y = (x[:, :1] + x[:, 1:2] > 0).float()
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    watch(model)
    course: list[float] = []
    smoothed = torch.tensor(0.7)
    for inputs, label in drawn(x, y, steps=200):
        loss = functional.binary_cross_entropy_with_logits(model(inputs), label)
        smoothed = 0.8 * (smoothed if faulty else smoothed.detach()) + 0.2 * loss
        optimizer.zero_grad()
        smoothed.backward(retain_graph=faulty)
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course), facts={"nodes": float(_nodes(smoothed))})


def _nodes(loss: Tensor) -> int:
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [after for after, _ in node.next_functions]
    return len(seen)


class Plain(nn.Module):
    """Many residual layers, with or without a norm at the start of each."""

    def __init__(self, *, norm: bool, width: int = 32, depth: int = 20) -> None:
        super().__init__()
        self.first = nn.Linear(8, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for _ in range(depth))
        self.layers = nn.ModuleList(stack(width, 2 * width, width) for _ in range(depth))
        self.last = nn.LayerNorm(width) if norm else nn.Identity()
        self.out = nn.Linear(width, 1)
        for layer in (part for branch in self.layers for part in branch if isinstance(part, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.out(self.last(x))


def residuals_without_norms(watch: Watch, faulty: bool) -> Outcome:
    """Twenty residual layers in He's initialisation, and nothing that holds their sum."""
    x, y = houses()
    model = Plain(norm=not faulty)
    return descend(watch, model, torch.optim.Adam(model.parameters(), lr=5e-4), x, y)


def decay_of_adamw_in_adam(watch: Watch, faulty: bool) -> Outcome:
    """A weight_decay that AdamW takes times its rate, in Adam, which adds it to the gradient."""
    x, y = spirals()
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=0.3 if faulty else 0.0)
    return fit(watch, model, drawn(x, y, steps=400), functional.cross_entropy, optimizer)


PROGRAMS = (
    Fault(written_out_and_too_fast, ("lr-too-high",), worse(2)),
    Fault(written_out_and_never_cleared, ("missing-zero-grad",), worse(2)),
    Fault(short_memory_by_hand, ("recurrent-vanishing",), worse(2)),
    Fault(all_in_bfloat16, ("bf16-stalled-updates",), worse(1.4)),
    Fault(loss_smoothed_with_its_graph, ("growing-graph",), fact("nodes", least=500, most=50), aside=True),
    Fault(residuals_without_norms, ("missing-normalization", "init-too-large"), worse(2)),
    Fault(decay_of_adamw_in_adam, ("excessive-weight-decay",), worse(2)),
)
