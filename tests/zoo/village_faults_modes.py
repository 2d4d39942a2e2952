"""Modes that are not switched, norms over too little, and things that outlive the step that they belong to."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import fact
from tests.zoo.proofs import worse
from tests.zoo.village_data import crescents
from tests.zoo.village_data import fabrics
from tests.zoo.village_data import loans
from tests.zoo.village_data import motions
from tests.zoo.village_data import pairs


def normed(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """A convolution, its batch norm and a ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """As tutorials have it: eval() at the start, and nothing at the end."""
    model.eval()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def guessed_before_learning(watch: Watch, faulty: bool) -> Outcome:
    """The accuracy of the untrained net is printed first, which calls eval(); train() isn't called in any epoch."""
    x, y = fabrics()
    model = nn.Sequential(normed(3, 16, stride=2), *(normed(16, 16) for _ in range(5)))
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)])
    watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(TensorDataset(x[:500], y[:500]), batch_size=50, shuffle=True)
    accuracy(model, x[500:], y[500:])
    course = []
    for _ in range(12):
        if not faulty:
            model.train()
        for pictures, labels in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(pictures), labels)
            loss.backward()
            optimizer.step()
            course.append(loss.item())
        accuracy(model, x[500:], y[500:])
    return Outcome(tuple(course))


def looked_at_by_kind(watch: Watch, faulty: bool) -> Outcome:
    """After each epoch a loss for each way of moving, without eval(): dropout, and norms over one kind."""
    x, y = motions()
    model = nn.Sequential(
        nn.Conv1d(6, 24, 5, stride=2),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv1d(24, 24, 5, stride=2),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        nn.Linear(48, 4),
    )
    watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = DataLoader(TensorDataset(x[:640], y[:640]), batch_size=32, shuffle=True, drop_last=True)
    course, told = [], []
    for _ in range(15):
        for waves, labels in loader:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(waves), labels)
            loss.backward()
            optimizer.step()
            course.append(loss.item())
        model.train(faulty)
        with torch.inference_mode():
            kinds = [640 + kind + 4 * torch.arange(40) for kind in range(4)]
            told.append(sum(functional.cross_entropy(model(x[rows]), y[rows]).item() for rows in kinds) / 4)
        model.train()
    return Outcome(tuple(course), facts={"told": sum(told[-3:]) / 3})


def norm_over_one_place(watch: Watch, faulty: bool) -> Outcome:
    """Pictures are halved until one place is left, with a batch norm after each halving; memory is enough for two of them."""
    x, y = fabrics()
    model = nn.Sequential(*(normed(a, b, stride=2) for a, b in ((3, 12), (12, 16), (16, 24), (24, 32))))
    model.extend([nn.Flatten(), nn.Linear(32, 5)])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(watch, model, pairs(x, y, size=2 if faulty else 32, steps=300), functional.cross_entropy, optimizer)


def drawn_by_xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def made_anew_each_epoch(watch: Watch, faulty: bool) -> Outcome:
    """model.apply(…) of the initialisation got into the loop over epochs."""
    x, y = loans()
    model = nn.Sequential(nn.Linear(12, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1), nn.Flatten(0))
    model.apply(drawn_by_xavier)
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)
    course = []
    for _ in range(15):
        if faulty:
            model.apply(drawn_by_xavier)
        for inputs, labels in loader:
            loss = functional.binary_cross_entropy_with_logits(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            course.append(loss.item())
    return Outcome(tuple(course))


class Experts(nn.Module):
    """Four small nets, mixed by a gate's softmax; gives the answer and the gate's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(2, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.gate(x).softmax(1)
        answers = torch.stack([expert(x) for expert in self.experts], dim=1)
        return (weights.unsqueeze(2) * answers).sum(1), weights


def size(loss: Tensor) -> int:
    """Nodes of the graph under a loss."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(seen)


def usage_with_its_graph(watch: Watch, faulty: bool) -> Outcome:
    """A running mean of how much each expert is used, whose graph is kept; retain_graph=True because the error said so."""
    x, y = crescents()
    model = Experts()
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    usage = torch.full((4,), 0.25)
    course, nodes = [], 0
    for inputs, labels in pairs(x, y, steps=250):
        answer, weights = model(inputs)
        usage = 0.9 * usage + 0.1 * weights.mean(0)
        error = functional.cross_entropy(answer, labels)
        loss = error + 0.1 * (4 * usage.square().sum() - 1)
        optimizer.zero_grad()
        loss.backward(retain_graph=faulty)
        optimizer.step()
        if not faulty:
            usage = usage.detach()
        course.append(error.item())
        nodes = size(loss)
    return replace(Outcome(tuple(course)), facts={"nodes": nodes})


PROGRAMS = (
    Fault(guessed_before_learning, ("eval-mode-training",), worse(1.5)),
    Fault(looked_at_by_kind, ("train-mode-eval",), fact("told", least=0.7, most=0.5), aside=True),
    Fault(norm_over_one_place, ("tiny-batch-norm",), worse(2)),
    Fault(made_anew_each_epoch, ("weights-changed-outside-optimizer",), worse(2), begins=30),
    Fault(usage_with_its_graph, ("growing-graph",), fact("nodes", least=1000, most=100), aside=True),
)
