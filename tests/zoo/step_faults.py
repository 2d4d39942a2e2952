"""Steps of the wrong size: learning rates, Adam's epsilon, weight decay, statistics over too few samples."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from tests.zoo import data
from tests.zoo import tasks
from tests.zoo.models import ViT
from tests.zoo.models import convnet
from tests.zoo.models import he
from tests.zoo.models import mlp
from tests.zoo.models import residual_net
from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import learned_nothing
from tests.zoo.proofs import worse
from tests.zoo.treatment import UNTREATED
from tests.zoo.treatment import Treatment


def sgd_rate_3(watch: Watch, faulty: bool) -> Outcome:
    return tasks.classify(watch, he(mlp(20, 128, 128, 10)), tasks.sgd, lr=3.0 if faulty else 0.1)


def adam_rate_tenth(watch: Watch, faulty: bool) -> Outcome:
    return tasks.classify(watch, he(mlp(20, *[64] * 6, 10)), tasks.adam, lr=0.1 if faulty else 1e-3)


def heavy_momentum_rate(watch: Watch, faulty: bool) -> Outcome:
    """A rate that plain descent would bear, under a momentum that makes twenty times as much of it."""
    make = partial(torch.optim.SGD, momentum=0.95)
    return tasks.classify(watch, he(mlp(20, 64, 64, 10)), make, lr=0.3 if faulty else 0.01, steps=150)


def convnet_momentum_rate_2(watch: Watch, faulty: bool) -> Outcome:
    return tasks.see(watch, convnet(), tasks.momentum, lr=2.0 if faulty else 0.05, steps=150)


def residual_rate_5(watch: Watch, faulty: bool) -> Outcome:
    return tasks.classify(watch, residual_net(20, depth=6), tasks.sgd, lr=5.0 if faulty else 0.1, steps=150)


def vision_transformer_rate(watch: Watch, faulty: bool) -> Outcome:
    return tasks.see(watch, ViT(), tasks.adamw, lr=0.1 if faulty else 2e-3, steps=150)


def rmsprop_rate(watch: Watch, faulty: bool) -> Outcome:
    return tasks.regress(watch, mlp(10, 64, 64, 1), torch.optim.RMSprop, lr=0.3 if faulty else 1e-3)


def adagrad_rate(watch: Watch, faulty: bool) -> Outcome:
    return tasks.classify(watch, he(mlp(20, 64, 64, 64, 10)), torch.optim.Adagrad, lr=30.0 if faulty else 0.03)


def regression_rate_1(watch: Watch, faulty: bool) -> Outcome:
    return tasks.regress(watch, he(mlp(10, 64, 64, 1)), tasks.sgd, lr=1.5 if faulty else 0.01)


def rate_that_jumps(watch: Watch, faulty: bool) -> Outcome:
    """A schedule that multiplies the rate by fifty at step 100, where a fifth was meant."""
    model = he(mlp(20, 128, 128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [100], gamma=50.0 if faulty else 0.2)
    batches = data.batches(*data.clusters(), steps=200)
    return fit(watch, model, batches, functional.cross_entropy, optimizer, each=lambda step: schedule.step())


def two_optimizers_one_too_fast(watch: Watch, faulty: bool) -> Outcome:
    """The body by momentum at a rate of 5, the head by Adam."""
    x, y = data.clusters()
    model = he(mlp(20, 64, 64, 10))
    watch(model)
    optimizers = [
        torch.optim.SGD(model[:4].parameters(), lr=5.0 if faulty else 0.05, momentum=0.9),
        torch.optim.Adam(model[4:].parameters(), lr=1e-3),
    ]
    return tasks.together(model, optimizers, data.batches(x, y, steps=200))


def rate_tiny(watch: Watch, faulty: bool) -> Outcome:
    return tasks.classify(watch, he(mlp(20, 64, 64, 10)), tasks.adam, lr=1e-7 if faulty else 1e-3, steps=400)


def rate_tiny_convnet(watch: Watch, faulty: bool) -> Outcome:
    return tasks.see(watch, convnet(), tasks.momentum, lr=1e-7 if faulty else 0.05, steps=200)


def epsilon_of_one(watch: Watch, faulty: bool) -> Outcome:
    make = partial(torch.optim.Adam, eps=1.0 if faulty else 1e-8)
    return tasks.classify(watch, he(mlp(20, 64, 64, 10)), make, lr=1e-3, steps=300)


def loss_divided_by_a_count(watch: Watch, faulty: bool) -> Outcome:
    """A loss divided by the size of a count of a million millions; its gradients are below Adam's eps."""
    size = 1e12 if faulty else 1.0

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(output, target) / size

    return tasks.regress(watch, mlp(10, 64, 64, 1), tasks.adam, lr=2e-3, loss=loss)


