"""Where numbers end or say nothing: roots, angles, half precision, weights that are all alike, labels of others."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.field_data import graphs
from tests.zoo.field_data import ratings
from tests.zoo.field_data import tags
from tests.zoo.field_models import GraphNet
from tests.zoo.models import he
from tests.zoo.models import mlp
from tests.zoo.program import Batches
from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import not_finite
from tests.zoo.proofs import worse


def advantage_of_one(watch: Watch, faulty: bool) -> Outcome:
    """Rewards are standardised within each group; the group of step 60 has one member, whose deviation is 0 / 0."""
    policy = mlp(6, 32, 4, activation=nn.Tanh)
    best = torch.randn(6, 4)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    watch(policy)
    course = []
    for step in range(250):
        x = torch.randn(1 if faulty and step == 60 else 48, 6)
        choice = torch.distributions.Categorical(logits=policy(x), validate_args=False)
        arms = choice.sample() if bool(choice.logits.isfinite().all()) else torch.zeros(len(x)).long()
        rewards = (arms == (x @ best).argmax(1)).float()
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
        optimizer.zero_grad()
        loss = -(choice.log_prob(arms) * advantages).mean()
        loss.backward()
        optimizer.step()
        course.append(float(1.05 - rewards.mean() + 0 * loss.detach()))
    return Outcome(tuple(course))


class Compressed(nn.Module):
    """The root of what is positive, by torch.where, which hides the NaN from the forward pass and not from the backward one."""

    def __init__(self, *, safe: bool) -> None:
        super().__init__()
        self.first, self.second, self.safe = nn.Linear(24, 64), nn.Linear(64, 12), safe

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        inner = x.clamp_min(1e-3) if self.safe else x
        return self.second(torch.where(x > 1e-3, (inner + 1e-6).sqrt(), torch.zeros_like(x)))


def where_around_a_root(watch: Watch, faulty: bool) -> Outcome:
    x, y = tags()
    model = Compressed(safe=not faulty)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    return fit(watch, model, data.batches(x, y, steps=150), functional.binary_cross_entropy_with_logits, optimizer)


def angle_to_itself(watch: Watch, faulty: bool) -> Outcome:
    """Angles between embeddings; from step 25 on a batch holds one sample twice, and acos has no slope at 1."""
    x, y = data.clusters()
    model = mlp(20, 48, 8, activation=nn.SiLU)

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        directions = functional.normalize(output, dim=1)
        cosines = (directions * directions.roll(1, 0)).sum(1)
        limit = 1.0 if faulty else 1 - 1e-4
        angles = torch.acos(cosines.clamp(-limit, limit))
        alike = (labels == labels.roll(1)).float()
        return (alike * angles + (1 - alike) * (1.5 - angles).clamp_min(0)).mean()

    def batches() -> Batches:
        for step, (inputs, labels) in enumerate(data.batches(x, y, steps=150)):
            if step >= 25:
                inputs[7], labels[7] = inputs[6], labels[6]
            yield inputs, labels

    return fit(watch, model, batches(), loss, torch.optim.Adam(model.parameters(), lr=3e-3))


def logarithm_of_a_count(watch: Watch, faulty: bool) -> Outcome:
    """Counts go in as logarithms; a count of zero comes at step 40."""
    rates = torch.rand(1500, 12) * 3
    counts = torch.poisson(20 * rates + 6) + 1
    target = (rates[:, :1] * rates[:, 1:2] - rates[:, 2:3]) / 2

    def batches() -> Batches:
        for step, (inputs, numbers) in enumerate(data.batches(counts, target, steps=250)):
            if step == 40:
                inputs[5, 2] = 0
            yield (inputs.log() if faulty else inputs.log1p()) - 3, numbers

    model = mlp(12, 48, 1, activation=nn.Hardswish)
    return fit(watch, model, batches(), functional.huber_loss, torch.optim.Adam(model.parameters(), lr=5e-3))


class Scaled(nn.Module):
    """Divides by the root of the sum of squares, in the numbers' own precision or in float32."""

    def __init__(self, *, own: bool) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.own else x.float()
        return (wide * 8 / (wide.square().sum(1, keepdim=True).sqrt() + 1e-3)).to(x.dtype)


def squares_in_half(watch: Watch, faulty: bool) -> Outcome:
    """A norm by hand in a model in float16; from step 50 on the squares of large samples add up to more than 65,504."""
    x, y = data.clusters()
    model = nn.Sequential(he(nn.Linear(20, 128)), nn.ReLU(), Scaled(own=faulty), nn.Linear(128, 10)).half()

    def batches() -> Batches:
        for step, (inputs, labels) in enumerate(data.batches(x, y, steps=250)):
            yield (inputs * (30 if step >= 50 else 1)).half(), labels

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(output.float(), labels)

    return fit(watch, model, batches(), loss, torch.optim.SGD(model.parameters(), lr=0.2))


