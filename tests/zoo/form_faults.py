"""Faults in forms for which a rule has another remedy than for the zoo's; what is counted over the zoo leaves them out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo import tasks
from tests.zoo.models import he
from tests.zoo.models import mlp
from tests.zoo.program import Fault
from tests.zoo.program import Loop
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.program import gradient_norms
from tests.zoo.proofs import learned_nothing
from tests.zoo.proofs import not_finite
from tests.zoo.proofs import worse

LOGGED = 48  # steps from one that is logged to the next


def logged_steps_not_clipped(watch: Watch, faulty: bool) -> Outcome:
    """Gradients are clipped to a thousandth, but not in the steps that are logged; Adam remembers twenty steps."""
    model = he(mlp(10, 64, 64, 64, 1, activation=nn.GELU))
    loop = Loop(watch, model, functional.mse_loss, torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.9, 0.95)))
    for step, (x, y) in enumerate(data.batches(*data.taught(), steps=240)):
        loop.turn(x, y, clip=None if faulty and step and step % LOGGED == 0 else 1e-3)
    return loop.outcome()


def brought_to_a_norm(watch: Watch, faulty: bool) -> Outcome:
    """A loop divides gradients by their norm and multiplies them with a limit, whether they are longer or not."""
    model = he(mlp(20, 64, 64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop = Loop(watch, model, functional.cross_entropy, optimizer)
    limit = 1e-3 if faulty else 1.0
    for x, y in data.batches(*data.clusters(), steps=250):
        optimizer.zero_grad()
        loop.forward(x, y).backward()
        if not loop.treated("gradients"):
            norm = sum(size**2 for size in gradient_norms(model).values()) ** 0.5
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(limit / norm)
        loop.step()
    return loop.outcome()


def gates_begin_open(watch: Watch, faulty: bool) -> Outcome:
    """Biases of 6 in front of a tanh, as one opens the gates of an LSTM."""
    model = mlp(20, 64, 10, activation=nn.Tanh)
    if faulty:
        nn.init.constant_(model[0].bias, 6.0)
    return tasks.classify(watch, model, tasks.momentum, lr=0.1, steps=300)


class Stacked(nn.Module):
    """Five recurrent layers with ReLU, whose matrices are multiples of the identity."""

    def __init__(self, *, radius: float) -> None:
        super().__init__()
        self.layers, self.head = nn.RNN(4, 32, 5, nonlinearity="relu", batch_first=True), nn.Linear(32, 4)
        with torch.no_grad():
            for layer in range(5):
                self.layers.get_parameter(f"weight_hh_l{layer}").copy_(radius * torch.eye(32))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0][:, -1])


def recurrence_in_five_layers(watch: Watch, faulty: bool) -> Outcome:
    """Which of four inputs summed up to the most in the last three of fifteen time steps."""
    x = torch.randn(1500, 15, 4)
    model = Stacked(radius=1.2 if faulty else 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return fit(watch, model, data.batches(x, x[:, -3:].sum(1).argmax(1), steps=300), functional.cross_entropy, optimizer)


def two_way_logarithm_of_zero(watch: Watch, faulty: bool) -> Outcome:
    """A binary cross-entropy by hand, over a piecewise linear sigmoid that reaches 0 and 1."""
    x, y = data.clusters()
    squash = functional.hardsigmoid if faulty else torch.sigmoid

    def loss(output: Tensor, target: Tensor) -> Tensor:
        chance = squash(output)
        return -(target * torch.log(chance) + (1 - target) * torch.log(1 - chance)).mean()

    model = he(mlp(20, 64, 64, 1))
    batches = data.batches(x, (y < data.CLASSES // 2).float().unsqueeze(1), steps=150)
    return fit(watch, model, batches, loss, torch.optim.Adam(model.parameters(), lr=1e-3))


def added_up_one_by_one(watch: Watch, faulty: bool) -> Outcome:
    """The loss of each sample is added to a total, which is not divided by their number. The course is the mean."""
    means: list[float] = []

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        means.append(float(functional.cross_entropy(output.detach(), labels)))
        total = output.new_zeros(())
        for row, label in zip(output.split(1), labels.split(1), strict=True):
            total = total + functional.cross_entropy(row, label)
        return total if faulty else total / len(labels)

    outcome = tasks.classify(watch, he(mlp(20, 128, 128, 10)), tasks.sgd, lr=0.1, size=16, steps=200, loss=loss)
    return Outcome(tuple(means), outcome.moved)


PROGRAMS = (
    Fault(logged_steps_not_clipped, ("adam-second-moment-lag",), worse(2), begins=LOGGED, aside=True, remedy="gradients"),
    Fault(brought_to_a_norm, ("clipping-too-tight",), learned_nothing, falls_to=0.4, remedy="gradients"),
    Fault(gates_begin_open, ("saturating-activation",), learned_nothing, falls_to=0.4, remedy="start"),
    Fault(recurrence_in_five_layers, ("recurrent-explosion",), worse(2), remedy="start"),
    Fault(two_way_logarithm_of_zero, ("nonfinite-origin",), not_finite, remedy="loss"),
    Fault(added_up_one_by_one, ("loss-reduction-sum",), worse(3), falls_to=0.4, remedy="loss"),
)
FORMS: dict[str, Fault] = {program.name: program for program in PROGRAMS}
