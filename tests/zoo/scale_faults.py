"""Trainings whose numbers are of the wrong size: inputs, initial weights, steps; and what is not finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.models import GPT
from tests.zoo.models import convnet
from tests.zoo.models import drawn
from tests.zoo.models import he
from tests.zoo.models import mlp
from tests.zoo.models import residual_net
from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Proof
from tests.zoo.program import Watch
from tests.zoo.program import fit

XAVIER_TANH = 5 / 3


def raw_pixels_sgd(watch: Watch, faulty: bool) -> Outcome:
    x, y = data.digits()
    model = nn.Sequential(nn.Flatten(), *he(mlp(144, 128, 128, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return fit(
        watch, model, data.batches(x if faulty else data.standardised(x), y, steps=250), functional.cross_entropy, optimizer
    )


def raw_pixels_convnet(watch: Watch, faulty: bool) -> Outcome:
    x, y = data.digits()
    model = he(convnet(norm=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return fit(
        watch, model, data.batches(x if faulty else data.standardised(x), y, steps=150), functional.cross_entropy, optimizer
    )


def initial_weights_large(watch: Watch, faulty: bool) -> Outcome:
    return _classifier(watch, _deep(8, std=0.3 if faulty else None), torch.optim.SGD, lr=0.02)


def initial_weights_small(watch: Watch, faulty: bool) -> Outcome:
    return _classifier(watch, _deep(8, std=0.01 if faulty else None), torch.optim.SGD, lr=0.05)


def default_init_in_twenty_layers(watch: Watch, faulty: bool) -> Outcome:
    model = mlp(20, *[64] * 20, 10)
    return _classifier(watch, model if faulty else he(model), torch.optim.SGD, lr=0.02)


def constant_weights(watch: Watch, faulty: bool) -> Outcome:
    model = he(mlp(20, 64, 64, 10))
    for parameter in model.parameters() if faulty else ():
        nn.init.constant_(parameter, 0.05)
    return _classifier(watch, model, torch.optim.SGD, lr=0.1)


def residual_without_norm(watch: Watch, faulty: bool) -> Outcome:
    return _classifier(watch, residual_net(20, depth=24, norm=not faulty), torch.optim.SGD, lr=0.05)


def sgd_rate_3(watch: Watch, faulty: bool) -> Outcome:
    return _classifier(watch, he(mlp(20, 128, 128, 10)), torch.optim.SGD, lr=3.0 if faulty else 0.1)


def adam_rate_tenth(watch: Watch, faulty: bool) -> Outcome:
    return _classifier(watch, he(mlp(20, *[64] * 6, 10)), torch.optim.Adam, lr=0.1 if faulty else 1e-3)


def convnet_momentum_rate_2(watch: Watch, faulty: bool) -> Outcome:
    x, y = data.digits()
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0 if faulty else 0.05, momentum=0.9)
    return fit(watch, model, data.batches(data.standardised(x), y, steps=150), functional.cross_entropy, optimizer)


def gpt_rate_without_warmup(watch: Watch, faulty: bool) -> Outcome:
    model = GPT(data.vocabulary_size(), width=64, depth=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2 if faulty else 2e-3)
    return fit(watch, model, data.characters(steps=120), functional.cross_entropy, optimizer)


def rate_tiny(watch: Watch, faulty: bool) -> Outcome:
    return _classifier(watch, he(mlp(20, 64, 64, 10)), torch.optim.Adam, lr=1e-7 if faulty else 1e-3, steps=400)


def sigmoid_in_ten_layers(watch: Watch, faulty: bool) -> Outcome:
    model = mlp(20, *[64] * 10, 10, activation=nn.Sigmoid if faulty else nn.ReLU)
    return _classifier(watch, model if faulty else he(model), torch.optim.SGD, lr=0.05, steps=300)


def biases_far_below_zero(watch: Watch, faulty: bool) -> Outcome:
    model = he(mlp(20, 64, 64, 10))
    for layer in (model[0], model[2]) if faulty else ():
        nn.init.constant_(layer.bias, -8.0)
    return _classifier(watch, model, torch.optim.SGD, lr=0.1)


def saturated_tanh(watch: Watch, faulty: bool) -> Outcome:
    model = mlp(20, *[64] * 8, 10, activation=nn.Tanh)
    drawn(model, std=1.0) if faulty else drawn(model, gain=XAVIER_TANH)
    return _classifier(watch, model, torch.optim.SGD, lr=0.05)


def nan_in_a_batch(watch: Watch, faulty: bool) -> Outcome:
    x, y = data.clusters()

    def batches():
        for step, (inputs, labels) in enumerate(data.batches(x, y, steps=120)):
            if faulty and step == 40:
                inputs[7, 3] = math.nan
            yield inputs, labels

    model = he(mlp(20, 64, 64, 10))
    return fit(watch, model, batches(), functional.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.1))


def logarithm_of_zero(watch: Watch, faulty: bool) -> Outcome:
    """A hand-written cross entropy over clipped probabilities, or over probabilities that reach zero."""
    x, y = data.clusters()

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        probability = (
            functional.relu(output).softmax(dim=1)
            if not faulty
            else functional.relu(output) / functional.relu(output).sum(1, keepdim=True)
        )
        return -torch.log(probability[torch.arange(len(labels)), labels]).mean()

    model = he(mlp(20, 64, 64, 10))
    return fit(watch, model, data.batches(x, y, steps=120), loss, torch.optim.Adam(model.parameters(), lr=1e-3))


class Recurrence(nn.Module):
    """A linear recurrence over sixty steps, whose last state is classified."""

    def __init__(self, *, radius: float) -> None:
        super().__init__()
        self.cell = nn.RNN(4, 32, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(32, 4)
        with torch.no_grad():
            self.cell.weight_hh_l0.copy_(radius * torch.eye(32))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def recurrence_that_grows(watch: Watch, faulty: bool) -> Outcome:
    x = torch.randn(1500, 60, 4)
    y = x[:, -3:].sum(1).argmax(1)
    model = Recurrence(radius=1.2 if faulty else 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return fit(watch, model, data.batches(x, y, steps=200), functional.cross_entropy, optimizer)


def outlier_in_a_batch(watch: Watch, faulty: bool) -> Outcome:
    """One sample a thousand times too large, with the label of its neighbour."""
    x, y = data.clusters()

    def batches():
        for step, (inputs, labels) in enumerate(data.batches(x, y, steps=120)):
            if faulty and step == 60:
                inputs[3] *= 1000
                labels[3] = (labels[3] + 1) % data.CLASSES
            yield inputs, labels

    model = he(mlp(20, 64, 64, 10))
    return fit(watch, model, batches(), functional.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))


def labels_at_random(watch: Watch, faulty: bool) -> Outcome:
    x, y = data.clusters()

    def batches():
        for inputs, labels in data.batches(x, y, steps=350):
            yield inputs, torch.randint_like(labels, data.CLASSES) if faulty else labels

    model = mlp(20, 64, 64, 10)
    return fit(watch, model, batches(), functional.cross_entropy, torch.optim.Adam(model.parameters(), lr=1e-3))


def _deep(layers: int, *, std: float | None) -> nn.Module:
    model = mlp(20, *[128] * (layers - 1), 10)
    return drawn(model, std=std) if std else he(model)


def _classifier(
    watch: Watch, model: nn.Module, optimizer: type[torch.optim.Optimizer], *, lr: float, steps: int = 250
) -> Outcome:
    return fit(
        watch,
        model,
        data.batches(*data.clusters(), steps=steps),
        functional.cross_entropy,
        optimizer(model.parameters(), lr=lr),
    )


def _learned_nothing(fault: Outcome, twin: Outcome) -> bool:
    """The loss ended where ten classes guessed at random have it, above that, or is not finite."""
    return not fault.end < 0.9 * math.log(data.CLASSES)


def _worse(factor: float) -> Proof:
    """The loss ended above this many times the twin's, or is not finite."""
    return lambda fault, twin: not fault.end < factor * twin.end


