"""Data that is empty, broken, in order, or says nothing of the labels; and what is not scaled where a net needs it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from tests.zoo import data
from tests.zoo import tasks
from tests.zoo.loss_faults import GRURegressor
from tests.zoo.models import convnet
from tests.zoo.models import he
from tests.zoo.models import mlp
from tests.zoo.program import Batches
from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import fact
from tests.zoo.proofs import learned_nothing
from tests.zoo.proofs import not_finite
from tests.zoo.proofs import worse


def inputs_zero(watch: Watch, faulty: bool) -> Outcome:
    """Features that were divided by their largest possible value as integers."""
    x, y = data.clusters()
    model = he(mlp(20, 64, 64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return fit(watch, model, data.batches(x * (0 if faulty else 1), y, steps=250), functional.cross_entropy, optimizer)


def images_all_the_same(watch: Watch, faulty: bool) -> Outcome:
    """An indexing mistake hands out the first image for every index."""
    x, y = data.digits()
    x = data.standardised(x)
    model = convnet(norm=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(
        watch, model, data.batches(x[:1].expand_as(x) if faulty else x, y, steps=150), functional.cross_entropy, optimizer
    )


def nan_in_a_batch(watch: Watch, faulty: bool) -> Outcome:
    x, y = data.clusters()

    def batches() -> Batches:
        for step, (inputs, labels) in enumerate(data.batches(x, y, steps=120)):
            if faulty and step == 40:
                inputs[7, 3] = math.nan
            yield inputs, labels

    model = he(mlp(20, 64, 64, 10))
    return fit(watch, model, batches(), functional.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.1))


def nan_in_a_target(watch: Watch, faulty: bool) -> Outcome:
    """A gap in a column of a table, in a recurrent net's answer."""
    x = torch.randn(1000, 10, 4)
    y = x[:, -3:].sum((1, 2), keepdim=True).squeeze(2) / 12**0.5

    def batches() -> Batches:
        for step, (inputs, targets) in enumerate(data.batches(x, y, steps=120)):
            if faulty and step == 50:
                targets[11] = math.nan
            yield inputs, targets

    model = GRURegressor()
    return fit(watch, model, batches(), functional.mse_loss, torch.optim.Adam(model.parameters(), lr=5e-3))


def infinite_pixel(watch: Watch, faulty: bool) -> Outcome:
    """A pixel divided by a range of zero, at the first steps already."""
    x, y = data.digits()
    x = data.standardised(x)
    if faulty:
        x[::20, 0, 0, 0] = math.inf
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return fit(watch, model, data.batches(x, y, steps=100), functional.cross_entropy, optimizer)


def sorted_classes(watch: Watch, faulty: bool) -> Outcome:
    x, y = data.clusters(count=19200)
    return _in_order(watch, he(mlp(20, 64, 64, 10)), x, y, tasks.momentum, lr=0.1, ordered=faulty)


def sorted_digits_adam(watch: Watch, faulty: bool) -> Outcome:
    x, y = data.digits(count=8000)
    return _in_order(watch, convnet(), data.standardised(x), y, tasks.adam, lr=2e-3, ordered=faulty)


def _in_order(
    watch: Watch, model: nn.Module, x: Tensor, y: Tensor, optimizer: tasks.Maker, *, lr: float, ordered: bool
) -> Outcome:
    """One pass, all of one class after all of another, or shuffled; with the error over all classes at the end."""
    order = y.argsort(stable=True)
    loader = DataLoader(TensorDataset(x[order], y[order]), batch_size=64, shuffle=not ordered)
    outcome = fit(watch, model, loader, functional.cross_entropy, optimizer(model.parameters(), lr=lr))
    with torch.no_grad():
        error = float((model(x).argmax(1) != y).float().mean())
    return Outcome(outcome.course, outcome.moved, facts={"error": error})


def labels_at_random(watch: Watch, faulty: bool) -> Outcome:
    x, y = data.clusters()

    def batches() -> Batches:
        for inputs, labels in data.batches(x, y, steps=350):
            yield inputs, torch.randint_like(labels, data.CLASSES) if faulty else labels

    model = mlp(20, 64, 64, 10)
    return fit(watch, model, batches(), functional.cross_entropy, torch.optim.Adam(model.parameters(), lr=1e-3))


def labels_of_other_images(watch: Watch, faulty: bool) -> Outcome:
    """Images were shuffled and their labels were not; a new order in each epoch, so that nothing can be learned by heart."""
    x, y = data.digits()
    x = data.standardised(x)

    def batches() -> Batches:
        for inputs, labels in data.batches(x, y, steps=250):
            yield inputs, labels[torch.randperm(len(labels))] if faulty else labels

    model = convnet()
    return fit(watch, model, batches(), functional.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9))


def outlier_in_a_batch(watch: Watch, faulty: bool) -> Outcome:
    """One sample a thousand times too large, with the label of its neighbour."""
    x, y = data.clusters()

    def batches() -> Batches:
        for step, (inputs, labels) in enumerate(data.batches(x, y, steps=120)):
            if faulty and step == 60:
                inputs[3] *= 1000
                labels[3] = (labels[3] + 1) % data.CLASSES
            yield inputs, labels

    model = he(mlp(20, 64, 64, 10))
    return fit(watch, model, batches(), functional.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))


