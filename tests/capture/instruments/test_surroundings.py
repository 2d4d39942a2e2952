"""Forward passes with and without gradients, and the mode that dropout and batch norms ran in."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.capture.watching import step
from tests.capture.watching import watching
from tests.models import mlp


def norm_and_dropout():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


def seen_in(model, body, *, steps=2, every=1):
    """What a watch sees where ``body(optimizer)`` is one step of the loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model, every=every) as seen:
        for _ in range(steps):
            body(optimizer)
    return seen


def surroundings(seen, *, frame=-1):
    names = ("forwards", "evaluating", "untouched_statistics", "idle_training_forwards")
    return tuple(seen.get(f"step.{name}", "(step)", step=frame) for name in names)


def test_a_usual_step():
    model = norm_and_dropout()
    seen = seen_in(model, lambda optimizer: step(model, optimizer, torch.randn(6, 4)))
    assert surroundings(seen) == (1, 0, 0, 0)


def test_every_pass_with_gradients_counts():
    model = norm_and_dropout()

    def accumulate(optimizer):
        optimizer.zero_grad()
        for _ in range(3):
            (model(torch.randn(6, 4)).square().mean() / 3).backward()
        optimizer.step()

    seen = seen_in(model, accumulate)
    assert surroundings(seen, frame=0) == surroundings(seen) == (3, 0, 0, 0)


def test_training_in_evaluation_mode_from_the_start():
    model = norm_and_dropout().eval()
    seen = seen_in(model, lambda optimizer: step(model, optimizer, torch.randn(6, 4)))
    assert surroundings(seen) == (1, 1, 1, 0)


def test_batch_norms_that_have_learned_their_statistics_are_not_untouched():
    model = norm_and_dropout()
    model(torch.randn(6, 4))
    model.eval()
    seen = seen_in(model, lambda optimizer: step(model, optimizer, torch.randn(6, 4)))
    assert surroundings(seen) == (1, 1, 0, 0)


def test_the_share_that_evaluates():
    model = norm_and_dropout()
    model[1].eval()
    seen = seen_in(model, lambda optimizer: step(model, optimizer, torch.randn(6, 4)))
    assert surroundings(seen) == (1, 0.5, 1, 0)


@pytest.mark.parametrize(
    "part", [nn.ReLU(), nn.Dropout(0.0), nn.BatchNorm1d(8, track_running_stats=False)], ids=["none", "p=0", "no statistics"]
)
def test_modules_whose_mode_changes_nothing_do_not_count(part):
    model = nn.Sequential(nn.Linear(4, 8), part, nn.Linear(8, 2)).eval()
    forwards, evaluating, untouched, idle = surroundings(seen_in(model, lambda o: step(model, o, torch.randn(6, 4))))
    assert (forwards, untouched, idle) == (1, 0, 0)
    assert math.isnan(evaluating)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_validation_between_steps(without, mode):
    model = norm_and_dropout()

    def body(optimizer):
        model.train(mode == "train")
        with without():
            for _ in range(3):
                model(torch.randn(6, 4))
        model.train()
        step(model, optimizer, torch.randn(6, 4))

    seen = seen_in(model, body)
    assert surroundings(seen) == (1, 0, 0, 3 if mode == "train" else 0)


def test_evaluation_with_gradients_that_no_backward_follows_is_not_training():
    model = norm_and_dropout()

    def body(optimizer):
        model.eval()
        for _ in range(3):
            model(torch.randn(6, 4))
        model.train()
        step(model, optimizer, torch.randn(6, 4))

    assert surroundings(seen_in(model, body)) == (4, 0, 0, 0)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_checkpointing_is_neither_idle_nor_another_pass(reentrant, mode):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner = nn.Linear(4, 4), norm_and_dropout()

        def forward(self, x):
            return checkpoint(self.inner, self.first(x), use_reentrant=reentrant)

    model = Checkpointed().train(mode == "train")
    seen = seen_in(model, lambda optimizer: step(model, optimizer, torch.randn(6, 4)))
    assert surroundings(seen)[:2] == (1, 0 if mode == "train" else 1)
    assert surroundings(seen)[3] == 0


def test_a_model_whose_parts_are_called_one_by_one():
    model = norm_and_dropout().eval()

    def body(optimizer):
        x = torch.randn(6, 4)
        for part in model:
            x = part(x)
        optimizer.zero_grad()
        x.square().mean().backward()
        optimizer.step()

    assert surroundings(seen_in(model, body)) == (0, 1, 1, 0)


def test_other_models_do_not_count():
    model, other = norm_and_dropout(), norm_and_dropout().eval()

    def body(optimizer):
        x = other(torch.randn(6, 4))
        with torch.no_grad():
            other.train()(torch.randn(6, 4))
            other.eval()
        step(model, optimizer, x.repeat(1, 2))

    assert surroundings(seen_in(model, body)) == (1, 0, 0, 0)


def test_modules_that_come_later_count_once_they_are_found():
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model, every=2) as seen:
        for number in range(40):
            if number == 1:
                model.append(nn.Dropout(0.5)).eval()
            step(model, optimizer, torch.randn(6, 4))
    shares = [surroundings(seen, frame=number)[1] for number in range(len(seen.frames))]
    assert math.isnan(shares[0])
    assert [share for share in shares if not math.isnan(share)][-1] == 1


def test_a_loop_without_an_optimizer():
    model = norm_and_dropout()
    with watching(model) as seen:
        for _ in range(3):
            model(torch.randn(6, 4)).square().mean().backward()
            seen.watch.manual_step()
    assert surroundings(seen) == (1, 0, 0, 0)
