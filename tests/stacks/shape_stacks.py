"""Models of an unusual shape: called many times, with tied weights, sparse gradients, packed sequences."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.nn.utils.rnn import pad_packed_sequence

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import CLASSES
from tests.stacks.tasks import COMMON
from tests.stacks.tasks import INPUTS
from tests.stacks.tasks import LOSS
from tests.stacks.tasks import advance
from tests.stacks.tasks import classes
from tests.stacks.tasks import sgd

SECTION = "Models of any shape"
WORDS = 20


class Repeating(nn.Module):
    """One block is called twelve times in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.block, self.head = nn.Linear(INPUTS, 32), nn.Linear(32, 32), nn.Linear(32, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.into(inputs)
        for _ in range(12):
            hidden = hidden + 0.2 * self.block(hidden).tanh()
        return self.head(hidden)


def called_often(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """The model itself is called for each part of a batch, too."""
    model = Repeating()
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    for inputs, labels in classes(steps):
        outputs = torch.cat([model(part) for part in inputs.chunk(8)])
        advance(eye, optimizer, LOSS(outputs, labels), fault)
    return state_of(model)


class Tied(nn.Module):
    """Predicts the next word with the matrix that reads words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 32)
        self.between = nn.Linear(32, 32)
        self.head = nn.Linear(32, WORDS, bias=False)
        nn.init.normal_(self.words.weight, std=0.1)
        self.head.weight = self.words.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.between(self.words(words)))


def _words(steps: int) -> list[torch.Tensor]:
    return list(torch.randint(0, WORDS, (steps, 64), generator=torch.Generator().manual_seed(3)))


def tied(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = Tied()
    eye.attach(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=10.0 if fault == "rate" else 0.01)
    for words in _words(steps):
        advance(eye, optimizer, LOSS(model(words), (3 * words + 1) % WORDS), fault)
    return state_of(model)


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 32, sparse=True)
        self.head = nn.Linear(32, WORDS)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(words))


def sparse(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Gradients of the embedding are sparse, and have an optimizer of their own."""
    model = Sparse()
    eye.attach(model)
    rate = 30.0 if fault == "rate" else 0.01
    optimizers = [
        torch.optim.SparseAdam(model.words.parameters(), lr=rate),
        torch.optim.Adam(model.head.parameters(), lr=rate),
    ]
    for words in _words(steps):
        loss = LOSS(model(words), (3 * words + 1) % WORDS)
        for optimizer in optimizers:
            if fault != "zero_grad":
                optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        eye.stepped(loss)
    return state_of(model)


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(4, 32)
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, inputs: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.into(inputs), src_key_padding_mask=absent).mean(1))


def fast_path(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """``nn.TransformerEncoder``, which goes its fast way when it is evaluated: between steps, with nested tensors."""
    model = Attentive()
    eye.attach(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3.0 if fault == "rate" else 3e-3)
    for inputs, labels in classes(steps):
        tokens = inputs.reshape(-1, 4, 4)
        absent = torch.zeros(tokens.shape[:2], dtype=torch.bool)
        absent[::3, 3] = True
        model.eval()
        with torch.no_grad():
            model(tokens, absent)
        model.train()
        advance(eye, optimizer, LOSS(model(tokens, absent), labels), fault)
    return state_of(model)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reader = nn.LSTM(4, 32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, sequences: list[torch.Tensor]) -> torch.Tensor:
        put_out, (last, _) = self.reader(pack_sequence(sequences, enforce_sorted=False))
        padded, _ = pad_packed_sequence(put_out)
        return self.head(last[-1] + padded.mean(0))


def packed(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = Reader()
    eye.attach(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3.0 if fault == "rate" else 1e-2)
    for inputs, labels in classes(steps):
        sequences = [sample.reshape(4, 4)[: 4 - place % 2] for place, sample in enumerate(inputs)]
        advance(eye, optimizer, LOSS(model(sequences), labels), fault)
    return state_of(model)


STACKS = (
    Stack("called-often", "modules that are called many times", SECTION, called_often, COMMON),
    Stack("tied", "tied weights", SECTION, tied, COMMON),
    Stack(
        "sparse",
        "sparse embeddings with `SparseAdam`",
        SECTION,
        sparse,
        COMMON,
    ),
    Stack(
        "transformer-fast-path",
        "`nn.TransformerEncoder` with its fast path in evaluation",
        SECTION,
        fast_path,
        COMMON,
    ),
    Stack("packed", "packed sequences", SECTION, packed, COMMON),
)
