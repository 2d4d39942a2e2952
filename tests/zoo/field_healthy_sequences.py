"""Healthy trainings on sequences, sets, graphs and pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.field_data import SYMBOLS
from tests.zoo.field_data import TONES
from tests.zoo.field_data import first_of_many
from tests.zoo.field_data import ratings
from tests.zoo.field_data import sequences
from tests.zoo.field_faults_sequences import Spotter
from tests.zoo.field_faults_sequences import connectionist
from tests.zoo.field_faults_sequences import spoken
from tests.zoo.field_models import Seq2Seq
from tests.zoo.models import mlp
from tests.zoo.program import Batches
from tests.zoo.program import Healthy
from tests.zoo.program import Loop
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit

SYMBOL_MASK, SYMBOL_PAD = SYMBOLS, SYMBOLS + 1


def seq2seq_adamax(watch: Watch) -> Outcome:
    """A sequence read by one GRU and written backwards by another, which is told the symbols before."""
    model = Seq2Seq()
    optimizer = torch.optim.Adamax(model.parameters(), lr=1e-2)
    return fit(watch, model, sequences(steps=200), functional.cross_entropy, optimizer, clip=5.0)


def spotted_symbols(watch: Watch) -> Outcome:
    """A recurrent net in both directions under the CTC loss."""
    model = Spotter(logs=True)
    loop = Loop(watch, model, connectionist, torch.optim.RMSprop(model.parameters(), lr=2e-3))
    for x, symbols in spoken(steps=200):
        loop.turn(x, symbols, clip=2.0)
    return loop.outcome()


class Masked(nn.Module):
    """Torch's own encoder with its norms behind each part, as of old, and padding."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(SYMBOLS + 2, 32), nn.Embedding(12, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, SYMBOLS)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1]))
        x = self.encoder(x, src_key_padding_mask=tokens == SYMBOL_PAD)
        return self.head(x).transpose(1, 2)


def masked_symbols(watch: Watch) -> Outcome:
    """Periodic sequences of several lengths with a sixth of the symbols hidden; a warm-up, then a linear fall."""

    def batches() -> Batches:
        for _ in range(250):
            period = torch.randint(SYMBOLS, (32, 3))
            tokens = period.repeat(1, 4)
            there = torch.arange(12) < torch.randint(7, 13, (32, 1))
            hidden = (torch.rand(32, 12) < 0.17) & there
            hidden[:, 0] = True
            shown = tokens.masked_fill(hidden, SYMBOL_MASK).masked_fill(~there, SYMBOL_PAD)
            yield shown, tokens.masked_fill(~hidden, -100)

    model = Masked()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 40, max((250 - step) / 210, 0.01)))
    return fit(watch, model, batches(), functional.cross_entropy, optimizer, clip=1.0, each=lambda step: schedule.step())


