"""Nets whose signals have the wrong size from the start: initial weights, missing norms, activations that saturate or die."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo import tasks
from tests.zoo.models import GPT
from tests.zoo.models import convnet
from tests.zoo.models import drawn
from tests.zoo.models import he
from tests.zoo.models import mlp
from tests.zoo.models import residual_net
from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import learned_nothing
from tests.zoo.proofs import worse

XAVIER_TANH = 5 / 3


def initial_weights_large(watch: Watch, faulty: bool) -> Outcome:
    return tasks.classify(watch, _deep(8, std=0.3 if faulty else None), tasks.sgd, lr=0.02)


def initial_weights_large_adam(watch: Watch, faulty: bool) -> Outcome:
    """A regression; all weights from a standard normal distribution."""
    model = mlp(10, *[64] * 5, 1)
    drawn(model, std=1.0) if faulty else he(model)
    return tasks.regress(watch, model, tasks.adam, lr=1e-3)


def initial_weights_large_convnet(watch: Watch, faulty: bool) -> Outcome:
    model = _stacked(6)
    drawn(model, std=0.5) if faulty else he(model)
    return tasks.see(watch, model, tasks.momentum, lr=0.01, steps=150)


def initial_weights_small(watch: Watch, faulty: bool) -> Outcome:
    return tasks.classify(watch, _deep(8, std=0.01 if faulty else None), tasks.sgd, lr=0.05)


def initial_weights_small_convnet(watch: Watch, faulty: bool) -> Outcome:
    model = _stacked(6)
    drawn(model, std=0.01) if faulty else he(model)
    return tasks.see(watch, model, tasks.momentum, lr=0.01, steps=150)


def default_init_in_twenty_layers(watch: Watch, faulty: bool) -> Outcome:
    model = mlp(20, *[64] * 20, 10)
    return tasks.classify(watch, model if faulty else he(model), tasks.sgd, lr=0.02)


class Functional(nn.Module):
    """Fourteen weights and no modules: F.linear and F.elu over a list of parameters."""

    def __init__(self, *, gain: float) -> None:
        super().__init__()
        sizes = [20, *[64] * 13, 10]
        shapes = zip(sizes[1:], sizes, strict=False)
        self.weights = nn.ParameterList(gain / shape[1] ** 0.5 * torch.randn(shape) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights[:-1]:
            x = torch.tanh(functional.linear(x, weight))
        return functional.linear(x, self.weights[-1])


def small_weights_without_modules(watch: Watch, faulty: bool) -> Outcome:
    return tasks.classify(watch, Functional(gain=0.15 if faulty else 1.3), tasks.momentum, lr=0.02)


def constant_weights(watch: Watch, faulty: bool) -> Outcome:
    return tasks.classify(watch, _constant(he(mlp(20, 64, 64, 10)), faulty), tasks.sgd, lr=0.1)


def constant_weights_convnet(watch: Watch, faulty: bool) -> Outcome:
    return tasks.see(watch, _constant(convnet(norm=False), faulty), tasks.adam, lr=3e-3, steps=150)


def zero_weights(watch: Watch, faulty: bool) -> Outcome:
    """All weights zero, as for a logistic regression."""
    model = mlp(10, 64, 64, 1)
    for parameter in model.parameters() if faulty else ():
        nn.init.zeros_(parameter)
    return tasks.regress(watch, model, tasks.adam, lr=3e-3)


def residual_without_norm(watch: Watch, faulty: bool) -> Outcome:
    return tasks.classify(watch, residual_net(20, depth=24, norm=not faulty), tasks.sgd, lr=0.05, steps=120)


class ConvBlock(nn.Module):
    def __init__(self, width: int, *, norm: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.relu(self.first(self.norm(x))))


def residual_convnet_without_norm(watch: Watch, faulty: bool) -> Outcome:
    blocks = [ConvBlock(8, norm=not faulty) for _ in range(14)]
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), *blocks, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, data.CLASSES)
    )
    return tasks.see(watch, model, tasks.momentum, lr=0.02, steps=60)


def sigmoid_in_ten_layers(watch: Watch, faulty: bool) -> Outcome:
    model = mlp(20, *[64] * 10, 10, activation=nn.Sigmoid if faulty else nn.ReLU)
    return tasks.classify(watch, model if faulty else he(model), tasks.sgd, lr=0.05, steps=300)


def sigmoid_in_six_convolutions(watch: Watch, faulty: bool) -> Outcome:
    model = _stacked(6, activation=nn.Sigmoid if faulty else nn.ReLU)
    return tasks.see(watch, model if faulty else he(model), tasks.momentum, lr=0.01, steps=150)


def biases_far_below_zero(watch: Watch, faulty: bool) -> Outcome:
    model = he(mlp(20, 64, 64, 10))
    for layer in (model[0], model[2]) if faulty else ():
        nn.init.constant_(layer.bias, -8.0)
    return tasks.classify(watch, model, tasks.sgd, lr=0.1)


def biases_far_below_zero_convnet(watch: Watch, faulty: bool) -> Outcome:
    model = he(convnet(norm=False))
    if faulty:
        nn.init.constant_(model[3].bias, -30.0)
    return tasks.see(watch, model, tasks.adam, lr=2e-3, steps=150)


def saturated_tanh(watch: Watch, faulty: bool) -> Outcome:
    model = mlp(20, *[64] * 8, 10, activation=nn.Tanh)
    drawn(model, std=1.0) if faulty else drawn(model, gain=XAVIER_TANH)
    return tasks.classify(watch, model, tasks.sgd, lr=0.05)


class Encoder(nn.Module):
    """Features under no_grad(), though their layers are the optimizer's to train."""

    def __init__(self, *, cut: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(108, 32), nn.ReLU(), nn.Linear(32, data.CLASSES))
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.cut):
            x = self.features(x)
        return self.head(x)


