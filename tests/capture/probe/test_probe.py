"""The step-quality probe: what it measures, when it does not run, and that nothing shows of it."""

from __future__ import annotations

import copy
import random
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import gradscope
from gradscope.capture.probe import replay
from gradscope.capture.probe import room
from tests.capture.watching import watching
from tests.models import KINDS

WIDTH, CLASSES, BATCH = 32, 6, 64


def batch(index=0, *, scale=1.0):
    generator = torch.Generator().manual_seed(100 + index)
    means = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    return scale * (means[labels] + torch.randn(BATCH, WIDTH, generator=generator)), labels


def classifier(*, depth=3, width=64, std=None):
    torch.manual_seed(0)
    widths = [WIDTH, *[width] * (depth - 1), CLASSES]
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight) if std is None else nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*[part for layer in layers[:-1] for part in (layer, nn.ReLU())], layers[-1])


def train(model, optimizer, *, steps=6, scale=1.0, **loss):
    """What the watch over a usual loop knows at its end."""
    with watching(model) as seen:
        for index in range(steps):
            x, y = batch(index, scale=scale)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y, **loss).backward()
            optimizer.step()
    return seen.facts


def sgd(model, rate, **settings):
    return torch.optim.SGD(model.parameters(), lr=rate, **settings)


# -- what it measures


def test_the_overshoot_of_a_quadratic_is_rate_times_curvature_by_two():
    model = nn.Linear(1, 1, bias=False)  # loss (w·2)², curvature 8
    for rate, overshoot in ((0.5, 2.0), (1.0, 4.0), (2.0, 8.0)):
        nn.init.ones_(model.weight)
        with watching(model) as seen:
            model(torch.full((4, 1), 2.0)).square().mean().backward()
            sgd(model, rate).step()
        (found,) = seen.facts.probes
        assert found.overshoot == pytest.approx(overshoot, rel=0.05)
        assert (found.step, found.learning_rate) == (0, rate)
        assert found.loss_before == pytest.approx(4.0)
        assert found.loss_after == pytest.approx(4 * (1 - 8 * rate) ** 2)
        assert found.slope == pytest.approx(-64 * rate)  # -rate · gradient²
        model.weight.grad = None


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.AdamW, torch.optim.Adagrad])
def test_a_rate_that_is_too_high_goes_up_whatever_the_optimizer(make):
    model = classifier()
    (found,) = train(model, make(model.parameters(), lr=1.0)).probes
    assert found.step == 0 and found.overshoot > 2 and found.loss_after > found.loss_before
    assert found.slope < 0 and not found.without


def test_a_healthy_run_is_not_looked_at():
    model = classifier()
    facts = train(model, sgd(model, 0.02))
    assert not facts.probes
    assert facts.probe.startswith("not needed")


def test_a_suspicious_step_that_is_right_is_shown_to_be():
    model = classifier()
    found = train(model, torch.optim.Adam(model.parameters(), lr=0.003), scale=4.0).probes
    assert found and all(quality.overshoot < 1 for quality in found)
    assert len(found) <= 3


def test_a_large_input_is_shown_to_be_at_fault():
    model = classifier()
    (found,) = train(model, sgd(model, 0.1), scale=8.0).probes
    assert found.overshoot > 1 > found.without["unnormalized-input"]
    model = classifier()
    truth = train(model, sgd(model, 1.5), scale=8.0).probes[0]
    assert truth.without["unnormalized-input"] > 1  # here the rate is too high as well


def test_a_summed_loss_is_at_fault_where_the_step_follows_its_size():
    model = classifier()
    (found,) = train(model, sgd(model, 0.1, momentum=0.9), reduction="sum").probes
    assert found.overshoot > 1 > found.without["loss-reduction-sum"]
    model = classifier()
    (found,) = train(model, torch.optim.Adam(model.parameters(), lr=1.0), reduction="sum").probes
    assert found.without["loss-reduction-sum"] == pytest.approx(found.overshoot, rel=0.5)


def test_weights_that_are_too_large_are_at_fault():
    model = classifier(depth=8, std=0.5)
    (found,) = train(model, sgd(model, 0.003)).probes
    assert found.overshoot > 1 > found.without["init-too-large"]


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        for layer in (self.first, self.second):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, x):
        return x + self.second(F.relu(self.first(x)))


def test_a_stack_without_normalisation_is_at_fault():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 32), *[Block(32) for _ in range(12)], nn.Linear(32, CLASSES))
    (found,) = train(model, sgd(model, 0.02)).probes
    assert found.overshoot > 10 and found.without["missing-normalization"] < 1


