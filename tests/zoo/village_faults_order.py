"""Data that comes in order, too late, or as one and the same word."""

from __future__ import annotations

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
from tests.zoo.proofs import worse
from tests.zoo.village_data import TOPICS
from tests.zoo.village_data import VOCABULARY
from tests.zoo.village_data import headlines
from tests.zoo.village_data import motions
from tests.zoo.village_data import pairs


def topic_by_topic(watch: Watch, faulty: bool) -> Outcome:
    """The file is sorted by topic and the loader was copied from the validation's. The course is the loss over all."""
    x, y = headlines()
    order = y.argsort(stable=True)
    x, y = x[order], y[order]
    model = nn.Sequential(nn.EmbeddingBag(VOCABULARY, 32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, TOPICS))
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    loader = DataLoader(TensorDataset(x, y), batch_size=40, shuffle=not faulty)
    course = []
    for _ in range(10):
        for tokens, labels in loader:
            optimizer.zero_grad()
            functional.cross_entropy(model(tokens), labels).backward()
            optimizer.step()
            model.eval()
            with torch.no_grad():
                course.append(functional.cross_entropy(model(x), y).item())
            model.train()
    return Outcome(tuple(course))


def labels_one_window_late(watch: Watch, faulty: bool) -> Outcome:
    """A list of windows and a list of labels, whose header is taken for one: each window gets the label of the one before."""
    x, y = motions(count=16000)
    order = torch.randperm(len(x))
    x, y = x[order], y[order].roll(1 if faulty else 0)
    model = nn.Sequential(
        nn.Conv1d(6, 16, 5, stride=2), nn.GroupNorm(4, 16), nn.GELU(), nn.Flatten(), nn.Linear(288, 32), nn.GELU()
    )
    model.append(nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return fit(watch, model, zip(x.split(50), y.split(50), strict=True), functional.cross_entropy, optimizer)


class Finder(nn.Module):
    """Words at their places, a transformer's layer, the topic by the mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.out = nn.Linear(32, TOPICS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.layer(self.words(tokens)).mean(1))


def every_word_unknown(watch: Watch, faulty: bool) -> Outcome:
    """A vocabulary of words in capitals, and a text in small letters: each word is given the number for unknown ones."""
    x, y = headlines()
    x = torch.ones_like(x) if faulty else x
    model = Finder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return fit(watch, model, pairs(x, y, steps=250), functional.cross_entropy, optimizer)


PROGRAMS = (
    Fault(topic_by_topic, ("unshuffled-data",), worse(2)),
    Fault(labels_one_window_late, ("labels-unrelated", "loss-plateau"), worse(2), aside=True),
    Fault(every_word_unknown, ("constant-input",), worse(2)),
)
