"""Initial weights, activations, inputs and targets as users get them wrong."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.proofs import worse
from tests.zoo.street_faults_rates import Forecaster
from tests.zoo.street_faults_rates import lenet
from tests.zoo.street_healthy_data import drawn
from tests.zoo.street_healthy_data import houses
from tests.zoo.street_healthy_data import pulses
from tests.zoo.street_healthy_data import stripes
from tests.zoo.street_healthy_data import weather


def stack(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths, the activation between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def descend(
    watch: Watch,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 300,
    scale: float = 1.0,
) -> Outcome:
    """A loop that tells classes or numbers apart by the targets' type; the course is the loss over ``scale``."""
    watch(model)
    criterion = functional.mse_loss if y.is_floating_point() else functional.cross_entropy
    course = []
    for inputs, target in drawn(x, y, steps=steps):
        loss = criterion(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item() / scale)
    return Outcome(tuple(course))


def normal_by_default(watch: Watch, faulty: bool) -> Outcome:
    """nn.init.normal_ without a std, over all that has two dimensions."""
    x, y = houses()
    model = stack(8, 128, 128, 128, 128, 128, 1, activation=nn.Tanh)
    for parameter in model.parameters():
        if parameter.dim() > 1 and faulty:
            nn.init.normal_(parameter)
    return descend(watch, model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), x, y, steps=400)


def uniform_by_default(watch: Watch, faulty: bool) -> Outcome:
    """nn.init.uniform_ without bounds draws from 0 to 1, by model.apply over convolutions and linear layers."""

    def initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.uniform_(module.weight) if faulty else nn.init.kaiming_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    x, y = stripes()
    model = lenet().apply(initialise)
    return descend(watch, model, torch.optim.Adam(model.parameters(), lr=1e-3), x, y, steps=250)


def hundredth_in_seven_layers(watch: Watch, faulty: bool) -> Outcome:
    """A std of 0.01 in each of seven linear layers."""
    x, y = houses()
    model = stack(8, 64, 64, 64, 64, 64, 64, 1)
    for module in model:
        if isinstance(module, nn.Linear):
            if faulty:
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return descend(watch, model, torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9), x, y, steps=400)


def filled_with_one_number(watch: Watch, faulty: bool) -> Outcome:
    """nn.init.constant_ on every layer, so that runs can be compared."""
    x, y = houses()
    model = stack(8, 48, 48, 1)
    if faulty:
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.05)
    return descend(watch, model, torch.optim.Adam(model.parameters(), lr=3e-3), x, y)


def biases_of_a_rare_class(watch: Watch, faulty: bool) -> Outcome:
    """The bias that lets a detector start at one per cent is given to all layers, not to the last."""
    x, y = pulses()
    model = nn.Sequential(
        nn.Conv1d(1, 24, 5, stride=2), nn.ReLU(), nn.Conv1d(24, 24, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(312, 3)
    )
    if faulty:
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.constant_(parameter, -4.6)
    return descend(watch, model, torch.optim.AdamW(model.parameters(), lr=1e-3), x, y)


def eight_sigmoids(watch: Watch, faulty: bool) -> Outcome:
    """A net of a textbook, with a sigmoid after each of eight layers."""
    x, y = houses()
    activation = nn.Sigmoid if faulty else nn.Tanh
    model = stack(8, 48, 48, 48, 48, 48, 48, 48, 48, 1, activation=activation)
    return descend(watch, model, torch.optim.SGD(model.parameters(), lr=0.1), x, y, steps=500)


def pixels_as_they_are(watch: Watch, faulty: bool) -> Outcome:
    """Pictures of numbers from 0 to 255 go into a net without a norm."""
    x, y = stripes()
    pixels = (127 + 55 * x).clamp(0, 255).round()
    model = nn.Sequential(nn.Flatten(), *stack(196, 128, 64, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return descend(watch, model, optimizer, pixels if faulty else (pixels - 127) / 55, y)


def years_and_metres(watch: Watch, faulty: bool) -> Outcome:
    """Columns as they stand in the table: years of about 1975, square metres, steps to the station."""
    x, y = houses()
    means = torch.tensor([1975.0, 110, 4, 850, 48, 11, 2, 400])
    scales = torch.tensor([22.0, 40, 1, 320, 2, 3, 1, 150])
    model = stack(8, 64, 64, 1, activation=nn.Tanh)
    return descend(watch, model, torch.optim.Adam(model.parameters(), lr=3e-3), means + scales * x if faulty else x, y)


def prices_in_euros(watch: Watch, faulty: bool) -> Outcome:
    """Prices of about 310,000 euros and a squared error; the course is over their variance."""
    x, y = houses()
    model = stack(8, 64, 64, 1, activation=nn.LeakyReLU)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return descend(watch, model, optimizer, x, 310e3 + 9e4 * y if faulty else y, scale=9e4**2 if faulty else 1.0)


def kelvins(watch: Watch, faulty: bool) -> Outcome:
    """What came before is standardised, and what is to be foretold is in kelvins; the course is over its variance."""
    x, y = weather()
    model = Forecaster(nn.GRU)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return descend(watch, model, optimizer, x, 288 + 9 * y if faulty else y, steps=200, scale=81.0 if faulty else 1.0)


PROGRAMS = (
    Fault(normal_by_default, ("init-too-large",), worse(2)),
    Fault(uniform_by_default, ("init-too-large",), worse(2)),
    Fault(hundredth_in_seven_layers, ("init-too-small",), worse(2)),
    Fault(filled_with_one_number, ("symmetric-init",), worse(2)),
    Fault(biases_of_a_rare_class, ("dead-units",), worse(2)),
    Fault(eight_sigmoids, ("saturating-activation",), worse(2)),
    Fault(pixels_as_they_are, ("unnormalized-input",), worse(2)),
    Fault(years_and_metres, ("unnormalized-input",), worse(2)),
    Fault(prices_in_euros, ("unscaled-target",), worse(2)),
    Fault(kelvins, ("unscaled-target",), worse(2)),
)
