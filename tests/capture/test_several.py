"""Loops with several optimizers or several models: whose step and whose loss is which."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.capture.watching import watching
from tests.models import mlp
from tests.models import regress


def two_optimizers(model, steps, *, lr=0.05):
    first = torch.optim.SGD(model[0].parameters(), lr=lr)
    second = torch.optim.Adam(model[2].parameters(), lr=lr / 10)
    norms = []
    for _ in range(steps):
        model.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        norms.append(float(nn.utils.get_total_norm([p.grad for p in model.parameters()])))
        first.step()
        second.step()
    return norms


def test_two_optimizers_after_one_backward_are_one_step():
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    with watching(model) as seen:
        norms = two_optimizers(model, 6)
    assert seen.field("step") == list(range(6))
    assert seen.field("backwards") == [1] * 6
    assert [len(frame.columns["weight.norm"]) for frame in seen.frames] == [4] * 6
    for step in range(1, 6):
        frame = seen.frames[step]
        assert (frame.columns["update.ratio"] > 0).all()
        for column in ("weight_gradient.carried", "update.outside_change"):
            assert not np.nan_to_num(frame.columns[column]).any(), (column, step)
    assert seen.field("gradient_norm")[1:] == pytest.approx(norms[1:], rel=1e-5)
    assert [info.type for info in seen.facts.optimizers] == ["SGD", "Adam"]


def test_two_optimizers_with_a_backward_each_are_two_steps():
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    first = torch.optim.SGD(model[0].parameters(), lr=0.05)
    second = torch.optim.SGD(model[2].parameters(), lr=0.01)
    with watching(model) as seen:
        for _ in range(3):
            for optimizer in (first, second):
                model.zero_grad()
                model(torch.randn(8, 4)).square().mean().backward()
                optimizer.step()
    assert seen.field("step") == list(range(6))
    assert seen.field("learning_rate") == [0.05, 0.01] * 3
    for frame in seen.frames[1:]:
        assert not np.nan_to_num(frame.columns["update.outside_change"]).any()


def gan_losses(generator, discriminator, *, zero_discriminator_first=True):
    """One step of both: the losses of each."""
    bce = nn.functional.binary_cross_entropy_with_logits
    real, noise = torch.randn(16, 2) + 3, torch.randn(16, 4)
    ones, zeros = torch.ones(16, 1), torch.zeros(16, 1)
    yield bce(discriminator(real), ones) + bce(discriminator(generator(noise).detach()), zeros)
    yield 100 + bce(discriminator(generator(noise)), ones)


@pytest.mark.parametrize("every", [1, 3])
def test_the_two_models_of_a_gan_each_have_their_own_steps_and_losses(every):
    torch.manual_seed(0)
    generator, discriminator = mlp(4, 16, 2), mlp(2, 16, 1)
    steps_g = torch.optim.Adam(generator.parameters(), lr=1e-3)
    steps_d = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    expected_d, expected_g = [], []
    with watching(generator, every=every) as seen_g, watching(discriminator, every=every) as seen_d:
        for _ in range(8):
            losses = gan_losses(generator, discriminator)
            steps_d.zero_grad()
            loss = next(losses)
            loss.backward()
            steps_d.step()
            expected_d.append(loss.item())
            steps_g.zero_grad()
            loss = next(losses)
            loss.backward()
            steps_g.step()
            expected_g.append(loss.item())
    assert seen_d.field("loss") == pytest.approx(expected_d)
    assert seen_g.field("loss") == pytest.approx(expected_g)
    for seen in (seen_g, seen_d):
        assert seen.field("step") == list(range(8))
        assert seen.field("foreign") == [0] * 8
        assert seen.facts.shared_process
        for frame in seen.frames:
            assert (frame.columns["update.ratio"] > 0).all()
            for column in ("weight_gradient.carried", "update.outside_change"):
                assert not np.nan_to_num(frame.columns[column]).any(), column
    for frame in seen_d.frames:  # of its own step, not of the generator's pass through it
        assert seen_d.get("input.mean", "(input)") == pytest.approx(0, abs=4)
        assert (frame.columns["activation_gradient.rms"] > 0).all()


@pytest.mark.parametrize("every", [1, 4])
def test_models_that_train_side_by_side_keep_their_losses_apart(every):
    torch.manual_seed(0)
    models = [mlp(4, 8, 2), mlp(4, 8, 2)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    expected = [[], []]
    with watching(models[0], every=every) as first, watching(models[1], every=every) as second:
        for _ in range(6):
            losses = [scale * model(torch.randn(8, 4)).square().mean() for model, scale in zip(models, (1, 100), strict=True)]
            for loss, optimizer, kept in zip(losses, optimizers, expected, strict=True):
                optimizer.zero_grad()
                loss.backward()
                kept.append(loss.item())
            for optimizer in optimizers:
                optimizer.step()
    assert first.field("loss") == pytest.approx(expected[0])
    assert second.field("loss") == pytest.approx(expected[1])


def test_an_unwatched_model_in_the_same_loop_is_none_of_ours():
    torch.manual_seed(0)
    model, other = mlp(4, 8, 2), mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    others = torch.optim.SGD(other.parameters(), lr=0.5)
    expected = []
    with watching(model) as seen:
        for _ in range(6):
            regress(other, others, steps=1)
            expected += regress(model, optimizer, steps=1)
    assert seen.field("step") == list(range(6))
    assert seen.field("loss") == pytest.approx(expected)
    assert seen.field("foreign") == [0] * 6
    assert {name for info in seen.facts.optimizers for name in info.parameters} == {
        name for name, _ in model.named_parameters()
    }
