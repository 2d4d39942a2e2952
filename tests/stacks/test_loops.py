"""What a step and its loss are where a loop's shape makes that a question."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.capture.watching import watching
from tests.models import mlp
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron


def mean_loss(model, batch):
    inputs, labels = batch
    return functional.cross_entropy(model(inputs), labels)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("to_none", [True, False])
def test_a_loss_that_the_program_threw_away_is_no_steps(every, to_none):
    torch.manual_seed(0)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = []
    with watching(model, every=every) as seen:
        for number, batch in enumerate(classes(12)):
            loss = mean_loss(model, batch)
            (loss * float("nan") if number % 3 == 1 else loss).backward()
            if number % 3 != 1:
                optimizer.step()
                kept.append(loss.item())
            optimizer.zero_grad(set_to_none=to_none)
    assert seen.field("loss") == pytest.approx(kept)
    assert seen.field("backwards") == [1] * 8
    assert all(map(math.isfinite, seen.field("gradient_norm")))


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("to_none", [True, False])
def test_a_loss_at_weights_that_were_moved_for_a_look_is_not_the_steps(every, to_none):
    torch.manual_seed(0)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, second = [], []
    with watching(model, every=every) as seen:
        for batch in classes(8):
            first.append(mean_loss(model, batch))
            first[-1].backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.3)
            optimizer.zero_grad(set_to_none=to_none)
            second.append(mean_loss(model, batch))
            second[-1].backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(0.3)
            norm = float(nn.utils.get_total_norm([p.grad for p in model.parameters()]))
            optimizer.step()
            optimizer.zero_grad()
    assert seen.field("loss") == pytest.approx([loss.item() for loss in first])
    assert seen.field("loss") != pytest.approx([loss.item() for loss in second])
    assert seen.field("backwards") == [1] * 8
    assert seen.field("gradient_norm")[-1] == pytest.approx(norm) or every != 1  # the optimizer used the second's


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("amid", [True, False])
def test_anothers_steps_within_ours_take_nothing_away(every, amid):
    torch.manual_seed(0)
    model, other = perceptron(), perceptron()
    optimizer, others = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other))
    expected = []
    with watching(model, every=every) as seen, watching(other, every=every) as besides:
        batches = classes(24)
        for _ in range(8):
            early = mean_loss(model, next(batches))
            early.backward()
            late = None if amid else mean_loss(model, next(batches))
            if late is not None:
                late.backward()
            others.zero_grad()
            mean_loss(other, next(batches)).backward()
            others.step()
            if late is None:
                late = mean_loss(model, next(batches))
                late.backward()
            optimizer.step()
            optimizer.zero_grad()
            expected.append((early.item() + late.item()) / 2)
    assert seen.field("loss") == pytest.approx(expected)
    assert seen.field("backwards") == [2] * 8
    assert besides.field("backwards") == [1] * 8
    for frame in seen.frames[1:]:
        assert frame.schema.modules
        assert np.isfinite(frame.columns["activation.rms"]).all()
        assert np.isfinite(frame.columns["activation_gradient.rms"]).all()


def test_threads_do_not_take_one_anothers_steps_for_nested():
    torch.manual_seed(0)
    model, other = perceptron(), perceptron()
    optimizer, others = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other))
    amid, done = threading.Event(), threading.Event()

    def wait(*_):
        amid.set()
        assert done.wait(30)

    def elsewhere():
        assert amid.wait(30)
        mean_loss(other, next(classes(1))).backward()
        others.step()
        done.set()

    with watching(model) as seen, watching(other) as besides:
        optimizer.register_step_pre_hook(wait)  # the other thread's whole step lies within this one's
        thread = threading.Thread(target=elsewhere)
        thread.start()
        mean_loss(model, next(classes(1))).backward()
        optimizer.step()
        thread.join()
    assert seen.field("step") == [0]
    assert besides.field("step") == [0]


def test_several_roots_of_one_backward_pass_are_one_loss_their_sum():
    torch.manual_seed(0)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    inputs, labels = next(classes(1))
    with watching(model) as seen:
        for _ in range(2):
            out = model(inputs)
            losses = [functional.cross_entropy(out, labels), out.square().mean().reshape(1)]
            torch.autograd.backward(losses)
            optimizer.step()
            optimizer.zero_grad()
    assert seen.field("loss") == pytest.approx([sum(loss.item() for loss in losses)] * 2)
    assert seen.field("backwards") == [1, 1]
    assert [loss.kind for loss in seen.facts.wiring.losses].count("cross_entropy") == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_a_checkpoint_works_out_again_is_no_pass_of_its_own(reentrant):
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rest = nn.Linear(4, 8), mlp(8, 8, 2)

        def forward(self, x):
            return checkpoint(self.rest, self.first(x).relu(), use_reentrant=reentrant)

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(5, 4)).square().mean().backward()
            optimizer.step()
    assert seen.field("backwards") == [1] * 3
    assert {site.call for site in seen.frames[-1].schema.modules} == {0}
    assert (seen.frames[-1].columns["weight_gradient.norm"] > 0).all()


@pytest.mark.parametrize("every", [1, 50])
def test_plain_steps_that_are_broken_off_by_a_skip_keep_their_losses(every):
    """Also where a stand-in listens, which knows nothing of skips."""
    torch.manual_seed(0)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = []
    with watching(model, every=every) as seen:
        for number, batch in enumerate(classes(60)):
            optimizer.zero_grad()
            loss = mean_loss(model, batch)
            loss.backward()
            if number % 23 == 20:
                continue
            optimizer.step()
            kept.append(loss.item())
    assert seen.field("loss") == pytest.approx(kept)


def test_an_unwatched_training_in_another_thread_takes_part_in_nothing():
    """It begins amid a quiet stretch of the watched one, whose losses and steps stay its own."""
    torch.manual_seed(0)
    model, other = perceptron(), perceptron()
    optimizer, others = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other))
    kept = []

    def elsewhere():
        others.zero_grad()
        (100 + mean_loss(other, next(classes(1)))).backward()
        others.step()

    with watching(model, every=1000) as seen:
        for number, batch in enumerate(classes(40)):
            optimizer.zero_grad()
            loss = mean_loss(model, batch)
            loss.backward()
            if number in (20, 21, 30):
                thread = threading.Thread(target=elsewhere)
                thread.start()
                thread.join()
            optimizer.step()
            kept.append(loss.item())
    assert seen.field("loss") == pytest.approx(kept)
    assert seen.field("backwards") == [1] * 40


def test_a_loop_that_goes_on_in_another_thread_is_still_the_same():
    torch.manual_seed(0)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = []

    def step(batch):
        optimizer.zero_grad()
        loss = mean_loss(model, batch)
        loss.backward()
        optimizer.step()
        kept.append(loss.item())

    with watching(model, every=1000) as seen:
        for number, batch in enumerate(classes(30)):
            if number < 12:
                step(batch)
            else:
                thread = threading.Thread(target=step, args=(batch,))
                thread.start()
                thread.join()
    assert seen.field("loss") == pytest.approx(kept)