def test_clipping_belongs_to_the_step_that_is_made_again():
    model = classifier()
    optimizer = sgd(model, 5.0)
    with watching(model) as seen:
        for index in range(3):
            x, y = batch(index, scale=8.0)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    (found,) = seen.facts.probes[:1]
    assert found.overshoot > 1 and "unnormalized-input" in found.without


def test_a_gradscalers_scale_is_taken_out():
    model = classifier()
    optimizer = sgd(model, 2.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watching(model) as seen:
        x, y = batch()
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        scaler.step(optimizer)
    (found,) = seen.facts.probes
    plain = classifier()
    (expected,) = train(plain, sgd(plain, 2.0), steps=1).probes
    assert found.loss_before == pytest.approx(expected.loss_before)
    assert found.slope == pytest.approx(expected.slope, rel=1e-4)
    assert found.overshoot == pytest.approx(expected.overshoot)


def test_a_rate_that_rises_late_is_looked_at_after_the_alarm():
    model = classifier()
    optimizer = sgd(model, 0.02)
    with watching(model) as seen:
        for index in range(60):
            if index == 40:
                optimizer.param_groups[0]["lr"] = 3.0
            x, y = batch(index)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert seen.facts.probes
    assert all(40 <= found.step < 60 and found.learning_rate == 3.0 for found in seen.facts.probes)
    assert 1 <= len(seen.facts.probes) <= 3


def test_what_it_found_stands_in_the_record(tmp_path):
    model = classifier()
    optimizer = sgd(model, 3.0)
    with gradscope.attach(model, tmp_path) as scope:
        for index in range(4):
            x, y = batch(index)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        live = scope.report().runs[0].info
    assert live.probes and live.probe == "ran at step 0"
    assert gradscope.read(tmp_path).runs[0].info == live


# -- when it does not run


def loop(model, optimizer, *, passes=1, hand_over=None):
    def step(index):
        optimizer.zero_grad()
        for part in range(passes):
            x, y = batch(index + part)
            loss = F.cross_entropy(model(x), y)
            (hand_over(loss) if hand_over else loss).backward()
        optimizer.step()

    return step


def why(model, step, **options):
    with watching(model, **options) as seen:
        for index in range(4):
            step(index)
    assert not seen.facts.probes
    return seen.facts.probe


def test_not_where_gradients_are_accumulated():
    model = classifier()
    assert "2 backward calls" in why(model, loop(model, sgd(model, 3.0), passes=2))


def test_not_where_the_optimizer_calls_a_closure():
    model = classifier()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=3)

    def step(index):
        x, y = batch(index)

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)

    assert "in a closure" in why(model, step)


def test_not_where_several_optimizers_step():
    model = classifier()
    first, second = sgd(model[0], 3.0), sgd(model[2:], 3.0)
    one = loop(model, first)

    def step(index):
        second.zero_grad()
        one(index)
        second.step()

    assert "only part of what has a gradient" in why(model, step)


def test_not_where_the_loss_is_not_understood():
    model = classifier()
    assert "Cumsum" in why(model, loop(model, sgd(model, 3.0), hand_over=lambda loss: loss[None].cumsum(0)[0]))


def test_not_where_part_of_the_loss_is_hidden():
    model = classifier()
    assert "is not understood" in why(model, loop(model, sgd(model, 3.0), hand_over=lambda loss: loss + loss.detach()))


def test_not_where_hooks_of_the_users_would_run_again():
    model = classifier()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    assert "hooks hang on the model" in why(model, loop(model, sgd(model, 3.0)))
    assert len(calls) == 4


def test_not_where_the_model_keeps_state():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return self.inner(x)

    model = Counting()
    assert "keeps state" in why(model, loop(model, sgd(model, 3.0)))
    assert model.calls == 4


def test_not_where_the_model_runs_twice():
    model = classifier()
    optimizer = sgd(model, 3.0)

    def step(index):
        optimizer.zero_grad()
        (x, y), (other, _) = batch(index), batch(index + 1)
        (F.cross_entropy(model(x), y) + model(other).square().mean()).backward()
        optimizer.step()

    assert "the model ran 2 times" in why(model, step)


def test_not_where_the_batch_is_changed_in_place():
    model = classifier()
    optimizer = sgd(model, 3.0)

    def step(index):
        optimizer.zero_grad()
        x, y = batch(index)
        loss = F.cross_entropy(model(x.requires_grad_()), y)
        loss.backward()
        with torch.no_grad():
            x.zero_()
        optimizer.step()

    assert "changed in place" in why(model, step)