def remembered_first_input(watch: Watch) -> Outcome:
    """Identity weights and ReLUs in a recurrent layer, over 25 steps, which has to remember the first one."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.head = nn.RNN(2, 32, nonlinearity="relu", batch_first=True), nn.Linear(32, 2)
            nn.init.eye_(self.recurrent.weight_hh_l0)
            nn.init.normal_(self.recurrent.weight_ih_l0, std=0.1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.recurrent(x)[0][:, -1])

    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return fit(watch, model, first_of_many(steps=300), functional.cross_entropy, optimizer, clip=1.0)


class Citations(nn.Module):
    """Two graph convolutions over one graph, dropout between them."""

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.first, self.second, self.dropout = nn.Linear(40, 32), nn.Linear(32, 4), nn.Dropout(0.5)
        self.register_buffer("adjacency", adjacency / adjacency.sum(1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.adjacency @ self.second(self.dropout(functional.relu(self.adjacency @ self.first(x))))


def one_graph_few_labels(watch: Watch) -> Outcome:
    """All nodes of a graph in every step, of which a tenth have labels."""
    labels = torch.arange(200) % 4
    alike = labels.unsqueeze(0) == labels.unsqueeze(1)
    edges = (torch.rand(200, 200) < torch.where(alike, 0.08, 0.01)).float().triu(1)
    words = (torch.rand(200, 40) < torch.where(torch.arange(40) % 4 == labels.unsqueeze(1), 0.35, 0.1)).float()
    model = Citations(edges + edges.T + torch.eye(200))
    known = torch.randperm(200)[:40]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output[known], target[known])

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-4)
    return fit(watch, model, ((words / words.sum(1, keepdim=True).clamp_min(1), labels) for _ in range(200)), loss, optimizer)


class DeepSet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each, self.whole = mlp(3, 48, 48, activation=nn.GELU), mlp(96, 48, 1, activation=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        x = self.each(x)
        return self.whole(torch.cat([x.amax(1), x.mean(1)], dim=1))


def sets_of_points(watch: Watch) -> Outcome:
    """How wide a cloud of points is, by a net that does not mind their order; averaged descent."""
    width = 0.3 + 2 * torch.rand(1500, 1, 1)
    points = width * torch.randn(1500, 12, 3)
    target = (width.squeeze(2) - width.mean()) / width.std()
    model = DeepSet()
    optimizer = torch.optim.ASGD(model.parameters(), lr=0.1)
    return fit(watch, model, data.batches(points, target, steps=300), functional.mse_loss, optimizer)


class Factors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(60, 6, sparse=True), nn.Embedding(40, 6, sparse=True)
        for embedding in (self.users, self.items):
            nn.init.normal_(embedding.weight, std=0.3)

    def forward(self, pairs: Tensor) -> Tensor:
        return (self.users(pairs[:, 0]) * self.items(pairs[:, 1])).sum(1)


def factors_sparse_adam(watch: Watch) -> Outcome:
    """Ratings as products of embeddings that have sparse gradients."""
    model = Factors()
    batches = data.batches(*ratings(), size=128, steps=300)
    return fit(watch, model, batches, functional.mse_loss, torch.optim.SparseAdam(list(model.parameters()), lr=2e-2))


def triplets_of_hardest(watch: Watch) -> Outcome:
    """Of each sample the furthest of its own and the nearest of the others, a margin apart."""
    model = mlp(20, 64, 16, activation=nn.GELU)

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        distances = torch.cdist(output, output).clamp_min(1e-4)
        own = labels.unsqueeze(0) == labels.unsqueeze(1)
        furthest = distances.masked_fill(~own, -math.inf).amax(1)
        nearest = distances.masked_fill(own, math.inf).amin(1)
        return functional.softplus(furthest - nearest).mean()

    return fit(watch, model, data.batches(*data.clusters(), steps=300), loss, torch.optim.Adadelta(model.parameters(), lr=1.0))


def whole_text_at_once(watch: Watch) -> Outcome:
    """Convolutions with holes over symbols of a simple grammar, each predicted from those before."""

    class Holes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Embedding(TONES, 24)
            self.layers = nn.ModuleList(nn.Conv1d(24, 48, 2, dilation=2**i) for i in range(4))
            self.head = nn.Conv1d(24, TONES, 1)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.token(tokens).transpose(1, 2)
            for i, layer in enumerate(self.layers):
                x = x + functional.glu(layer(functional.pad(x, (2**i, 0))), dim=1)
            return self.head(x)

    def batches() -> Batches:
        for _ in range(250):
            tokens = [torch.randint(TONES, (32,)) for _ in range(5)]
            while len(tokens) < 30:
                step = (tokens[-1] + tokens[-5] + (torch.rand(32) < 0.1)) % TONES
                tokens.append(step)
            text = torch.stack(tokens, dim=1)
            yield text[:, :-1], text[:, 1:]

    model = Holes()
    optimizer = torch.optim.NAdam(model.parameters(), lr=5e-3)
    return fit(watch, model, batches(), functional.cross_entropy, optimizer)


PROGRAMS = (
    Healthy(seq2seq_adamax, falls_to=0.4),
    Healthy(spotted_symbols, falls_to=0.3),
    Healthy(masked_symbols, falls_to=0.8),
    Healthy(remembered_first_input, falls_to=0.5),
    Healthy(one_graph_few_labels, falls_to=0.6),
    Healthy(sets_of_points, falls_to=0.5),
    Healthy(factors_sparse_adam, falls_to=0.3),
    Healthy(triplets_of_hardest, falls_to=0.5),
    Healthy(whole_text_at_once, falls_to=0.7),
)
