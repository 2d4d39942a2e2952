"""Losses beyond cross entropy and squares, put together wrongly."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.field_data import graphs
from tests.zoo.field_data import tags
from tests.zoo.field_models import GraphNet
from tests.zoo.models import mlp
from tests.zoo.program import Fault
from tests.zoo.program import Loop
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import fact
from tests.zoo.proofs import worse


def tags_squashed_twice(watch: Watch, faulty: bool) -> Outcome:
    """Several tags a sample: a sigmoid at the model's end, and binary_cross_entropy_with_logits with pos_weight."""
    x, y = tags()
    weight = (1 - y).sum(0) / y.sum(0)
    model = mlp(24, 64, 12, activation=nn.ELU)
    model = nn.Sequential(*model, nn.Sigmoid()) if faulty else model

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(output, target, pos_weight=weight)

    return fit(watch, model, data.batches(x, y, steps=250), loss, torch.optim.NAdam(model.parameters(), lr=5e-3))


def student_without_logarithm(watch: Watch, faulty: bool) -> Outcome:
    """Distillation: kl_div over the student's probabilities, where it takes their logarithms."""
    x, _ = data.clusters()
    teacher = mlp(20, 32, 10, activation=nn.Tanh)
    with torch.no_grad():
        answers = (4 * teacher(x)).softmax(1)
    student = mlp(20, 48, 10, activation=nn.SiLU)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        said = output.softmax(1) if faulty else output.log_softmax(1)
        return functional.kl_div(said, target, reduction="batchmean")

    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    outcome = fit(watch, student, data.batches(x, answers, steps=300), loss, optimizer)
    with torch.no_grad():
        left = float(functional.kl_div(student(x).log_softmax(1), answers, reduction="batchmean"))
    return replace(outcome, facts={"left": left})


def triplet_without_margin(watch: Watch, faulty: bool) -> Outcome:
    """The distance to one's own less the distance to the others, without a floor at zero."""
    model = mlp(20, 64, 16, activation=nn.GELU)

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        distances = torch.cdist(output, output).square()
        own = labels.unsqueeze(0) == labels.unsqueeze(1)
        gap = distances[own].mean() - distances.masked_fill(own, 0).sum(1) / (~own).sum(1)
        return (gap if faulty else (gap + 1).clamp_min(0)).mean()

    batches = data.batches(*data.clusters(), steps=250)
    return fit(watch, model, batches, loss, torch.optim.RAdam(model.parameters(), lr=3e-3))


def actions_beyond_tanh(watch: Watch, faulty: bool) -> Outcome:
    """Cloning a controller whose actions go from -3 to 3, by a policy that ends in a tanh."""
    x, y = data.taught()
    model = mlp(10, 64, 64, 1, activation=nn.Mish)
    model = nn.Sequential(*model, nn.Tanh()) if faulty else model
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return fit(watch, model, data.batches(x, (2 * y).clamp(-3, 3), steps=300), functional.smooth_l1_loss, optimizer)


def hinge_after_relu(watch: Watch, faulty: bool) -> Outcome:
    """Labels -1 and 1 and a hinge loss, at the end of a model whose every layer has its ReLU."""
    x, y = data.clusters()
    signs = 2.0 * (y % 2).unsqueeze(1) - 1
    model = mlp(20, 64, 32, 1)
    model = nn.Sequential(*model, nn.ReLU()) if faulty else model

    def hinge(output: Tensor, target: Tensor) -> Tensor:
        return (1 - output * target).clamp_min(0).mean()

    return fit(watch, model, data.batches(x, signs, steps=250), hinge, torch.optim.Adagrad(model.parameters(), lr=0.03))


class Mixture(nn.Module):
    """The weights, places and widths of four Gaussians for each input."""

    def __init__(self, *, inputs: int = 1) -> None:
        super().__init__()
        self.body = mlp(inputs, 48, 48, activation=nn.Tanh)
        self.head = nn.Linear(48, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def mixture_likelihood(output: Tensor, target: Tensor) -> Tensor:
    """The negative logarithm of each target's density, [size]."""
    weights, places, widths = output.chunk(3, dim=1)
    widths = functional.softplus(widths) + 0.05
    each = weights.log_softmax(1) - 0.5 * ((target - places) / widths).square() - widths.log() - 0.5 * math.log(2 * math.pi)
    return -each.logsumexp(1)


def bent(*, count: int = 2000) -> tuple[Tensor, Tensor]:
    """A curve that is bent back, so that an input has up to three answers."""
    y = 2 * torch.rand(count, 1) - 1
    x = y + 0.4 * torch.sin(2 * math.pi * y) + 0.05 * torch.randn(count, 1)
    return (x - x.mean()) / x.std(), (y - y.mean()) / y.std()


def mixture_summed(watch: Watch, faulty: bool) -> Outcome:
    """A mixture's likelihood summed over the batch of 200, at the rate for its mean."""
    model = Mixture()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        likelihood = mixture_likelihood(output, target)
        return likelihood.sum() if faulty else likelihood.mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    outcome = fit(watch, model, data.batches(*bent(), size=200, steps=200), loss, optimizer)
    return replace(outcome, course=tuple(value / (200 if faulty else 1) for value in outcome.course))


def prices_with_a_width(watch: Watch, faulty: bool) -> Outcome:
    """A mean and a variance for prices of about 2,000; the course is the squared error over the prices' variance."""
    x, y = data.taught()
    prices = 2000 + 500 * y if faulty else y
    model = mlp(10, 64, 64, 2, activation=nn.GELU)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return functional.gaussian_nll_loss(output[:, :1], target, functional.softplus(output[:, 1:]) + 1e-3)

    loop = Loop(watch, model, loss, torch.optim.Adam(model.parameters(), lr=1e-3))
    course = []
    for inputs, target in data.batches(x, prices, steps=300):
        loop.turn(inputs, target)
        with torch.no_grad():
            course.append(float((model(inputs)[:, :1] - target).square().mean() / prices.var()))
    return replace(loop.outcome(), course=tuple(course))


def graphs_against_flat_numbers(watch: Watch, faulty: bool) -> Outcome:
    """A number for each graph, (N, 1), against a column of a table, (N,), in a log-cosh loss by hand."""
    x, y = graphs()
    model = GraphNet()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        difference = output - (target.squeeze(1) if faulty else target)
        return (difference + functional.softplus(-2 * difference) - math.log(2)).mean()

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    outcome = fit(watch, model, data.batches(x, y, steps=300), loss, optimizer)
    with torch.no_grad():
        left = float((model(x) - y).square().mean())
    return replace(outcome, facts={"left": left})


PROGRAMS = (
    Fault(tags_squashed_twice, ("double-softmax",), worse(1.5)),
    Fault(student_without_logarithm, ("loss-input-mismatch",), fact("left", least=0.3, most=0.1)),
    Fault(triplet_without_margin, ("loss-unbounded-below",), lambda fault, twin: not fault.end > -100),
    Fault(actions_beyond_tanh, ("output-range",), worse(2)),
    Fault(hinge_after_relu, ("output-range",), worse(2)),
    Fault(mixture_summed, ("loss-reduction-sum",), worse(1.5)),
    Fault(prices_with_a_width, ("unscaled-target",), worse(2)),
    Fault(graphs_against_flat_numbers, ("loss-shape-broadcast",), fact("left", least=0.9, most=0.75)),
)
