"""What only loss scales and 16-bit formats bring: steps that are skipped, gradients that still have their scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.nn import functional

import gradscope
from gradscope.records import Severity
from tests.capture.watching import watching
from tests.models import mlp
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron

TOO_LARGE = 2.0**40  # for float16, whose largest number is 65,504: a good many steps are skipped


def trained(model, optimizers, scaler, *, steps, zeros=False, between=lambda: None):
    """Train under autocast to float16; the losses of the steps in which an optimizer changed anything, and their scales."""
    losses, scales = [], []
    for inputs, labels in classes(steps):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=not zeros)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = functional.cross_entropy(model(inputs), labels)
        scale = scaler.get_scale()
        scaler.scale(loss).backward()
        between()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        if not all(map(torch.equal, before, model.parameters())):
            losses.append(loss.item())
            scales.append(scale)
    return losses, scales


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("every", [1, 3])
def test_skipped_steps_are_known_as_skipped(every, zeros, fused):
    torch.manual_seed(0)
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    with watching(model, every=every) as seen:
        losses, scales = trained(
            model, [optimizer], GradScaler("cpu", init_scale=TOO_LARGE, growth_interval=6), steps=60, zeros=zeros
        )
    assert 20 < len(losses) < 50
    assert len(set(scales)) > 1  # it grew, and came down again
    assert seen.field("step") == list(range(len(losses)))
    assert seen.field("loss") == pytest.approx(losses)
    assert seen.field("loss_scale") == scales
    assert set(seen.field("backwards")) == {1}
    for frame in seen.frames:
        assert not any(frame.columns[f"{kind}_gradient.nonfinite"].any() for kind in ("weight", "activation"))


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_have_no_scale(fused):
    """The first step's are those of float32, as far as float16 holds them."""
    norms = []
    for scaled in (False, True):
        torch.manual_seed(0)
        model = perceptron()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=fused)
        with watching(model) as seen:
            trained(model, [optimizer], GradScaler("cpu", enabled=scaled, init_scale=1024.0), steps=3)
        columns = seen.frames[0].columns
        norms.append((seen.field("gradient_norm")[0], columns["weight_gradient.norm"], columns["weight_gradient.absmax"]))
    for plain, unscaled in zip(*norms, strict=True):
        assert unscaled == pytest.approx(plain, rel=0.02)


def test_gradients_of_a_second_optimizer_have_no_scale_either():
    torch.manual_seed(0)
    model = nn.Sequential(perceptron(), nn.ReLU(), nn.Linear(4, 4))
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=1e-3), torch.optim.Adam(model[2].parameters(), lr=1e-4)]
    with watching(model) as seen:
        trained(model, optimizers, GradScaler("cpu", init_scale=1024.0), steps=6)
    for frame, norm in list(zip(seen.frames, seen.field("gradient_norm"), strict=True))[1:]:  # then it is known
        assert math.hypot(*frame.columns["weight_gradient.norm"]) == pytest.approx(norm, rel=1e-4)


def test_gradients_that_no_optimizer_was_allowed_to_use_are_not_captured():
    torch.manual_seed(0)
    model = nn.Sequential(perceptron(), nn.ReLU(), nn.Linear(4, 4))
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=1e-3), torch.optim.Adam(model[2].parameters(), lr=1e-4)]
    head = model[2].weight
    steps = iter(range(20))

    def spoil():
        if next(steps) % 4 == 3:
            head.grad[0, 0] = math.inf

    with watching(model) as seen:
        losses, _ = trained(model, optimizers, GradScaler("cpu", init_scale=1024.0), steps=20, between=spoil)
    assert seen.field("step") == list(range(20))
    assert seen.field("loss") == pytest.approx(losses)
    assert seen.field("learning_rate") == [1e-3] * 20
    for step in range(1, 20):
        held_back = step % 4 == 3
        assert math.isnan(seen.get("weight_gradient.norm", "2.weight", step=step)) == held_back
        assert math.isnan(seen.get("update.ratio", "2.weight", step=step)) == held_back
        assert seen.get("weight_gradient.norm", "0.0.weight", step=step) > 0
        assert not seen.get("weight_gradient.nonfinite", "2.weight", step=step) > 0


def test_backward_calls_of_skipped_steps_do_not_add_up_to_a_loop_that_never_steps():
    torch.manual_seed(0)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = GradScaler("cpu", init_scale=2.0**48)
    batches = classes(16 * 60)
    with watching(model) as seen:
        for _ in range(40):
            for _ in range(16):
                inputs, labels = next(batches)
                with torch.autocast("cpu", dtype=torch.float16):
                    loss = functional.cross_entropy(model(inputs), labels) / 16
                scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=False)
    assert 5 < len(seen.pulses) < 30
    assert set(seen.field("backwards")) == {16}


def test_a_scaler_that_is_not_enabled_says_nothing():
    torch.manual_seed(0)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model) as seen:
        losses, _ = trained(model, [optimizer], GradScaler("cpu", enabled=False), steps=10)
    assert seen.field("loss") == pytest.approx(losses)
    assert all(map(math.isnan, seen.field("loss_scale")))


def test_another_models_scaler_ends_no_round_of_ours():
    torch.manual_seed(0)
    models = [mlp(4, 8, 2), mlp(4, 8, 2)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    scalers = [GradScaler("cpu", init_scale=scale) for scale in (1024.0, 4096.0)]
    with watching(models[0]) as first, watching(models[1]) as second:
        for _ in range(6):
            x = torch.randn(8, 4)
            for model, optimizer, scaler in zip(models, optimizers, scalers, strict=True):
                optimizer.zero_grad()
                scaler.scale(model(x).square().mean()).backward()
            for optimizer, scaler in zip(optimizers, scalers, strict=True):
                scaler.step(optimizer)
                scaler.update()
    for seen, scale in ((first, 1024.0), (second, 4096.0)):
        assert seen.field("step") == list(range(6))
        assert seen.field("loss_scale") == [scale] * 6


def test_the_scaler_is_as_it_was_once_nobody_watches():
    before = GradScaler.update
    model = mlp(4, 2)
    with watching(model):
        assert GradScaler.update is not before
    assert GradScaler.update is before


def test_the_norm_of_complex_gradients_counts():
    torch.manual_seed(0)
    model = nn.Linear(4, 3, dtype=torch.complex64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    norms = []
    with watching(model) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(5, 4, dtype=torch.complex64)).abs().square().mean().backward()
            norms.append(math.hypot(*(parameter.grad.abs().norm().item() for parameter in model.parameters())))
            optimizer.step()
    assert seen.field("gradient_norm") == pytest.approx(norms)


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
def test_a_scale_that_comes_down_below_one_makes_no_clipping_misplaced(tmp_path, precision):
    torch.manual_seed(0)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=2.0**16)
    with gradscope.attach(model, tmp_path, every=1):
        for inputs, labels in classes(30):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=precision or torch.bfloat16, enabled=precision is not None):
                loss = functional.cross_entropy(model(inputs), labels)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update(2.0**-4)
    worse = [finding.rule for finding in gradscope.read(tmp_path).findings if finding.severity >= Severity.WARNING]
    assert "clipping-misplaced" not in worse