def outlier_in_the_targets(watch: Watch, faulty: bool) -> Outcome:
    """A target with its decimal point lost."""
    x, y = data.taught()

    def batches() -> Batches:
        for step, (inputs, targets) in enumerate(data.batches(x, y, steps=200)):
            if faulty and step == 120:
                targets[5] += 3000
            yield inputs, targets

    model = mlp(10, 64, 64, 1)
    outcome = fit(watch, model, batches(), functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    return Outcome(outcome.course, outcome.moved, facts={"largest": max(outcome.course[121:])})


def outlier_image(watch: Watch, faulty: bool) -> Outcome:
    """An image in another scale, and mislabelled, in a net without norms."""
    x, y = data.digits()
    x = data.standardised(x)

    def batches() -> Batches:
        for step, (inputs, labels) in enumerate(data.batches(x, y, steps=150)):
            if faulty and step == 90:
                inputs[9] *= 1000
                labels[9] = (labels[9] + 1) % data.CLASSES
            yield inputs, labels

    model = he(convnet(norm=False))
    outcome = fit(watch, model, batches(), functional.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9))
    return Outcome(outcome.course, outcome.moved, facts={"largest": max(outcome.course[91:])})


def raw_pixels_sgd(watch: Watch, faulty: bool) -> Outcome:
    model = nn.Sequential(nn.Flatten(), *he(mlp(144, 128, 128, 10)))
    return tasks.see(watch, model, tasks.sgd, lr=0.1, steps=250, raw=faulty)


def raw_pixels_convnet(watch: Watch, faulty: bool) -> Outcome:
    return tasks.see(watch, he(convnet(norm=False)), tasks.momentum, lr=0.02, steps=150, raw=faulty)


def raw_table(watch: Watch, faulty: bool) -> Outcome:
    """Columns in their own units, incomes beside ages."""
    x, y = data.taught()
    if faulty:
        x = 30 * x + 100
    model = he(mlp(10, 64, 64, 1))
    return fit(watch, model, data.batches(x, y, steps=300), functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.02))


def columns_in_units(watch: Watch, faulty: bool) -> Outcome:
    """Columns each in a unit of its own, a year, a price, a share: scales that lie four orders apart."""
    x, y = data.taught()
    if faulty:
        scales = torch.tensor([10.0, 300.0, 1.0, 0.1, 40.0, 5.0, 1.0, 0.1, 20.0, 2.0])
        x = x * scales + torch.tensor([2000.0, 1500.0, 0.0, 0.5, 170.0, 35.0, 1.0, 0.2, 80.0, 7.0])
    model = he(mlp(10, 64, 64, 1))
    return fit(watch, model, data.batches(x, y, steps=300), functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.02))


def raw_series(watch: Watch, faulty: bool) -> Outcome:
    """A sensor's readings around 40 with an amplitude of 15, into a GRU, whose gates they saturate."""
    x = torch.randn(1500, 10, 4)
    y = x[:, -3:].sum((1, 2), keepdim=True).squeeze(2) / 12**0.5
    model = GRURegressor()
    batches: Iterator[tuple[Tensor, Tensor]] = data.batches(15 * x + 40 if faulty else x, y, steps=250)
    return fit(watch, model, batches, functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9))


PROGRAMS = (
    Fault(inputs_zero, ("constant-input",), learned_nothing, falls_to=0.4),
    Fault(images_all_the_same, ("constant-input",), learned_nothing, falls_to=0.4),
    Fault(nan_in_a_batch, ("nonfinite-input", "nonfinite-origin"), not_finite, begins=40, remedy="batch"),
    Fault(nan_in_a_target, ("nonfinite-input", "nonfinite-origin"), not_finite, begins=50, remedy="batch"),
    Fault(infinite_pixel, ("nonfinite-input", "nonfinite-origin"), not_finite, falls_to=0.4, remedy="batch"),
    Fault(sorted_classes, ("unshuffled-data",), fact("error", least=0.3, most=0.1), remedy="start"),
    Fault(sorted_digits_adam, ("unshuffled-data",), fact("error", least=0.3, most=0.1), remedy="start"),
    Fault(labels_at_random, ("labels-unrelated", "loss-plateau"), learned_nothing, aside=True),
    Fault(labels_of_other_images, ("labels-unrelated", "loss-plateau"), learned_nothing, aside=True),
    Fault(outlier_in_a_batch, ("outlier-batch", "gradient-spikes"), worse(3), begins=60, remedy="gradients"),
    Fault(
        outlier_in_the_targets,
        ("outlier-batch", "gradient-spikes"),
        fact("largest", least=3, most=1),
        begins=120,
        remedy="gradients",
    ),
    Fault(outlier_image, ("outlier-batch", "gradient-spikes"), worse(2), begins=90, remedy="gradients"),
    Fault(raw_pixels_sgd, ("unnormalized-input",), learned_nothing, remedy="batch"),
    Fault(raw_pixels_convnet, ("unnormalized-input",), learned_nothing, remedy="batch"),
    Fault(raw_table, ("unnormalized-input",), worse(2), remedy="batch"),
    Fault(columns_in_units, ("unnormalized-input",), worse(3), remedy="batch"),
    Fault(raw_series, ("unnormalized-input",), worse(2), remedy="batch"),
)