PROGRAMS = (
    Fault(raw_pixels_sgd, ("unnormalized-input",), _learned_nothing),
    Fault(raw_pixels_convnet, ("unnormalized-input",), _learned_nothing),
    Fault(initial_weights_large, ("init-too-large",), _worse(3)),
    Fault(initial_weights_small, ("init-too-small",), _learned_nothing),
    Fault(default_init_in_twenty_layers, ("init-too-small",), _learned_nothing),
    Fault(constant_weights, ("symmetric-init",), _worse(3)),
    Fault(residual_without_norm, ("missing-normalization",), _learned_nothing),
    Fault(sgd_rate_3, ("lr-too-high",), _learned_nothing),
    Fault(adam_rate_tenth, ("lr-too-high",), _worse(3)),
    Fault(convnet_momentum_rate_2, ("lr-too-high",), _worse(3)),
    Fault(gpt_rate_without_warmup, ("lr-too-high",), _worse(1.2)),
    Fault(rate_tiny, ("lr-too-low",), _learned_nothing),
    Fault(sigmoid_in_ten_layers, ("vanishing-gradients", "init-too-small"), _learned_nothing),
    Fault(biases_far_below_zero, ("dead-units",), _learned_nothing),
    Fault(saturated_tanh, ("saturated-units", "init-too-large"), _worse(2)),
    Fault(nan_in_a_batch, ("nonfinite-origin",), lambda fault, twin: math.isnan(fault.end)),
    Fault(logarithm_of_zero, ("nonfinite-origin",), lambda fault, twin: not math.isfinite(fault.end)),
    Fault(
        recurrence_that_grows,
        ("recurrent-explosion", "exploding-gradients", "nonfinite-gradients"),
        lambda fault, twin: not math.isfinite(fault.end),
    ),
    Fault(outlier_in_a_batch, ("gradient-spikes",), _worse(3)),
    Fault(labels_at_random, ("loss-plateau",), _learned_nothing),
)
