"""Healthy trainings of models with something that a rule could take for a fault: ties, sparsity, gates, experts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.models import GPT
from tests.zoo.models import CharacterLSTM
from tests.zoo.models import ViT
from tests.zoo.models import convnet
from tests.zoo.models import mlp
from tests.zoo.program import Healthy
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit


def tied_embeddings(watch: Watch) -> Outcome:
    model = GPT(data.vocabulary_size(), tied=True, dropout=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return fit(watch, model, data.characters(steps=200), functional.cross_entropy, optimizer)


def vision_transformer(watch: Watch) -> Outcome:
    x, y = data.digits()
    model = ViT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=40)
    batches = data.batches(data.standardised(x), y, steps=200)
    return fit(watch, model, batches, functional.cross_entropy, optimizer, each=lambda step: schedule.step())


def sparse_embedding_adagrad(watch: Watch) -> Outcome:
    """Bags of words over 2,000 words, most of which no batch holds."""
    words = torch.randint(2000, (1500, 12))
    y = (words % 2).sum(1).gt(6).long()
    model = nn.Sequential(nn.EmbeddingBag(2000, 16, mode="mean", sparse=True), nn.Linear(16, 2))
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    return fit(watch, model, data.batches(words, y, steps=300), functional.cross_entropy, optimizer)


class Mixture(nn.Module):
    """Six experts, of which each sample visits the two that its gate prefers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 32)
        self.gate = nn.Linear(32, 6)
        self.experts = nn.ModuleList(mlp(32, 32, 32) for _ in range(6))
        self.last = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        weights, chosen = self.gate(x).topk(2, dim=1)
        weights = weights.softmax(dim=1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows, place = (chosen == i).nonzero(as_tuple=True)
            if len(rows):
                out = out.index_add(0, rows, weights[rows, place, None] * expert(x[rows]))
        return self.last(x + out)


def mixture_of_experts(watch: Watch) -> Outcome:
    model = Mixture()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(watch, model, data.batches(*data.clusters(), steps=200), functional.cross_entropy, optimizer)


def gru_adam(watch: Watch) -> Outcome:
    model = CharacterLSTM(data.vocabulary_size(), cell=nn.GRU)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return fit(watch, model, data.characters(steps=200), functional.cross_entropy, optimizer)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate, self.last = nn.Linear(20, 64), nn.Linear(20, 64), nn.Linear(64, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.value(x) * self.sigmoid(4 * self.gate(x)))


def gated_units_bce(watch: Watch) -> Outcome:
    x, y = data.clusters()
    model = Gated()
    target = (y < 5).float().unsqueeze(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return fit(watch, model, data.batches(x, target, steps=250), functional.binary_cross_entropy_with_logits, optimizer)


def raw_pixels_into_batchnorm(watch: Watch) -> Outcome:
    x, y = data.digits()
    model = nn.Sequential(nn.BatchNorm2d(1), *convnet())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return fit(watch, model, data.batches(x, y, steps=120), functional.cross_entropy, optimizer)


PROGRAMS = (
    Healthy(tied_embeddings, falls_to=0.8),
    Healthy(vision_transformer, falls_to=0.6),
    Healthy(sparse_embedding_adagrad, falls_to=0.9),
    Healthy(mixture_of_experts, falls_to=0.3),
    Healthy(gru_adam, falls_to=0.7),
    Healthy(gated_units_bce, falls_to=0.3),
    Healthy(raw_pixels_into_batchnorm, falls_to=0.3),
)