def features_without_gradient(watch: Watch, faulty: bool) -> Outcome:
    return tasks.see(watch, Encoder(cut=faulty), tasks.momentum, lr=0.02, steps=150)


class Transplanted(nn.Module):
    """A recurrent state read through numpy."""

    def __init__(self, *, cut: bool) -> None:
        super().__init__()
        self.recurrent, self.middle, self.head = nn.GRU(4, 24, batch_first=True), nn.Linear(24, 24), nn.Linear(24, 1)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        state = self.recurrent(x)[0][:, -1]
        if self.cut:
            state = torch.from_numpy(state.detach().numpy())
        return self.head(functional.relu(self.middle(state)))


def state_through_numpy(watch: Watch, faulty: bool) -> Outcome:
    x = torch.randn(1500, 10, 4)
    y = x[:, -3:].sum((1, 2), keepdim=True).squeeze(2) / 12**0.5
    model = Transplanted(cut=faulty)
    return fit(watch, model, data.batches(x, y, steps=200), functional.mse_loss, torch.optim.Adam(model.parameters(), lr=3e-3))


def large_embeddings(watch: Watch, faulty: bool) -> Outcome:
    """A tied embedding left at its default of a standard normal, which makes logits of eight times their size."""
    model = GPT(data.vocabulary_size(), width=64, tied=True)
    if faulty:
        nn.init.normal_(model.token.weight, std=1.0)
    return tasks.read(watch, model, tasks.adamw, lr=2e-3, steps=100)


def _deep(layers: int, *, std: float | None) -> nn.Module:
    model = mlp(20, *[128] * (layers - 1), 10)
    return drawn(model, std=std) if std else he(model)


def _stacked(depth: int, *, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Convolutions without norms, the first with a stride."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, stride=2, padding=1), activation()]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(16, 16, 3, padding=1), activation()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(144, data.CLASSES))


def _constant(model: nn.Module, faulty: bool) -> nn.Module:
    for parameter in model.parameters() if faulty else ():
        nn.init.constant_(parameter, 0.05)
    return model


PROGRAMS = (
    Fault(initial_weights_large, ("init-too-large",), worse(3), remedy="start"),
    Fault(initial_weights_large_adam, ("init-too-large",), worse(3), remedy="start"),
    Fault(initial_weights_large_convnet, ("init-too-large",), worse(3), remedy="start"),
    Fault(initial_weights_small, ("init-too-small",), learned_nothing, remedy="start"),
    Fault(initial_weights_small_convnet, ("init-too-small",), learned_nothing, remedy="start"),
    Fault(default_init_in_twenty_layers, ("init-too-small",), learned_nothing, remedy="start"),
    Fault(small_weights_without_modules, ("init-too-small", "vanishing-gradients", "loss-plateau"), learned_nothing),
    Fault(constant_weights, ("symmetric-init",), worse(3), remedy="start"),
    Fault(constant_weights_convnet, ("symmetric-init",), worse(3), remedy="start"),
    Fault(zero_weights, ("symmetric-init",), worse(3), remedy="start"),
    Fault(residual_without_norm, ("missing-normalization",), learned_nothing, remedy="start"),
    Fault(residual_convnet_without_norm, ("missing-normalization",), worse(3), remedy="start"),
    Fault(
        sigmoid_in_ten_layers,
        ("saturating-activation", "vanishing-gradients", "init-too-small"),
        learned_nothing,
        remedy="start",
    ),
    Fault(
        sigmoid_in_six_convolutions,
        ("saturating-activation", "vanishing-gradients", "init-too-small"),
        learned_nothing,
        remedy="start",
    ),
    Fault(biases_far_below_zero, ("dead-units",), learned_nothing, remedy="start"),
    Fault(biases_far_below_zero_convnet, ("dead-units",), learned_nothing, remedy="start"),
    Fault(saturated_tanh, ("init-too-large", "saturated-units"), worse(2), remedy="start"),
    Fault(
        large_embeddings,
        ("initial-loss-off", "init-too-large"),
        lambda fault, twin: fault.start > 3 * twin.start,
        falls_to=0.8,
        aside=True,
    ),
    Fault(features_without_gradient, ("detached-parameters",), lambda fault, twin: not fault.moved["features.0.weight"]),
    Fault(state_through_numpy, ("detached-parameters",), lambda fault, twin: not fault.moved["recurrent.weight_hh_l0"]),
)
