"""Healthy trainings that start from another net or learn from one: adapters, hints, averages, queues, pairs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.program import Healthy
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.village_data import crescents
from tests.zoo.village_data import fabrics
from tests.zoo.village_data import motions
from tests.zoo.village_data import pairs
from tests.zoo.village_data import spots


class Adapted(nn.Module):
    """A layer that is left as it is, and a narrow way past it that adds nothing at first."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.narrow = nn.Sequential(nn.LayerNorm(layer.in_features), nn.Linear(layer.in_features, 8), nn.GELU())
        self.wide = nn.Linear(8, layer.out_features)
        nn.init.zeros_(self.wide.weight)
        nn.init.zeros_(self.wide.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.wide(self.narrow(x))


def adapters_and_a_new_head(watch: Watch) -> Outcome:
    """Only adapters and the head of a trained net learn four ways of moving, where it knew two."""
    x, y = motions()
    one, two = nn.Linear(240, 64), nn.Linear(64, 64)
    trained = nn.Sequential(nn.Flatten(), one, nn.ReLU(), two, nn.ReLU(), nn.Linear(64, 2))
    first = torch.optim.Adam(trained.parameters(), lr=1e-3)
    fit(lambda model: None, trained, pairs(x, y // 2, steps=100), functional.cross_entropy, first)
    model = nn.Sequential(nn.Flatten(), Adapted(one), nn.ReLU(), Adapted(two), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    return fit(watch, model, pairs(x, y, steps=300), functional.cross_entropy, optimizer)


def weave_net(width: int) -> nn.ModuleDict:
    """For fabrics: features and, from their means, a class."""
    body = nn.Sequential(nn.Conv2d(3, width, 4, stride=2), nn.ReLU(), nn.Conv2d(width, width, 3, stride=2), nn.ReLU())
    return nn.ModuleDict({"body": body, "head": nn.Sequential(nn.Flatten(), nn.Linear(9 * width, 5))})


def hints_of_a_teacher(watch: Watch) -> Outcome:
    """A narrow net learns from the features of a wide one, beside the labels; a convolution of its own widens its features."""
    x, y = fabrics()
    teacher = weave_net(24)
    first = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    for pictures, labels in pairs(x, y, steps=80):
        first.zero_grad()
        functional.cross_entropy(teacher["head"](teacher["body"](pictures)), labels).backward()
        first.step()
    teacher.eval().requires_grad_(False)
    student = weave_net(8)
    student["wider"] = nn.Conv2d(8, 24, 1)
    watch(student)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    course = []
    for pictures, labels in pairs(x, y, steps=250):
        features = student["body"](pictures)
        hint = functional.mse_loss(student["wider"](features), teacher["body"](pictures))
        loss = functional.cross_entropy(student["head"](features), labels) + 0.5 * hint
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def mean_teacher(watch: Watch) -> Outcome:
    """Sixteen labels, and for all other points the answers of the student's own moving average, to other noise."""
    x, y = crescents()
    student = nn.Sequential(nn.Linear(2, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2))
    teacher = copy.deepcopy(student).requires_grad_(False)
    watch(student)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    course = []
    for step, (points, _) in enumerate(pairs(x, y, size=48, steps=400)):
        supervised = functional.cross_entropy(student(x[:16]), y[:16])
        wanted = teacher(points + 0.05 * torch.randn_like(points)).softmax(1)
        given = student(points + 0.05 * torch.randn_like(points)).softmax(1)
        loss = supervised + min(1.0, step / 150) * (given - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, new in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(new, 0.02)
        course.append(loss.item())
    return Outcome(tuple(course))


def queue_of_keys(watch: Watch) -> Outcome:
    """Each noisy window finds itself among 256 codes of a queue, which a slow copy of the encoder made (MoCo)."""
    x, _ = motions()
    encoder = nn.Sequential(
        nn.Conv1d(6, 24, 5, stride=2), nn.GELU(), nn.Conv1d(24, 24, 5, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(168, 32)
    )
    slow = copy.deepcopy(encoder).requires_grad_(False)
    watch(encoder)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    with torch.no_grad():
        keys = functional.normalize(slow(x[torch.randint(len(x), (256,))]))
    course = []
    for windows, _ in pairs(x, x, steps=400):
        code = functional.normalize(encoder(windows + 0.2 * torch.randn_like(windows)))
        with torch.no_grad():
            for old, new in zip(slow.parameters(), encoder.parameters(), strict=True):
                old.lerp_(new, 0.05)
            key = functional.normalize(slow(windows + 0.2 * torch.randn_like(windows)))
        likeness = torch.cat([(code * key).sum(1, keepdim=True), code @ keys.T], dim=1) / 0.2
        loss = functional.cross_entropy(likeness, torch.zeros(len(code), dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        keys = torch.cat([keys[len(key) :], key])
        course.append(loss.item())
    return Outcome(tuple(course))


def same_or_another(watch: Watch) -> Outcome:
    """Pairs of windows through one encoder: near where they are of one kind, a margin apart where not (Hadsell et al. 2006)."""
    x, y = motions()
    encoder = nn.Sequential(
        nn.Conv1d(6, 32, 7, stride=2), nn.BatchNorm1d(32), nn.ReLU(), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(64, 48)
    )
    encoder.extend([nn.ReLU(), nn.Linear(48, 8)])
    watch(encoder)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    course = []
    for one, kind in pairs(x, y, size=64, steps=300):
        turn = torch.randperm(64)
        same = (kind == kind[turn]).float()
        first, second = encoder(one), encoder(one[turn])
        distance = ((first - second).square().sum(1) + 1e-6).sqrt()
        apart = (2 - distance).clamp_min(0)
        loss = (same * distance.square() + (1 - same) * apart.square()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


class TwoTowers(nn.Module):
    """Pictures and places to codes of length one, and a learned factor for their likeness."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Sequential(nn.Conv2d(1, 16, 4, stride=4), nn.GELU(), nn.Flatten(), nn.Linear(256, 24))
        self.told = nn.Sequential(nn.Linear(2, 48), nn.GELU(), nn.Linear(48, 24))
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, pictures: Tensor, places: Tensor) -> Tensor:
        codes = functional.normalize(self.seen(pictures)), functional.normalize(self.told(places))
        return self.factor.exp().clamp_max(100) * codes[0] @ codes[1].T


def pictures_and_their_places(watch: Watch) -> Outcome:
    """Which of 32 places belongs to which of 32 pictures, asked both ways round (CLIP)."""
    model = TwoTowers()
    watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    course = []
    for pictures, places in pairs(*spots(), steps=300):
        likeness, order = model(pictures, places), torch.arange(32)
        loss = (functional.cross_entropy(likeness, order) + functional.cross_entropy(likeness.T, order)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        course.append(loss.item())
    return Outcome(tuple(course))


PROGRAMS = (
    Healthy(adapters_and_a_new_head),
    Healthy(hints_of_a_teacher),
    Healthy(mean_teacher),
    Healthy(queue_of_keys),
    Healthy(same_or_another),
    Healthy(pictures_and_their_places),
)
