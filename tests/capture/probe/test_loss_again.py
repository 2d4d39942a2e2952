"""The loss as a function of the model's outputs, whatever loss it is."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from gradscope.capture.probe.loss_again import Made
from gradscope.capture.probe.loss_again import NotUnderstood
from gradscope.capture.probe.loss_again import loss_again

LABELS = torch.tensor([0, 2, -100, 1, 4, 2])
VALUES = torch.linspace(-2, 2, 30).reshape(6, 5)
SHARES = VALUES.sigmoid()
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])

LOSSES = {
    "cross_entropy": lambda x: F.cross_entropy(x, LABELS),
    "summed": lambda x: F.cross_entropy(x, LABELS, reduction="sum"),
    "each": lambda x: F.cross_entropy(x, LABELS, reduction="none").mean(),
    "ignored": lambda x: F.cross_entropy(x, LABELS.clamp(min=0), ignore_index=2),
    "weighted": lambda x: F.cross_entropy(x, LABELS, weight=WEIGHTS),
    "smoothed": lambda x: F.cross_entropy(x, LABELS, label_smoothing=0.1),
    "smoothed and summed": lambda x: F.cross_entropy(x, LABELS, label_smoothing=0.1, reduction="sum"),
    "soft labels": lambda x: F.cross_entropy(x, SHARES / SHARES.sum(-1, keepdim=True)),
    "of sequences": lambda x: F.cross_entropy(x.reshape(2, 3, 5).transpose(1, 2), LABELS.reshape(2, 3)),
    "next token": lambda x: F.cross_entropy(x.reshape(2, 3, 5)[:, :-1].reshape(-1, 5), LABELS[[0, 1, 3, 4]]),
    "scaled": lambda x: 3 * F.cross_entropy(x / 0.7, LABELS) / 4,
    "of float": lambda x: F.cross_entropy(x.double().float() * 1.0, LABELS),
    "nll": lambda x: F.nll_loss(torch.log_softmax(x, -1), LABELS),
    "nll by hand": lambda x: -torch.log_softmax(x, 1).gather(1, LABELS.clamp(min=0)[:, None]).mean(),
    "nll by index": lambda x: -torch.log(x.softmax(-1) + 1e-6)[torch.arange(6), LABELS.clamp(min=0)].mean(),
    "mse": lambda x: F.mse_loss(x, VALUES),
    "mse summed": lambda x: F.mse_loss(x, VALUES, reduction="sum"),
    "mse by hand": lambda x: ((x - VALUES) ** 2).mean(),
    "mse the other way": lambda x: (VALUES - x).pow(2).sum(-1).mean(),
    "mse as a product": lambda x: ((x - VALUES) * (x - VALUES)).mean() / 2,
    "rmse": lambda x: torch.sqrt(F.mse_loss(x, VALUES)),
    "l1": lambda x: F.l1_loss(x, VALUES),
    "smooth_l1": lambda x: F.smooth_l1_loss(x, VALUES, beta=0.3),
    "huber": lambda x: F.huber_loss(x, VALUES, delta=0.3),
    "bce": lambda x: F.binary_cross_entropy(x.sigmoid(), SHARES),
    "bce_with_logits": lambda x: F.binary_cross_entropy_with_logits(x, SHARES, pos_weight=WEIGHTS),
    "one column": lambda x: F.mse_loss(x[:, 2].unsqueeze(0).squeeze(), VALUES[:, 0]),
    "two losses": lambda x: F.cross_entropy(x, LABELS) + 0.1 * x.square().mean(),
    "a list of losses": lambda x: sum([F.cross_entropy(x, LABELS), F.mse_loss(x, VALUES)]),
    "the output itself": lambda x: x.mean(),
}


def output():
    """Something with a graph that stands for a model's output."""
    weight = torch.full((5,), 0.5, requires_grad=True)
    return torch.linspace(3, -3, 30).reshape(6, 5).sin() * weight


@pytest.mark.parametrize("kind", LOSSES)
def test_of_these_and_of_other_outputs(kind):
    out = output()
    loss = LOSSES[kind](out)
    again = loss_again(loss, {(out.grad_fn, 0): 0}, [out])
    loss.backward()
    assert torch.equal(again(Made([out.detach()], {})), loss.detach()) or torch.allclose(
        again(Made([out.detach()], {})), loss.detach(), rtol=1e-6
    )
    other = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(again(Made([other], {})), LOSSES[kind](other), rtol=1e-5)


def test_a_penalty_on_the_weights_follows_them():
    weight = torch.full((5,), 0.5, requires_grad=True)
    out = VALUES * weight
    loss = F.cross_entropy(out, LABELS) + 0.1 * weight.square().sum()
    again = loss_again(loss, {(out.grad_fn, 0): 0}, [out])
    assert torch.allclose(again(Made([out.detach()], {})), loss)
    moved = F.cross_entropy(out, LABELS) + 0.1 * 5 * 4.0
    assert torch.allclose(again(Made([out.detach()], {id(weight): torch.full((5,), 2.0)})), moved)


def test_one_of_several_outputs_is_meant():
    first, second = output(), output() * 2
    loss = F.mse_loss(second, VALUES)
    again = loss_again(loss, {(first.grad_fn, 0): 0, (second.grad_fn, 0): 1}, [first, second])
    assert torch.allclose(again(Made([VALUES, VALUES + 1], {})), torch.tensor(1.0))


def test_what_is_not_known_is_not_guessed():
    out = output()
    for loss in (out.cumsum(0).mean(), torch.logsumexp(out, 0).mean()):
        with pytest.raises(NotUnderstood, match="cannot be worked out again"):
            loss_again(loss, {(out.grad_fn, 0): 0}, [out])
    inside = out.grad_fn.next_functions
    assert inside
    with pytest.raises(NotUnderstood):  # a loss of what lies within the model
        loss_again(F.layer_norm(out, (5,)).mean(), {(output().grad_fn, 0): 0}, [out])


def test_a_target_that_was_changed_since_is_seen():
    target = VALUES.clone()
    out = output()
    loss = F.mse_loss(out, target)
    target.mul_(2)
    with pytest.raises(NotUnderstood, match="changed since"):
        loss_again(loss, {(out.grad_fn, 0): 0}, [out])
