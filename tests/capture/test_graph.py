"""What the autograd graph tells: losses, broadcasts, reached parameters, followers, cuts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradscope.capture.graph import Graph
from gradscope.capture.graph import reaches
from gradscope.capture.losses import read_broadcasts
from gradscope.capture.losses import read_losses
from tests.capture.watching import watching
from tests.models import mlp

X = torch.linspace(-1, 1, 40).view(8, 5)
CLASSES = torch.arange(8) % 5
TARGETS = torch.linspace(0, 1, 40).view(8, 5)


SIGNS = TARGETS.sub(0.5).sign()


def connectionist(y):
    """A connectionist loss of two samples over eight time steps."""
    return nn.functional.ctc_loss(y.unsqueeze(1).expand(8, 2, 5), torch.tensor([[1, 2], [3, 4]]), (8, 8), (2, 2))


def graph_of(loss):
    return Graph(loss(nn.Linear(5, 5)(X)))


@pytest.mark.parametrize(
    ("loss", "kind", "reduction", "producer"),
    [
        (lambda y: nn.functional.cross_entropy(y, CLASSES), "cross_entropy", "mean", None),
        (lambda y: nn.functional.cross_entropy(y, CLASSES, reduction="sum"), "cross_entropy", "sum", None),
        (lambda y: nn.functional.cross_entropy(y.softmax(-1), CLASSES), "cross_entropy", "mean", "softmax"),
        (lambda y: nn.functional.cross_entropy(y.view(8, 5, 1), CLASSES.view(8, 1)), "cross_entropy", "mean", None),
        (lambda y: nn.functional.nll_loss(torch.log(y.softmax(-1)), CLASSES), "nll", "mean", None),
        (lambda y: nn.functional.mse_loss(y, TARGETS), "mse", "mean", None),
        (lambda y: nn.functional.mse_loss(y.sigmoid(), TARGETS, reduction="sum"), "mse", "sum", "sigmoid"),
        (lambda y: ((y - TARGETS) ** 2).mean(), "mse", "mean", None),
        (lambda y: (TARGETS - y.tanh()).square().sum(), "mse", "sum", "tanh"),
        (lambda y: (y - TARGETS).abs().mean(), "l1", "mean", None),
        (lambda y: nn.functional.smooth_l1_loss(y, TARGETS), "smooth_l1", "mean", None),
        (lambda y: nn.functional.huber_loss(y, TARGETS), "smooth_l1", "mean", None),
        (lambda y: nn.functional.binary_cross_entropy(y.sigmoid(), TARGETS), "bce", "mean", "sigmoid"),
        (lambda y: nn.functional.binary_cross_entropy_with_logits(y.sigmoid(), TARGETS), "bce_with_logits", "mean", "sigmoid"),
        (lambda y: nn.functional.cross_entropy(y, CLASSES) / 4 + 0.01 * y.new_zeros(()), "cross_entropy", "mean", None),
        (lambda y: nn.functional.cross_entropy(y, CLASSES, label_smoothing=0.1), "cross_entropy", "mean", None),
        (lambda y: nn.functional.cross_entropy(y, TARGETS), "cross_entropy", "mean", None),
        (lambda y: nn.functional.cross_entropy(y, TARGETS, reduction="sum"), "cross_entropy", "sum", None),
        (lambda y: nn.functional.cross_entropy(y.softmax(-1), TARGETS), "cross_entropy", "mean", "softmax"),
        (lambda y: -(TARGETS * y.log_softmax(-1)).sum(-1).mean(), "cross_entropy", "mean", None),
        (lambda y: nn.functional.cross_entropy(y.softmax(-1) / 2, CLASSES), "cross_entropy", "mean", "softmax"),
        (lambda y: nn.functional.cross_entropy(30 * (y / 30).tanh(), CLASSES), "cross_entropy", "mean", None),
        (lambda y: nn.functional.cross_entropy(y, CLASSES, reduction="none").mean(), "cross_entropy", "mean", None),
        (lambda y: nn.functional.cross_entropy(y, CLASSES, reduction="none").sum(), "cross_entropy", "sum", None),
        (lambda y: nn.functional.cross_entropy(y, CLASSES, reduction="sum") / 8, "cross_entropy", "mean", None),
        (lambda y: ((y - TARGETS) ** 2).sum(-1).mean(), "mse", "mean", None),
        (lambda y: ((y - TARGETS) ** 2).mean().sqrt() + y.new_zeros(()), "mse", "mean", None),
        (lambda y: nn.functional.mse_loss(y, TARGETS).sqrt(), "mse", "mean", None),
        (lambda y: nn.functional.kl_div(y.log_softmax(-1), TARGETS, reduction="batchmean"), "kl_div", "mean", "log_softmax"),
        (lambda y: nn.functional.kl_div(y.softmax(-1), TARGETS, reduction="sum"), "kl_div", "sum", "softmax"),
        (lambda y: nn.functional.kl_div(y, TARGETS, reduction="batchmean"), "kl_div", "mean", None),
        (lambda y: (TARGETS * (TARGETS.log() - y.log_softmax(-1))).sum(-1).mean(), "kl_div", "mean", "log_softmax"),
        (
            lambda y: nn.functional.kl_div(y.log_softmax(-1), TARGETS.log(), reduction="batchmean", log_target=True),
            "kl_div",
            "mean",
            "log_softmax",
        ),
        (lambda y: nn.functional.poisson_nll_loss(y, TARGETS), "poisson_nll", "mean", None),
        (lambda y: nn.functional.gaussian_nll_loss(y, TARGETS, y.exp()), "gaussian_nll", "mean", None),
        (lambda y: -torch.distributions.Normal(y, y.exp()).log_prob(TARGETS).mean(), "gaussian_nll", "mean", None),
        (lambda y: -torch.distributions.Normal(y, y.exp()).log_prob(TARGETS).sum(), "gaussian_nll", "sum", None),
        (lambda y: -torch.distributions.Normal(y, y.exp()).log_prob(TARGETS).sum() / 8, "gaussian_nll", "none", None),
        (lambda y: (((y - TARGETS) / y.exp()) ** 2 / 2 + y).mean(), "gaussian_nll", "mean", None),
        (lambda y: ((y - TARGETS).abs() / y.exp() + y).mean(), "laplace_nll", "mean", None),
        (lambda y: (TARGETS * (y - TARGETS) ** 2).mean(), "mse", "none", None),
        (lambda y: (1 - y.relu() * SIGNS).clamp_min(0).mean(), "hinge", "mean", "relu"),
        (lambda y: torch.relu(1 - SIGNS * y).sum(), "hinge", "sum", None),
        (lambda y: torch.maximum(torch.zeros(1), 1 - SIGNS * y.sigmoid()).mean(), "hinge", "mean", "sigmoid"),
        (lambda y: nn.functional.softplus(-SIGNS * y).mean(), "soft_margin", "mean", None),
        (lambda y: -nn.functional.logsigmoid(SIGNS * y.relu()).mean(), "soft_margin", "mean", "relu"),
        (lambda y: nn.functional.soft_margin_loss(y, SIGNS), "soft_margin", "mean", None),
        (lambda y: -nn.functional.log_softmax(y, 1).gather(1, CLASSES[:, None]).mean(), "cross_entropy", "mean", None),
        (lambda y: -y.softmax(1).log_softmax(1).gather(1, CLASSES[:, None]).sum(), "cross_entropy", "sum", "softmax"),
        (lambda y: -y.softmax(1).log_softmax(1)[torch.arange(8), CLASSES].mean(), "cross_entropy", "mean", "softmax"),
        (lambda y: (y.logsumexp(1) - y.gather(1, CLASSES[:, None])[:, 0]).mean(), "cross_entropy", "mean", None),
        (lambda y: -(y.log_softmax(1).gather(1, CLASSES[:, None])[:, 0] * TARGETS[:, 0]).mean(), "other", "mean", None),
        (lambda y: -y.gather(1, CLASSES[:, None]).mean(), "other", "mean", None),
        (lambda y: connectionist(y.softmax(-1)), "ctc", "none", "softmax"),
        (lambda y: connectionist(y.log_softmax(-1)), "ctc", "none", "log_softmax"),
        (lambda y: torch.relu(1 - y).mean() + torch.relu(1 + y).mean(), "other", None, None),
        (lambda y: y.cos().prod(), "other", None, None),
        (lambda y: y.cos().mean(), "other", "mean", None),
        (lambda y: 1 - y.cos().sum(), "other", "sum", None),
        (lambda y: -y.logsumexp(1).sum(), "other", "sum", None),
        (lambda y: y.cos().sum() / 8, "other", None, None),
        (lambda y: y.cos().sum(-1).mean(), "other", "mean", None),
    ],
)
def test_the_loss_is_recognised(loss, kind, reduction, producer):
    (found,) = read_losses(graph_of(loss))
    assert (found.kind, found.reduction, found.producer) == (kind, reduction, producer)


def test_shapes_classes_and_the_best_constant_prediction():
    (entropy,) = read_losses(graph_of(lambda y: nn.functional.cross_entropy(y, CLASSES)))
    assert (entropy.input_shape, entropy.target_shape, entropy.classes) == ((8, 5), (8,), 5)
    assert entropy.baseline == pytest.approx(math.log(5))
    (square,) = read_losses(graph_of(lambda y: nn.functional.mse_loss(y, TARGETS)))
    assert square.baseline == pytest.approx(TARGETS.var(correction=0).item())


def test_a_cross_entropy_by_hand_has_classes_and_labels():
    (found,) = read_losses(graph_of(lambda y: -y.log_softmax(1).gather(1, CLASSES[:, None]).mean()))
    assert (found.node, found.target_shape, found.classes) == ("Gather", (8,), 5)
    assert found.baseline == pytest.approx(math.log(5))


def test_what_a_target_is_made_of():
    for loss, dtype in (
        (lambda y: nn.functional.cross_entropy(y, CLASSES), "int64"),
        (lambda y: nn.functional.cross_entropy(y, TARGETS), "float32"),
        (lambda y: nn.functional.mse_loss(y, TARGETS.double()), "float64"),
        (lambda y: (y - TARGETS).square().mean(), None),
    ):
        assert read_losses(graph_of(loss))[0].target_dtype == dtype


def test_a_penalty_on_weights_is_no_loss_of_the_model():
    layer = nn.Linear(5, 5)
    start = layer.weight.detach().clone()
    loss = nn.functional.cross_entropy(layer(X), CLASSES) + ((layer.weight - start) ** 2).sum() + layer.weight.square().sum()
    assert [found.kind for found in read_losses(Graph(loss))] == ["cross_entropy"]


def test_several_losses_in_one_sum():
    found = read_losses(graph_of(lambda y: nn.functional.cross_entropy(y, CLASSES) + nn.functional.mse_loss(y, TARGETS)))
    assert {loss.kind for loss in found} == {"cross_entropy", "mse"}


@pytest.mark.parametrize(
    "loss",
    [
        lambda y: ((y[:, :1] - TARGETS[:, 0]) ** 2).mean(),
        lambda y: ((TARGETS[:, 0] - y[:, :1]) ** 2).mean(),
        lambda y: ((y[:, 0] - TARGETS[:, :1]) ** 2).mean(),
        lambda y: torch.log(torch.cosh(y[:, :1] - TARGETS[:, 0])).mean(),
        lambda y: torch.log(torch.cosh(y[:, 0] - TARGETS[:, :1])).mean(),
        lambda y: (lambda d: torch.maximum(0.9 * d, -0.1 * d).mean())(TARGETS[:, 0] - y[:, :1]),
        lambda y: (lambda d: torch.where(d.abs() < 1, d * d / 2, d.abs() - 0.5).mean())(y[:, :1] - TARGETS[:, 0]),
        lambda y: (1 - TARGETS[:, 0] * y[:, :1]).clamp_min(0).mean(),
        lambda y: -(TARGETS[:, 0] * y[:, :1].sigmoid().log()).mean(),
        pytest.param(
            lambda y: nn.functional.mse_loss(y[:, :1], TARGETS[:, 0]),
            marks=pytest.mark.filterwarnings("ignore:Using a target size"),
        ),
        pytest.param(
            lambda y: nn.functional.l1_loss(y[:, :1], TARGETS[:, 0]),
            marks=pytest.mark.filterwarnings("ignore:Using a target size"),
        ),
    ],
)
def test_a_silent_broadcast_is_seen(loss):
    (found,) = read_broadcasts(graph_of(loss))
    assert found.result == (8, 8)
    assert {found.left, found.right} == {(8, 1), (8,)}


MAPS = TARGETS[:, :4].view(8, 2, 2)


@pytest.mark.parametrize(
    "loss",
    [
        lambda y: ((y[:, :4].view(8, 1, 2, 2) - MAPS) ** 2).mean(),
        lambda y: (y[:, :4].view(8, 2, 2) - MAPS.unsqueeze(1)).abs().mean(),
        lambda y: -(MAPS * y[:, :4].view(8, 1, 2, 2).sigmoid().log()).mean(),
    ],
)
def test_a_silent_broadcast_of_maps_is_seen(loss):
    (found,) = read_broadcasts(graph_of(loss))
    assert found.result == (8, 8, 2, 2)
    assert {found.left, found.right} == {(8, 1, 2, 2), (8, 2, 2)}


@pytest.mark.parametrize(
    "loss",
    [
        lambda y: ((y[:, :4].view(8, 1, 2, 2) - MAPS.unsqueeze(1)) ** 2).mean(),
        lambda y: ((y[:, :4].view(8, 2, 2).unsqueeze(1) - MAPS) ** 2).mean(),
        lambda y: ((y[:, None] - TARGETS) ** 2).mean(),
        lambda y: ((y - TARGETS) ** 2).mean(),
        lambda y: ((y[:, 0] - TARGETS[:, 0]) ** 2).mean(),
        lambda y: ((y - y.mean(0)) ** 2).mean(),
        lambda y: torch.log(torch.cosh(y[:, :1] - TARGETS[:, :1])).mean(),
        lambda y: torch.exp(-((y[:, :1] - TARGETS[:, :1].T) ** 2)).mean(),
        lambda y: torch.log(torch.cosh(y[:, 0].unsqueeze(1) - TARGETS[:, 0])).mean(),
        lambda y: nn.functional.softplus(y[:, :1] - y[:, :1].T).mean(),
        lambda y: (TARGETS @ TARGETS.T * y[:, :1]).mean(),
        lambda y: nn.functional.cross_entropy(y, CLASSES),
    ],
)
def test_meant_broadcasts_are_not(loss):
    assert read_broadcasts(graph_of(loss)) == ()


def test_an_unknown_sum_tells_what_it_is_over():
    (found,) = read_losses(graph_of(lambda y: -y.logsumexp(1).sum()))
    assert found.input_shape == (8,)


def test_reading_changes_nothing_that_a_checkpoint_packed():
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5))
    loss = checkpoint(lambda x: nn.functional.cross_entropy(model(x), CLASSES), X, use_reentrant=False)
    before = model[1].running_mean.clone()
    (found,) = read_losses(Graph(loss))
    assert found.kind == "cross_entropy"
    assert torch.equal(model[1].running_mean, before)
    loss.backward()


def test_a_graph_that_was_freed_or_changed_can_still_be_read():
    loss = nn.functional.cross_entropy(nn.Linear(5, 5)(X), CLASSES)
    loss.backward()
    assert read_losses(Graph(loss))[0].kind == "cross_entropy"


def test_reaches():
    model, other = mlp(5, 4, 2), mlp(5, 4, 2)
    loss = model(X).sum()
    ids = {id(p) for p in model.parameters()}
    assert reaches(loss.grad_fn, ids)
    assert reaches(loss.grad_fn, {id(model[0].weight)})
    assert not reaches(other(X).sum().grad_fn, ids)


def facts(model, *, loss=lambda y: y.square().mean()):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        loss(model(X)).backward()
        optimizer.step()
    return seen.facts


def test_what_follows_each_layer():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b, self.c, self.d = (
                nn.Linear(5, 5),
                nn.BatchNorm1d(5),
                nn.Linear(5, 5),
                nn.Linear(5, 5),
                nn.Linear(5, 5),
            )

        def forward(self, x):
            x = nn.functional.relu(self.norm(self.a(x)))
            x = x + torch.tanh(self.b(x))
            return self.d(self.c(x))

    found = facts(Model())
    modules = {module.path: module for module in found.modules}
    assert modules["a"].norm_follows
    assert modules["a"].activation in (None, "relu")
    assert modules["norm"].activation == "relu"
    assert (modules["b"].activation, modules["b"].norm_follows) == ("tanh", False)
    assert (modules["c"].activation, modules["c"].norm_follows) == (None, False)
    assert found.wiring.norms == 1
    assert found.wiring.residual_additions == 1


def test_reached_parameters_and_where_the_graph_is_cut():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x):
            return self.c(self.b(self.a(x)).detach())

    found = facts(Cut()).wiring
    assert found.reached == ("c.weight", "c.bias")
    assert found.cuts == (("b", "c"),)
    whole = facts(mlp(5, 4, 3)).wiring
    assert len(whole.reached) == 4
    assert whole.cuts == ()


@pytest.mark.parametrize(
    ("function", "activation"),
    [
        (lambda x: 1 / (1 + torch.exp(-x)), "sigmoid"),
        (lambda x: (1 + (-1 * x).exp()).reciprocal(), "sigmoid"),
        (lambda x: torch.exp(-x), None),
        (lambda x: torch.log(1 + torch.exp(-x)), None),
    ],
)
def test_a_sigmoid_that_is_written_out(function, activation):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x):
            return self.b(function(self.a(x)))

    modules = {module.path: module for module in facts(Model()).modules}
    assert modules["a"].activation == activation
