"""Weights worked out from others at each call: weight norm, spectral norm, orthogonal maps, adapters, fake quantising."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization
from torch.nn.utils.parametrize import remove_parametrizations

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import CLASSES
from tests.stacks.tasks import COMMON
from tests.stacks.tasks import INPUTS
from tests.stacks.tasks import LOSS
from tests.stacks.tasks import advance
from tests.stacks.tasks import classes
from tests.stacks.tasks import fit
from tests.stacks.tasks import perceptron
from tests.stacks.tasks import sgd

SECTION = "Parametrizations and adapters"


def _train(eye: Eye, fault: str, steps: int, model: nn.Module) -> dict[str, torch.Tensor]:
    eye.attach(model)
    optimizer = sgd((p for p in model.parameters() if p.requires_grad), fault)
    fit(eye, model, optimizer, classes(steps), fault)
    return state_of(model)


def weight_norm_by_hook(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = perceptron()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # which the older weight norm gives
        for place in (0, 2):
            nn.utils.weight_norm(model[place])
    return _train(eye, fault, steps, model)


def weight_norm(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = perceptron()
    for place in (0, 2):
        parametrizations.weight_norm(model[place])
    return _train(eye, fault, steps, model)


def spectral_norm(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = perceptron()
    for place in (0, 2):
        parametrizations.spectral_norm(model[place])
    return _train(eye, fault, steps, model)


def orthogonal(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = perceptron()
    parametrizations.orthogonal(model[2])
    return _train(eye, fault, steps, model)


class Symmetric(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.triu() + weight.triu(1).mT


def own(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """A parametrization of one's own is put on amid the training, and taken off again."""
    model = perceptron()
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    for step, (inputs, labels) in enumerate(classes(steps)):
        if step == steps // 3:
            register_parametrization(model[2], "weight", Symmetric())
        if step == 2 * steps // 3:
            remove_parametrizations(model[2], "weight")
            optimizer = sgd(model.parameters(), fault)
        advance(eye, optimizer, LOSS(model(inputs), labels), fault)
    return state_of(model)


class Adapted(nn.Module):
    """A frozen layer with a low-rank map beside it, whose second factor starts at zero."""

    def __init__(self, base: nn.Linear, *, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.base(inputs) + self.up(self.down(inputs))


def adapters(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = perceptron()
    for place in (0, 2, 4):
        model[place] = Adapted(model[place])
    eye.attach(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = sgd(trained[:4] if fault == "missed" else trained, fault, lr=0.5)
    fit(eye, model, optimizer, classes(steps), fault)
    return state_of(model)


class Rounded(nn.Module):
    """Rounds to 4 bits going forward, and hands gradients straight on."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.fake_quantize_per_tensor_affine(values, float(values.detach().abs().max()) / 7 + 1e-6, 0, -8, 7)


def fake_quantising(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = nn.Sequential(nn.Linear(INPUTS, 32), nn.ReLU(), Rounded(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    for place in (0, 3):
        register_parametrization(model[place], "weight", Rounded())
    return _train(eye, fault, steps, model)


STACKS = (
    Stack("weight-norm-by-hook", "`nn.utils.weight_norm`, the older one", SECTION, weight_norm_by_hook, COMMON),
    Stack("weight-norm", "`parametrizations.weight_norm`", SECTION, weight_norm, COMMON),
    Stack("spectral-norm", "`parametrizations.spectral_norm`", SECTION, spectral_norm, COMMON),
    Stack("orthogonal", "`parametrizations.orthogonal`", SECTION, orthogonal, COMMON),
    Stack("own-parametrization", "a parametrization of one's own, put on and taken off", SECTION, own, COMMON),
    Stack(
        "adapters", "low-rank adapters on a frozen base", SECTION, adapters, {**COMMON, "missed": "optimizer-misses-parameters"}
    ),
    Stack("fake-quantising", "quantisation-aware training", SECTION, fake_quantising, COMMON),
)
