"""Losses that are fed what they do not take: logits, activated outputs, sums, targets of another size, the wrong sign."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo import tasks
from tests.zoo.models import GPT
from tests.zoo.models import convnet
from tests.zoo.models import he
from tests.zoo.models import mlp
from tests.zoo.models import residual_net
from tests.zoo.program import Fault
from tests.zoo.program import Loss
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import both
from tests.zoo.proofs import fact
from tests.zoo.proofs import worse


def summed_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target, reduction="sum")


def summed_squares(output: Tensor, target: Tensor) -> Tensor:
    return functional.mse_loss(output, target, reduction="sum")


def logits_into_nll(watch: Watch, faulty: bool) -> Outcome:
    model = nn.Sequential(*mlp(20, 64, 64, 10), *([] if faulty else [nn.LogSoftmax(dim=1)]))
    return tasks.classify(watch, model, tasks.adam, lr=1e-3, loss=functional.nll_loss)


def logits_into_nll_convnet(watch: Watch, faulty: bool) -> Outcome:
    model = nn.Sequential(*convnet(), *([] if faulty else [nn.LogSoftmax(dim=1)]))
    return tasks.see(watch, model, tasks.sgd, lr=0.05, loss=nn.NLLLoss())


def one_class(watch: Watch, faulty: bool) -> Outcome:
    """Two classes told apart with a single output and cross entropy, which is 0 whatever the model says."""
    x, y = data.clusters()
    target = (y < 5).long()

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(output, torch.zeros_like(labels) if faulty else labels)

    model = mlp(20, 64, 1 if faulty else 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(watch, model, data.batches(x, target, steps=250), loss, optimizer)


def relu_on_logits(watch: Watch, faulty: bool) -> Outcome:
    model = nn.Sequential(*mlp(20, 64, 64, 10), *([nn.ReLU()] if faulty else []))
    return tasks.classify(watch, model, tasks.sgd, lr=0.1, steps=300)


def sigmoid_on_logits_convnet(watch: Watch, faulty: bool) -> Outcome:
    model = nn.Sequential(*convnet(), *([nn.Sigmoid()] if faulty else []))
    return tasks.see(watch, model, tasks.momentum, lr=0.05)


def sigmoid_before_squares(watch: Watch, faulty: bool) -> Outcome:
    """Targets from about -3 to 3, and an output that stays between 0 and 1."""
    model = nn.Sequential(*mlp(10, 64, 64, 1), *([nn.Sigmoid()] if faulty else []))
    return tasks.regress(watch, model, tasks.adam, lr=3e-3)


def standardised_pixels_from_sigmoid(watch: Watch, faulty: bool) -> Outcome:
    x, _ = data.digits()
    pixels = data.standardised(x).flatten(1)
    model = nn.Sequential(*mlp(144, 64, 16), nn.ReLU(), *mlp(16, 64, 144), *([nn.Sigmoid()] if faulty else []))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return fit(watch, model, data.batches(pixels, pixels, steps=300), functional.mse_loss, optimizer)


def sum_over_batch(watch: Watch, faulty: bool) -> Outcome:
    loss: Loss = summed_cross_entropy if faulty else functional.cross_entropy
    outcome = tasks.classify(watch, he(mlp(20, 128, 128, 10)), tasks.sgd, lr=0.1, loss=loss)
    return _per_sample(outcome, 64 if faulty else 1)


def sum_over_batch_convnet(watch: Watch, faulty: bool) -> Outcome:
    loss: Loss = summed_cross_entropy if faulty else functional.cross_entropy
    outcome = tasks.see(watch, convnet(), tasks.momentum, lr=0.05, loss=loss)
    return _per_sample(outcome, 64 if faulty else 1)


def logarithms_picked_and_added(watch: Watch, faulty: bool) -> Outcome:
    """A cross-entropy written out: the log-probability of each label, added up over the batch."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        picked = -output.log_softmax(dim=1)[torch.arange(len(target)), target]
        return picked.sum() if faulty else picked.mean()

    outcome = tasks.classify(watch, he(mlp(20, 128, 128, 10)), tasks.sgd, lr=0.1, loss=loss)
    return _per_sample(outcome, 64 if faulty else 1)


def sum_of_squares(watch: Watch, faulty: bool) -> Outcome:
    loss: Loss = summed_squares if faulty else functional.mse_loss
    return _per_sample(tasks.regress(watch, mlp(10, 64, 64, 1), tasks.sgd, lr=0.05, loss=loss), 64 if faulty else 1)


def maximised(watch: Watch, faulty: bool) -> Outcome:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return -functional.cross_entropy(output, target) if faulty else functional.cross_entropy(output, target)

    return tasks.classify(watch, he(mlp(20, 64, 64, 10)), tasks.sgd, lr=0.05, loss=loss)


def maximised_squares(watch: Watch, faulty: bool) -> Outcome:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return -((output - target) ** 2).mean() if faulty else ((output - target) ** 2).mean()

    return tasks.regress(watch, mlp(10, 64, 64, 1), tasks.adam, lr=3e-3, loss=loss)


def targets_in_thousands(watch: Watch, faulty: bool) -> Outcome:
    scale, offset = (1000.0, 5000.0) if faulty else (1.0, 0.0)
    return _relative(tasks.regress(watch, mlp(10, 64, 64, 1), tasks.sgd, lr=0.05, scale=scale, offset=offset), scale)


def targets_in_hundreds(watch: Watch, faulty: bool) -> Outcome:
    scale = 300.0 if faulty else 1.0
    return _relative(tasks.regress(watch, mlp(10, 64, 64, 1), tasks.momentum, lr=0.02, scale=scale), scale)


