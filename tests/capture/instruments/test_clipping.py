"""What of clipping is seen: its norm, its limit, and whether it comes at the right time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad
from torch.nn.utils import clip_grad_norm_

from gradscope.capture.steps import LOOP
from tests.capture.watching import watching
from tests.models import mlp


def clipping(seen, *, frame=-1):
    return tuple(seen.get(f"step.clip_{name}", "(step)", step=frame) for name in ("norm", "limit", "place"))


def norm_of(model):
    return torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters()])).item()


def backward(model, optimizer, *, factor=1.0):
    optimizer.zero_grad()
    (factor * model(torch.ones(3, 4)).square().mean()).backward()


def model_and_optimizer():
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def test_without_clipping_there_is_nothing():
    model, optimizer = model_and_optimizer()
    with watching(model) as seen:
        backward(model, optimizer)
        optimizer.step()
    assert all(map(math.isnan, clipping(seen)))


@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_in_its_place(limit):
    model, optimizer = model_and_optimizer()
    with watching(model) as seen:
        for _ in range(2):
            backward(model, optimizer)
            norm = norm_of(model)
            assert clip_grad_norm_(model.parameters(), limit).item() == pytest.approx(norm)
            assert norm_of(model) == pytest.approx(min(norm, limit), rel=1e-2)
            optimizer.step()
    assert clipping(seen) == (pytest.approx(norm), pytest.approx(limit), 0)


def test_before_there_is_any_gradient():
    model, optimizer = model_and_optimizer()
    with watching(model) as seen:
        for _ in range(2):
            optimizer.zero_grad()
            clip_grad_norm_(model.parameters(), 0.5)
            model(torch.ones(3, 4)).square().mean().backward()
            optimizer.step()
    assert clipping(seen) == (0, 0.5, 1)


@pytest.mark.parametrize(("cleared", "place"), [(False, 2), (True, 1)])
def test_after_the_step(cleared, place):
    model, optimizer = model_and_optimizer()
    with watching(model, every=2) as seen:
        for _ in range(3):
            backward(model, optimizer)
            optimizer.step()
            if cleared:
                optimizer.zero_grad()
            clip_grad_norm_(model.parameters(), 0.5)
    assert clipping(seen)[1:] == (0.5, place)


def test_with_accumulation():
    model, optimizer = model_and_optimizer()
    with watching(model) as seen:
        for _ in range(2):
            optimizer.zero_grad()
            for _ in range(3):
                model(torch.ones(3, 4)).square().mean().backward()
            norm = norm_of(model)
            clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    assert clipping(seen) == (pytest.approx(norm), 0.5, 0)


def test_of_several_calls_the_one_that_clips_most_counts():
    model, optimizer = model_and_optimizer()
    with watching(model) as seen:
        backward(model, optimizer)
        clip_grad_norm_(model[0].parameters(), 100.0)
        norm = clip_grad_norm_(model[2].parameters(), 0.01).item()
        optimizer.step()
    assert clipping(seen) == (pytest.approx(norm), pytest.approx(0.01), 0)


def test_a_call_without_a_limit_only_measures():
    model, optimizer = model_and_optimizer()
    with watching(model) as seen:
        for _ in range(2):
            clip_grad_norm_(model.parameters(), math.inf)
            backward(model, optimizer)
            norm = clip_grad_norm_(model.parameters(), 1e-3).item()
            clip_grad_norm_(model.parameters(), math.inf)
            optimizer.step()
    assert clipping(seen) == (pytest.approx(norm), pytest.approx(1e-3), 0)


def test_measuring_in_the_right_place_does_not_hide_clipping_in_the_wrong_one():
    model, optimizer = model_and_optimizer()
    with watching(model) as seen:
        for _ in range(2):
            optimizer.zero_grad()
            clip_grad_norm_(model.parameters(), 0.5)
            model(torch.ones(3, 4)).square().mean().backward()
            clip_grad_norm_(model.parameters(), math.inf)
            optimizer.step()
    assert clipping(seen)[1:] == (0.5, 1)


def test_other_models_gradients_do_not_count():
    model, optimizer = model_and_optimizer()
    other = mlp(4, 2)
    other(torch.ones(1, 4)).sum().backward()
    with watching(model) as seen:
        backward(model, optimizer)
        clip_grad_norm_(other.parameters(), 1e-3)
        optimizer.step()
    assert all(map(math.isnan, clipping(seen)))


def test_where_backward_cannot_be_seen_the_place_is_not_known():
    model, optimizer = model_and_optimizer()
    with watching(model) as seen:
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(torch.ones(3, 4)).square().mean()
            for parameter, gradient in zip(model.parameters(), torch.autograd.grad(loss, model.parameters()), strict=True):
                parameter.grad = gradient
            clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    assert clipping(seen)[1] == 0.5
    assert math.isnan(clipping(seen)[2])


# -- under a GradScaler


def train_scaled(model, optimizer, scaler, *, limit, scale, unscaled):
    """Forty steps, of which the scaler sets its scale to ``scale`` after the first."""
    for _ in range(40):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(3, 4)).square().mean()).backward()
        if unscaled:
            scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), limit)
        scaler.step(optimizer)
        scaler.update(scale)


@pytest.mark.parametrize(("unscaled", "place"), [(True, 0), (False, 3)])
@pytest.mark.parametrize("limit", [1e-3, 1e9])
@pytest.mark.parametrize("fused", [False, True])
def test_under_a_grad_scaler(unscaled, place, limit, fused):
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watching(model) as seen:
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(3, 4)).square().mean()).backward()
            norm = norm_of(model)
            if unscaled:
                scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), limit)
            scaler.step(optimizer)
            scaler.update()
    assert clipping(seen) == (pytest.approx(norm / 1024 if unscaled else norm), pytest.approx(limit), place)


@pytest.mark.parametrize(("unscaled", "place"), [(True, 0), (False, 3)])
def test_under_a_grad_scaler_whose_scale_has_come_down(unscaled, place):
    """A scale that was large before is one still where it was halved until nothing overflows."""
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watching(model) as seen:
        train_scaled(model, optimizer, scaler, limit=1e9, scale=64.0, unscaled=unscaled)
    places = [float(frame.columns["step.clip_place"][0]) for frame in seen.frames[17:] if "step.clip_place" in frame.columns]
    assert {found for found in places if not math.isnan(found)} == {place}


def test_a_step_that_the_scaler_skipped():
    model, optimizer = model_and_optimizer()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    norms = []
    with watching(model) as seen:
        while len(seen.frames) < 1:
            optimizer.zero_grad()
            scaler.scale(model(100 * torch.ones(3, 4)).square().mean()).backward()
            scaler.unscale_(optimizer)
            norms.append(clip_grad_norm_(model.parameters(), 0.5).item())
            scaler.step(optimizer)
            scaler.update()
    assert len(norms) > 1
    assert clipping(seen) == (pytest.approx(norms[-1]), 0.5, 0)


# -- the wrapper


def there():
    return clip_grad._clip_grads_with_norm_


def test_the_wrapper_is_there_on_sampled_steps_only():
    model, optimizer = model_and_optimizer()
    original = there()
    found = []
    with watching(model, every=2):
        for _ in range(4):
            backward(model, optimizer)
            found.append(there() is not original)
            optimizer.step()
    assert found == [True, False, True, False]
    assert there() is original


def test_several_models_share_one():
    (model, optimizer), (other, _) = model_and_optimizer(), model_and_optimizer()
    original = there()
    with watching(model) as seen:
        with watching(other) as also:
            assert there().__wrapped__ is original
            optimizer.step()  # what ran before both were watched is no step
            backward(model, optimizer)
            clip_grad_norm_([*model.parameters(), *other.parameters()], 0.5)
            optimizer.step()
        assert there() is not original
    assert there() is original
    assert clipping(seen)[1:] == (0.5, 0)
    assert not also.frames
    assert not LOOP.listeners


def test_a_wrapper_that_came_later_stays(monkeypatch):
    model, optimizer = model_and_optimizer()
    calls = []
    original = there()
    monkeypatch.setattr(clip_grad, "_clip_grads_with_norm_", original)  # restores it at the end
    with watching(model) as seen:
        inner = there()

        def theirs(*args, **kwargs):
            calls.append(args)
            return inner(*args, **kwargs)

        clip_grad._clip_grads_with_norm_ = theirs
        backward(model, optimizer)
        clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    assert there() is theirs
    assert clipping(seen)[1:] == (0.5, 0)
    with watching(model) as again:
        backward(model, optimizer)
        clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
    assert there() is theirs
    assert clipping(again)[1:] == (0.25, 0)
    assert len(calls) == 2


def test_without_torchs_private_function_nothing_is_captured(monkeypatch):
    model, optimizer = model_and_optimizer()
    monkeypatch.delattr(clip_grad, "_clip_grads_with_norm_")
    with watching(model) as seen:
        backward(model, optimizer)
        optimizer.step()
        assert "_clip_grads_with_norm_" not in vars(clip_grad)
    assert all(map(math.isnan, clipping(seen)))


def test_what_is_clipped_is_the_same_to_the_last_bit():
    def train():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        return model, optimizer

    def run(model, optimizer):
        for _ in range(10):
            backward(model, optimizer)
            clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        return [p.detach().clone() for p in model.parameters()]

    bare = run(*train())
    model, optimizer = train()
    with watching(model):
        watched = run(model, optimizer)
    assert all(map(torch.equal, bare, watched))


@pytest.mark.parametrize(("unscaled", "place"), [(True, 0), (False, 3)])
def test_a_loss_scale_below_one(unscaled, place):
    model, optimizer = model_and_optimizer()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watching(model) as seen:
        train_scaled(model, optimizer, scaler, limit=1e3, scale=2.0**-6, unscaled=unscaled)
    places = [clipping(seen, frame=frame)[2] for frame in range(len(seen.frames))]
    assert [seen_place for seen_place in places if not math.isnan(seen_place)][-1] == place