def decay_of_20(watch: Watch, faulty: bool) -> Outcome:
    make = partial(torch.optim.AdamW, weight_decay=20.0 if faulty else 0.01)
    return tasks.classify(watch, he(mlp(20, 64, 64, 10)), make, lr=1e-2)


def decay_of_a_half_sgd(watch: Watch, faulty: bool) -> Outcome:
    make = partial(torch.optim.SGD, momentum=0.9, weight_decay=0.5 if faulty else 5e-4)
    return tasks.see(watch, convnet(norm=False), make, lr=0.03, steps=200)


def decay_of_ten_transformer(watch: Watch, faulty: bool) -> Outcome:
    make = partial(torch.optim.AdamW, weight_decay=20.0 if faulty else 0.05)
    return tasks.see(watch, ViT(), make, lr=2e-3, steps=200)


def batch_norm_over_two(watch: Watch, faulty: bool) -> Outcome:
    """Batch norms after linear layers, with batches of two."""
    return _normalised(watch, size=2 if faulty else 64)


def _normalised(watch: Watch, *, size: int) -> Outcome:
    layers: list[nn.Module] = []
    for inputs in (20, 64, 64):
        layers += [nn.Linear(inputs, 64), nn.BatchNorm1d(64), nn.ReLU()]
    return tasks.classify(watch, nn.Sequential(*layers, nn.Linear(64, 10)), tasks.momentum, lr=0.02, size=size, steps=400)


def batch_norm_over_three_images(watch: Watch, faulty: bool) -> Outcome:
    """A batch norm over globally pooled features, with batches of three; only a larger batch cures it."""
    x, y = data.digits()
    dataset = TensorDataset(data.standardised(x), y)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, data.CLASSES),
    )
    loader = DataLoader(dataset, batch_size=3 if faulty else 64, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return fit(watch, model, loader, functional.cross_entropy, optimizer, steps=400)


def lbfgs_rate_5(watch: Watch, faulty: bool) -> Outcome:
    """No line search, and four updates to a step: what is seen of step 0 came after them."""
    x, y = data.taught(count=400)
    model = mlp(10, 32, 1, activation=nn.Tanh)
    treatment: Treatment = watch(model) or UNTREATED
    optimizer = torch.optim.LBFGS(model.parameters(), lr=5.0 if faulty else 0.5, max_iter=4)
    treatment.apply("start", {"model": model, "optimizer": optimizer})

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    return Outcome(tuple(float(optimizer.step(closure).detach()) for _ in range(60)))


PROGRAMS = (
    Fault(sgd_rate_3, ("lr-too-high",), learned_nothing, remedy="start"),
    Fault(adam_rate_tenth, ("lr-too-high",), worse(3), remedy="start"),
    Fault(heavy_momentum_rate, ("lr-too-high",), worse(3), remedy="start"),
    Fault(convnet_momentum_rate_2, ("lr-too-high",), worse(3), remedy="start"),
    Fault(residual_rate_5, ("lr-too-high",), worse(3), remedy="start"),
    Fault(vision_transformer_rate, ("lr-too-high",), worse(1.5), remedy="start"),
    Fault(rmsprop_rate, ("lr-too-high",), worse(3), remedy="start"),
    Fault(adagrad_rate, ("lr-too-high",), worse(3), remedy="start"),
    Fault(regression_rate_1, ("lr-too-high",), worse(3), remedy="start"),
    Fault(lbfgs_rate_5, ("lr-too-high",), worse(3), remedy="start"),
    Fault(rate_that_jumps, ("lr-too-high",), worse(3), begins=100),
    Fault(two_optimizers_one_too_fast, ("lr-too-high",), worse(3)),
    Fault(rate_tiny, ("lr-too-low",), learned_nothing, remedy="start"),
    Fault(rate_tiny_convnet, ("lr-too-low",), learned_nothing, remedy="start"),
    Fault(
        loss_divided_by_a_count,
        ("adam-epsilon-dominates",),
        lambda fault, twin: fault.end > 0.8 * fault.start and twin.end < 0.5 * twin.start,
        remedy="start",
    ),
    Fault(epsilon_of_one, ("adam-epsilon-dominates",), worse(3), aside=True, remedy="start"),
    Fault(decay_of_20, ("excessive-weight-decay",), worse(3), remedy="start"),
    Fault(decay_of_a_half_sgd, ("excessive-weight-decay",), worse(3), remedy="start"),
    Fault(decay_of_ten_transformer, ("excessive-weight-decay",), worse(2), remedy="start"),
    Fault(batch_norm_over_two, ("tiny-batch-norm",), worse(5), remedy="start"),
    Fault(batch_norm_over_three_images, ("tiny-batch-norm",), worse(3), remedy="start"),
)