def test_not_where_a_wrapper_spreads_the_model():
    model = nn.Sequential(nn.DataParallel(classifier()))
    assert "wrapped by DataParallel" in why(model, loop(model, sgd(model, 3.0)))


def test_not_where_there_is_no_room_for_copies(monkeypatch):
    monkeypatch.setattr(room, "room_on", lambda _: room.Room(spare=1000, beyond=1000))
    monkeypatch.setattr(replay, "SMALL", 0)
    model = classifier()
    told = why(model, loop(model, sgd(model, 3.0)))
    assert told.startswith("could not run at step 0: its copies would take")
    healthy = classifier()
    assert why(healthy, loop(healthy, sgd(healthy, 0.001))).startswith("not needed")


def test_not_where_it_is_switched_off(tmp_path):
    model = classifier()
    with gradscope.attach(model, tmp_path, probe=False) as scope:
        step = loop(model, sgd(model, 3.0))
        for index in range(3):
            step(index)
        facts = scope.report().runs[0].info
    assert not facts.probes and facts.probe == "switched off with probe=False"


def test_a_model_that_cannot_be_replayed_goes_on_as_it_is():
    class OnlyOnce(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, x):
            if not torch.is_grad_enabled():
                raise ValueError("only for training")
            return self.inner(x)

    model = OnlyOnce()
    weights = dict(model.named_parameters())
    assert "ValueError: only for training" in why(model, loop(model, sgd(model, 3.0)))
    assert all(weights[name] is parameter for name, parameter in model.named_parameters())


# -- nothing shows of it


class Drawing(nn.Module):
    """Draws from every generator there is, keeps running statistics, and replaces a buffer."""

    def __init__(self):
        super().__init__()
        self.inner = classifier()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + 1
        x = F.dropout(self.norm(x), 0.1 + 0.1 * random.random() + 0.1 * float(np.random.rand()), self.training)
        return self.inner(x)


def drawn(model, data):
    x, y = data
    return F.cross_entropy(model(x), y)


CASES = {**KINDS, "drawing": (Drawing, batch, drawn)}


def run(kind, make, *, rate, probe, steps=20, logdir=None):
    """Everything that a training leaves behind, and what is known of it."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    build, data, loss_of = CASES[kind]
    model = build()
    optimizer = make(model.parameters(), lr=rate)
    left = []
    with gradscope.attach(model, logdir, every=1, probe=probe) as scope:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of(model, data())
            loss.backward()
            optimizer.step()
            versions = [tensor._version for tensor in (*model.parameters(), *model.buffers())]
            gradients = [p.grad._version for p in model.parameters()]
            left.append((loss.item(), versions, gradients, [module.training for module in model.modules()]))
        facts = scope.report().runs[0].info
    tensors = {**model.state_dict(), **{f"grad {name}": p.grad for name, p in model.named_parameters()}}
    state = [value for held in optimizer.state.values() for value in held.values() if isinstance(value, torch.Tensor)]
    randomness = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    return left, copy.deepcopy(tensors), state, randomness, facts


@pytest.mark.parametrize(("make", "rate"), [(torch.optim.SGD, 10.0), (torch.optim.AdamW, 1.0)])
@pytest.mark.parametrize("kind", CASES)
def test_training_is_bit_identical_probed_or_not(tmp_path, kind, make, rate):
    probed = run(kind, make, rate=rate * (10 if kind == "lstm" else 1), probe=True, logdir=tmp_path / "probed")
    bare = run(kind, make, rate=rate * (10 if kind == "lstm" else 1), probe=False, logdir=tmp_path / "bare")
    assert probed[4].probes and not bare[4].probes
    assert repr(probed[0]) == repr(bare[0])  # NaN and all
    for name, tensor in bare[1].items():
        assert torch.equal(probed[1][name].nan_to_num(), tensor.nan_to_num()), name
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(probed[2], bare[2], strict=True))
    assert probed[3] == bare[3]


def test_no_hook_is_left_and_the_batch_is_let_go():
    model = classifier()
    optimizer = sgd(model, 3.0)
    hooks = torch.nn.modules.module
    with watching(model) as seen:
        x, y = batch()
        F.cross_entropy(model(x), y).backward()
        held = sys.getrefcount(x)
        optimizer.step()
        assert seen.facts.probes
        assert sys.getrefcount(x) < held
        assert hooks._global_forward_hooks
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
