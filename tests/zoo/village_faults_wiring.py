"""Optimizers that clear or hold only a part, and graphs that are cut or never entered."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import still
from tests.zoo.proofs import worse
from tests.zoo.village_data import TOPICS
from tests.zoo.village_data import VOCABULARY
from tests.zoo.village_data import crescents
from tests.zoo.village_data import drawn
from tests.zoo.village_data import fabrics
from tests.zoo.village_data import headlines
from tests.zoo.village_data import motions
from tests.zoo.village_data import pairs
from tests.zoo.village_data import spots


def one_of_two_cleared(watch: Watch, faulty: bool) -> Outcome:
    """A body and a head with an optimizer each, and a zero_grad() of the head's alone."""
    x, y = crescents()
    body = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    head = nn.Linear(32, 1)
    model = nn.Sequential(body, head)
    watch(model)
    slow = torch.optim.SGD(body.parameters(), lr=0.1, momentum=0.9)
    fast = torch.optim.Adam(head.parameters(), lr=5e-3)
    course = []
    for inputs, labels in pairs(x, y, steps=400):
        loss = functional.binary_cross_entropy_with_logits(model(inputs).squeeze(1), labels.float())
        fast.zero_grad()
        if not faulty:
            slow.zero_grad()
        loss.backward()
        slow.step()
        fast.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def sensor_net() -> nn.Sequential:
    """For motions: two strided convolutions, the largest over time, four classes."""
    return nn.Sequential(
        nn.Conv1d(6, 24, 5, stride=2),
        nn.LeakyReLU(0.1),
        nn.Conv1d(24, 32, 5, stride=2),
        nn.LeakyReLU(0.1),
        nn.AdaptiveMaxPool1d(2),
        nn.Flatten(),
        nn.Linear(64, 4),
    )


def pieces_never_cleared(watch: Watch, faulty: bool) -> Outcome:
    """Four pieces make a step; the gradient is meant to add up over these four and adds up over all there ever were."""
    x, y = motions()
    model = sensor_net()
    watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    course = []
    for i, (waves, labels) in enumerate(pairs(x, y, size=16, steps=800)):
        loss = functional.cross_entropy(model(waves), labels)
        (loss / 4).backward()
        if i % 4 == 3:
            optimizer.step()
            if not faulty:
                optimizer.zero_grad()
        course.append(loss.item())
    return Outcome(tuple(course))


def unfrozen_without_telling(watch: Watch, faulty: bool) -> Outcome:
    """The body of a trained net is unfrozen at step 60; the optimizer was made of what could be trained before that."""
    x, y = fabrics()
    body = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.GELU(), nn.Conv2d(16, 16, 3, stride=2), nn.GELU(), nn.AvgPool2d(3), nn.Flatten()
    )
    first = nn.Sequential(body, nn.Linear(16, 2))
    fit(lambda model: None, first, pairs(x, y // 3, steps=60), functional.cross_entropy, torch.optim.Adam(first.parameters()))
    model = nn.Sequential(body.requires_grad_(False), nn.Linear(16, 5))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    watch(model)
    course = []
    for step, (pictures, labels) in enumerate(pairs(x, y, steps=300)):
        if step == 60:
            body.requires_grad_(True)
            if not faulty:
                optimizer.add_param_group({"params": list(body.parameters()), "lr": 3e-3})
        loss = functional.cross_entropy(model(pictures), labels)
        model.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def last_optimizer_wins(watch: Watch, faulty: bool) -> Outcome:
    """A loop over the parts makes an optimizer of each, under one name, so that only the last is left."""
    x, y = spots()
    eye = nn.Sequential(nn.Conv2d(1, 8, 5, stride=3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Flatten())
    model = nn.Sequential(eye, nn.Linear(32, 2))
    if faulty:
        for part in model:
            optimizer = torch.optim.AdamW(part.parameters(), lr=3e-3)
    else:
        optimizer = torch.optim.AdamW(chain.from_iterable(part.parameters() for part in model), lr=3e-3)
    return fit(watch, model, pairs(x, y, steps=400), functional.mse_loss, optimizer)


def error_of_the_predictions(watch: Watch, faulty: bool) -> Outcome:
    """The loss is of argmax's answers; backward() complains and gets loss.requires_grad = True. The course is the entropy."""
    x, y = motions()
    model = nn.Sequential(nn.Flatten(), nn.Linear(240, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    course = []
    for waves, labels in pairs(x, y, steps=300):
        optimizer.zero_grad()
        output = model(waves)
        entropy = functional.cross_entropy(output, labels)
        if faulty:
            loss = functional.mse_loss(output.argmax(1).float(), labels.float())
            loss.requires_grad = True
        else:
            loss = entropy
        loss.backward()
        optimizer.step()
        course.append(entropy.item())
    return Outcome(tuple(course))


class WeaveAndColour(nn.Module):
    """What a fabric is woven like, five classes, and how red, green and blue it is, by a head each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.ELU(), nn.Flatten(), nn.Linear(256, 48), nn.ELU())
        self.weave = nn.Linear(48, 5)
        self.colour = nn.Sequential(nn.Linear(48, 24), nn.ELU(), nn.Linear(24, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shared = self.stem(x)
        return self.weave(shared), self.colour(shared)


def second_task_as_a_number(watch: Watch, faulty: bool) -> Outcome:
    """Two losses are added up, of which one is an item() for the log. The course is that one."""
    x, y = fabrics()
    spread = x.std(dim=(2, 3))
    strengths = (spread - spread.mean()) / spread.std()
    model = WeaveAndColour()
    watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    course = []
    for pictures, labels, strength in drawn(x, y, strengths, steps=400):
        weave, colour = model(pictures)
        second = functional.mse_loss(colour, strength)
        loss = functional.cross_entropy(weave, labels) + (second.item() if faulty else second)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(second.item())
    return Outcome(tuple(course))


class Summed(nn.Module):
    """Words' vectors, weighted by a score of each or all alike, and a topic."""

    def __init__(self, *, scored: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 24)
        self.score = nn.Sequential(nn.Linear(24, 48), nn.Tanh(), nn.Linear(48, 1))
        self.out = nn.Linear(24, TOPICS)
        self.scored = scored

    def forward(self, tokens: Tensor) -> Tensor:
        words = self.words(tokens)
        if self.scored:
            return self.out((self.score(words).softmax(1) * words).sum(1))
        return self.out(words.mean(1))


def scores_never_asked(watch: Watch, faulty: bool) -> Outcome:
    """__init__() makes an attention and forward() takes the mean."""
    x, y = headlines()
    model = Summed(scored=not faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return fit(watch, model, pairs(x, y, steps=250), functional.cross_entropy, optimizer)


PROGRAMS = (
    Fault(one_of_two_cleared, ("missing-zero-grad",), worse(2)),
    Fault(pieces_never_cleared, ("missing-zero-grad",), worse(2)),
    Fault(unfrozen_without_telling, ("optimizer-misses-parameters",), worse(1.5), begins=60),
    Fault(last_optimizer_wins, ("optimizer-misses-parameters",), worse(1.5)),
    Fault(error_of_the_predictions, ("detached-parameters",), worse(2)),
    # An aside: of a head that runs and that no loss uses, nobody can tell whether it was meant to be trained.
    Fault(second_task_as_a_number, ("detached-parameters",), worse(2), aside=True),
    Fault(scores_never_asked, ("idle-parameters",), still("score.0.weight", "score.2.weight"), aside=True),
)
