"""Torch's optimizers, and the ways in which each can be asked to do its work."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import BATCH
from tests.stacks.tasks import CLASSES
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron

SECTION = "Optimizers"
WORDS = 200
Make = Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]


def usual(make: Make, right: float, *, high: float, zeros: bool = False) -> Callable[[Eye, str, int], dict[str, torch.Tensor]]:
    """The usual loop with an optimizer at the ``right`` rate, or at one that is too ``high``."""

    def train(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
        model = perceptron()
        eye.attach(model)
        held = list(model.parameters())[2 if fault == "forgotten" else 0 :]
        optimizer = make(held, high if fault == "rate" else right)
        for inputs, labels in classes(steps):
            if fault != "zero_grad":
                optimizer.zero_grad(set_to_none=not zeros)
            loss = functional.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            eye.stepped(loss)
        return state_of(model)

    return train


def muon(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Muon for the matrices, AdamW for the rest."""
    model = perceptron()
    eye.attach(model)
    times = 300 if fault == "rate" else 1
    optimizers = [
        torch.optim.Muon([p for p in model.parameters() if p.dim() == 2], lr=1e-2 * times, weight_decay=0.0),
        torch.optim.AdamW([p for p in model.parameters() if p.dim() != 2], lr=3e-3 * times, weight_decay=0.0),
    ]
    for inputs, labels in classes(steps):
        if fault != "zero_grad":
            for optimizer in optimizers:
                optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        eye.stepped(loss)
    return state_of(model)


def sparse(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Embeddings with sparse gradients under SparseAdam, the rest under Adam."""
    embedding, head = nn.Embedding(WORDS, 16, sparse=True), nn.Linear(16, CLASSES)
    model = nn.ModuleDict({"embedding": embedding, "head": head})
    eye.attach(model)
    times = 300 if fault == "rate" else 1
    optimizers = [
        torch.optim.SparseAdam(embedding.parameters(), lr=2e-2 * times),
        torch.optim.Adam(head.parameters(), lr=1e-2 * times),
    ]
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        words = torch.randint(WORDS, (BATCH, 3), generator=generator)
        for optimizer in optimizers[fault == "forgotten" :]:
            optimizer.zero_grad()
        loss = functional.cross_entropy(head(embedding(words).mean(1)), words[:, 0] % CLASSES)
        loss.backward()
        for optimizer in optimizers[fault == "forgotten" :]:
            optimizer.step()
        eye.stepped(loss)
    return state_of(model)


def _stack(
    name: str,
    title: str,
    train: Callable[[Eye, str, int], dict[str, torch.Tensor]],
    faults: tuple[str, ...] = ("rate", "zero_grad"),
) -> Stack:
    rules = {"rate": "lr-too-high", "zero_grad": "missing-zero-grad", "forgotten": "optimizer-misses-parameters"}
    named = {fault: rules[fault] for fault in faults}
    return Stack(name=name, title=title, section=SECTION, train=train, faults=named, steps=60)


def _adamw(right: float, **options: bool) -> Callable[[Eye, str, int], dict[str, torch.Tensor]]:
    return usual(lambda parameters, rate: torch.optim.AdamW(parameters, lr=rate, **options), right, high=1.0)


def _sgd(**options: bool) -> Callable[[Eye, str, int], dict[str, torch.Tensor]]:
    return usual(lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=0.9, **options), 0.1, high=30.0)


def _tensor_rate(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=torch.tensor(rate), foreach=False)


STACKS = (
    _stack("sgd-fused", "SGD, `fused=True`", _sgd(fused=True)),
    _stack("sgd-foreach", "SGD, `foreach=True`", _sgd(foreach=True)),
    _stack("sgd-single", "SGD, `foreach=False`", _sgd(foreach=False)),
    _stack("adamw-fused", "AdamW, `fused=True`", _adamw(3e-3, fused=True)),
    _stack("adamw-foreach", "AdamW, `foreach=True`", _adamw(3e-3, foreach=True)),
    _stack("adamw-single", "AdamW, `foreach=False`", _adamw(3e-3, foreach=False)),
    _stack("adamw-amsgrad", "AdamW, `amsgrad=True`", _adamw(3e-3, amsgrad=True)),
    _stack("adamw-tensor-rate", "AdamW, the rate a tensor", usual(_tensor_rate, 3e-3, high=1.0)),
    _stack("set-to-zero", "`zero_grad(set_to_none=False)`", usual(torch.optim.SGD, 0.1, high=30.0, zeros=True)),
    _stack("adagrad", "Adagrad", usual(torch.optim.Adagrad, 3e-2, high=10.0)),
    _stack("rmsprop", "RMSprop", usual(torch.optim.RMSprop, 1e-3, high=1.0)),
    _stack("nadam", "NAdam", usual(torch.optim.NAdam, 2e-3, high=1.0)),
    _stack("radam", "RAdam", usual(torch.optim.RAdam, 3e-3, high=100.0)),
    _stack("adamax", "Adamax", usual(torch.optim.Adamax, 3e-3, high=1.0)),
    _stack("adadelta", "Adadelta", usual(torch.optim.Adadelta, 1.0, high=1000.0)),
    _stack("asgd", "ASGD", usual(torch.optim.ASGD, 0.1, high=30.0)),
    _stack("rprop", "Rprop", usual(torch.optim.Rprop, 1e-3, high=3.0)),
    # Adafactor cuts rates at one over the root of the step: none is too high.
    _stack("adafactor", "Adafactor", usual(torch.optim.Adafactor, 3e-2, high=3e-2), ("zero_grad", "forgotten")),
    _stack("muon", "Muon for matrices, AdamW for the rest", muon),
    _stack("sparse-adam", "SparseAdam for embeddings, Adam for the rest", sparse, ("rate", "forgotten")),
)