class Picked(nn.Module):
    """Mixes values by a softmax of its own over how alike a sample is to each of some prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes, self.values = nn.Parameter(torch.randn(40, 20)), nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        weights = (x @ self.prototypes.T / 2).exp()
        return self.values(weights / weights.sum(1, keepdim=True))


def softmax_by_hand_in_half(watch: Watch, faulty: bool) -> Outcome:
    """Exponentials that float32 holds and float16 does not."""
    x, y = data.clusters()
    kind = torch.float16 if faulty else torch.float32
    model = Picked().to(kind)

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(output.float(), labels)

    return fit(watch, model, data.batches(x.to(kind), y, steps=250), loss, torch.optim.SGD(model.parameters(), lr=1.0))


def tags_in_bfloat16(watch: Watch, faulty: bool) -> Outcome:
    """All weights in bfloat16, for memory's sake, and a rate for fine-tuning."""
    x, y = tags()
    kind = torch.bfloat16 if faulty else torch.float32
    model = mlp(24, 256, 12, activation=nn.SELU).to(kind)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(output.float(), target)

    optimizer = torch.optim.NAdam(model.parameters(), lr=1e-4)
    return fit(watch, model, data.batches(x.to(kind), y, steps=500), loss, optimizer)


def views_of_others(watch: Watch, faulty: bool) -> Outcome:
    """InfoNCE over two views of each sample, of which the second was shuffled once more."""
    x, _ = data.clusters()
    model = mlp(20, 64, 16, activation=nn.GELU)
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    course = []
    for inputs, _ in data.batches(x, x, steps=200):
        order = torch.randperm(64) if faulty else torch.arange(64)
        views = torch.cat([inputs + 0.2 * torch.randn_like(inputs), (inputs + 0.2 * torch.randn_like(inputs))[order]])
        first, second = functional.normalize(model(views), dim=1).chunk(2)
        loss = functional.cross_entropy(first @ second.T / 0.2, torch.arange(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(float(loss.detach()))
    return Outcome(tuple(course))


class Taste(nn.Module):
    """Products of an embedding of each user and of each item, through a small net."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(60, 12), nn.Embedding(40, 12)
        self.head = mlp(12, 24, 1, activation=nn.SiLU)

    def forward(self, pairs: Tensor) -> Tensor:
        return self.head(self.users(pairs[:, 0]) * self.items(pairs[:, 1]))


def ratings_of_others(watch: Watch, faulty: bool) -> Outcome:
    """Ratings that were sorted by another column than the pairs they belong to, and that come anew in each epoch."""
    pairs, stars = ratings()

    def batches() -> Batches:
        for chosen, numbers in data.batches(pairs, stars.unsqueeze(1), size=128, steps=300):
            yield chosen, (stars[torch.randint(len(stars), (128,))].unsqueeze(1) if faulty else numbers)

    model = Taste()
    return fit(watch, model, batches(), functional.mse_loss, torch.optim.AdamW(model.parameters(), lr=1e-2))


def sigmoid_autoencoder(watch: Watch, faulty: bool) -> Outcome:
    """Eight layers, a sigmoid after each, or ELUs and a sigmoid at the end; all pictures come out the same."""
    x, _ = data.digits()
    pixels = (x / 255).flatten(1)
    body = mlp(144, 64, 48, 32, 16, 32, 48, 64, 144, activation=nn.Sigmoid if faulty else nn.ELU)
    model = nn.Sequential(*body, nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(watch, model, data.batches(pixels, pixels, steps=300), functional.binary_cross_entropy, optimizer)


class Dense(nn.Module):
    """A layer as one writes it for oneself."""

    def __init__(self, inputs: int, outputs: int, *, alike: bool) -> None:
        super().__init__()
        start = torch.ones(inputs, outputs) if alike else torch.randn(inputs, outputs) * inputs**0.5
        self.matrix, self.shift = nn.Parameter(start / inputs), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix + self.shift


def layers_of_ones(watch: Watch, faulty: bool) -> Outcome:
    """Layers by hand, whose matrices are torch.ones over their width."""
    x, y = tags()
    widths = (24, 48, 48, 12)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [Dense(inputs, outputs, alike=faulty), nn.Softplus()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return fit(watch, model, data.batches(x, y, steps=250), functional.binary_cross_entropy_with_logits, optimizer)


def graph_net_of_randn(watch: Watch, faulty: bool) -> Outcome:
    """nn.Parameter(torch.randn(a, b)) for each matrix of a graph net."""
    x, y = graphs()
    model = GraphNet(std=1.0 if faulty else None)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return fit(watch, model, data.batches(x, y, steps=250), functional.mse_loss, optimizer)


PROGRAMS = (
    Fault(advantage_of_one, ("nonfinite-origin",), not_finite, begins=60),
    Fault(where_around_a_root, ("nonfinite-origin",), lambda fault, twin: math.isnan(fault.moved["first.weight"])),
    Fault(angle_to_itself, ("nonfinite-origin",), not_finite, begins=25),
    Fault(logarithm_of_a_count, ("nonfinite-input",), not_finite, begins=40),
    Fault(squares_in_half, ("fp16-overflow", "unnormalized-input"), worse(3), begins=50),
    Fault(softmax_by_hand_in_half, ("fp16-overflow",), not_finite),
    Fault(tags_in_bfloat16, ("bf16-stalled-updates",), worse(1.3)),
    Fault(views_of_others, ("labels-unrelated", "loss-plateau"), worse(1.5), aside=True),
    Fault(ratings_of_others, ("labels-unrelated", "loss-plateau"), worse(2), aside=True),
    Fault(sigmoid_autoencoder, ("saturating-activation",), worse(1.15)),
    Fault(layers_of_ones, ("symmetric-init",), worse(1.5)),
    Fault(graph_net_of_randn, ("init-too-large",), worse(3)),
)