def prices_adam(watch: Watch, faulty: bool) -> Outcome:
    """Adam moves the last bias by its rate each step, and the targets' mean is far away."""
    scale, offset = (200.0, 3000.0) if faulty else (1.0, 0.0)
    return _relative(tasks.regress(watch, mlp(10, 64, 64, 1), tasks.adam, lr=2e-3, scale=scale, offset=offset), scale)


class GRURegressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(4, 24, batch_first=True), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


def flat_targets_huber(watch: Watch, faulty: bool) -> Outcome:
    """(N, 1) against (N,) once more: a recurrent net, Huber's loss."""
    return _series(watch, functional.smooth_l1_loss, flat=faulty)


def flat_targets_absolute(watch: Watch, faulty: bool) -> Outcome:
    return _series(watch, lambda output, target: (output - target).abs().mean(), flat=faulty)


def _series(watch: Watch, loss: Loss, *, flat: bool) -> Outcome:
    x = torch.randn(1500, 10, 4)
    y = x[:, -3:].sum((1, 2), keepdim=True).squeeze(2) / 12**0.5
    model = GRURegressor()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    outcome = fit(watch, model, data.batches(x, y[:, 0] if flat else y, steps=200), loss, optimizer)
    with torch.no_grad():
        return Outcome(outcome.course, facts={"error": float(functional.mse_loss(model(x), y))})


def softmax_convnet(watch: Watch, faulty: bool) -> Outcome:
    model = convnet()

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(output.softmax(dim=1) if faulty else output, labels)

    return tasks.see(watch, model, tasks.momentum, lr=0.05, loss=loss)


def softmax_gpt(watch: Watch, faulty: bool) -> Outcome:
    def loss(output: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(functional.softmax(output, dim=1) if faulty else output, labels)

    return tasks.read(watch, GPT(data.vocabulary_size()), tasks.adamw, lr=3e-3, loss=loss)


def sum_over_batch_residual(watch: Watch, faulty: bool) -> Outcome:
    loss: Loss = summed_cross_entropy if faulty else functional.cross_entropy
    outcome = tasks.classify(watch, residual_net(20, depth=6), tasks.sgd, lr=0.1, loss=loss, steps=120)
    return _per_sample(outcome, 64 if faulty else 1)


def _per_sample(outcome: Outcome, count: int) -> Outcome:
    """With the loss as a mean over this many samples."""
    return Outcome(tuple(loss / count for loss in outcome.course), outcome.moved, facts={"loss": outcome.end / count})


def _relative(outcome: Outcome, scale: float) -> Outcome:
    """With the squared error over the targets' variance."""
    return Outcome(outcome.course, outcome.moved, facts={"error": outcome.end / scale**2})


def _falls_without_end(fault: Outcome, twin: Outcome) -> bool:
    """The loss ended far below what any labels allow, or is not finite."""
    return not fault.end > -10


PROGRAMS = (
    Fault(logits_into_nll, ("loss-input-mismatch",), _falls_without_end, falls_to=0.4, remedy="loss"),
    Fault(logits_into_nll_convnet, ("loss-input-mismatch",), _falls_without_end, falls_to=0.4, remedy="loss"),
    Fault(
        one_class, ("loss-input-mismatch",), lambda fault, twin: max(fault.course) == 0 < twin.end, falls_to=0.4, remedy="loss"
    ),
    Fault(relu_on_logits, ("output-range",), worse(1.5), falls_to=0.4, remedy="start"),
    Fault(sigmoid_on_logits_convnet, ("output-range",), lambda fault, twin: fault.end > 1.4, falls_to=0.4, remedy="start"),
    Fault(sigmoid_before_squares, ("output-range",), lambda fault, twin: fault.end > 0.3 > 2 * twin.end, remedy="start"),
    Fault(standardised_pixels_from_sigmoid, ("output-range",), worse(1.2), falls_to=0.8, remedy="start"),
    Fault(sum_over_batch, ("loss-reduction-sum",), worse(3), falls_to=0.4, remedy="loss"),
    Fault(sum_over_batch_convnet, ("loss-reduction-sum",), worse(3), falls_to=0.4, remedy="loss"),
    Fault(sum_over_batch_residual, ("loss-reduction-sum",), worse(3), falls_to=0.4, remedy="loss"),
    Fault(logarithms_picked_and_added, ("loss-reduction-sum",), worse(3), falls_to=0.4, remedy="loss"),
    Fault(sum_of_squares, ("loss-reduction-sum",), worse(2), remedy="loss"),
    Fault(maximised, ("loss-unbounded-below",), _falls_without_end, falls_to=0.4, remedy="loss"),
    Fault(maximised_squares, ("loss-unbounded-below",), _falls_without_end, falls_to=0.4, remedy="loss"),
    Fault(targets_in_thousands, ("unscaled-target",), fact("error", least=0.9, most=0.3), remedy="batch"),
    Fault(targets_in_hundreds, ("unscaled-target",), fact("error", least=0.9, most=0.3), remedy="batch"),
    Fault(prices_adam, ("unscaled-target",), fact("error", least=0.9, most=0.3), remedy="batch"),
    Fault(flat_targets_huber, ("loss-shape-broadcast",), fact("error", least=0.8, most=0.3), remedy="loss"),
    Fault(flat_targets_absolute, ("loss-shape-broadcast",), fact("error", least=0.8, most=0.3), remedy="loss"),
    Fault(softmax_convnet, ("double-softmax",), both(worse(3), lambda fault, twin: fault.end > 1.4), falls_to=0.4),
    Fault(softmax_gpt, ("double-softmax",), worse(1.2)),
)
