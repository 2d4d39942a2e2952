"""What counts as a step and which loss is a step's, in loops of many kinds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.capture.watching import step
from tests.capture.watching import watching
from tests.models import mlp
from tests.models import regress


def test_steps_losses_and_settings_of_a_usual_loop():
    model = mlp(4, 8, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.8, 0.99), weight_decay=0.1)
    with watching(model, every=3) as seen:
        losses = regress(model, optimizer, steps=7)
    assert seen.field("step") == list(range(7))
    assert seen.field("loss") == pytest.approx(losses)
    assert seen.field("backwards") == [1] * 7
    assert seen.field("sampled") == [1, 0, 0, 1, 0, 0, 1]
    assert seen.field("foreign") == [0] * 7
    assert seen.field("learning_rate") == [0.01] * 7
    assert [frame.step for frame in seen.frames] == [0, 3, 6]
    (optimizer_info,) = seen.facts.optimizers
    assert (optimizer_info.type, optimizer_info.strangers) == ("AdamW", 0)
    assert optimizer_info.parameters == tuple(name for name, _ in model.named_parameters())
    assert optimizer_info.settings == {"beta1": 0.8, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}


def test_the_optimizer_may_come_before_or_after_the_watch():
    model = mlp(4, 8, 2)
    before = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        regress(model, before, steps=2)
        regress(model, torch.optim.SGD(model.parameters(), lr=0.02), steps=2)
    assert seen.field("step") == [0, 1, 2, 3]
    assert seen.field("learning_rate") == [0.01, 0.01, 0.02, 0.02]


def test_accumulation_is_one_step_with_the_mean_loss():
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    means = []
    with watching(model) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            losses = []
            for _ in range(4):
                loss = model(torch.randn(8, 4)).square().mean()
                (loss / 4).backward()
                losses.append(loss.item() / 4)
            optimizer.step()
            means.append(sum(losses) / 4)
    assert seen.field("step") == [0, 1, 2]
    assert seen.field("backwards") == [4, 4, 4]
    assert seen.field("loss") == pytest.approx(means)
    assert len(seen.frames) == 3


def test_several_losses_by_several_backward_calls_and_by_a_sum():
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(8, 4)
    with watching(model) as seen:
        out = model(x)
        first, second = out.square().mean(), nn.functional.cross_entropy(out, torch.zeros(8, dtype=torch.long))
        first.backward(retain_graph=True)
        second.backward()
        optimizer.step()
        optimizer.zero_grad()
        out = model(x)
        (out.square().mean() + nn.functional.cross_entropy(out, torch.zeros(8, dtype=torch.long))).backward()
        optimizer.step()
    assert seen.field("loss") == pytest.approx([(first + second).item() / 2, (first + second).item()])
    assert seen.field("backwards") == [2, 1]
    assert {loss.kind for loss in seen.facts.wiring.losses} >= {"cross_entropy"}
    assert (seen.frames[0].columns["activation_gradient.rms"] > 0).all()


def test_a_root_that_is_no_scalar_is_no_loss():
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for _ in range(4):
            optimizer.zero_grad()
            out = model(torch.randn(3, 4))
            out.backward(torch.ones_like(out))
            optimizer.step()
    assert seen.field("step") == [0, 1, 2, 3]
    assert seen.field("backwards") == [0] * 4
    assert all(math.isnan(loss) for loss in seen.field("loss"))
    assert all(norm > 0 for norm in seen.field("gradient_norm"))
    assert seen.get("update.ratio", "0.weight") > 0


def test_a_loss_changed_in_place_afterwards_keeps_its_value():
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watching(model) as seen:
        loss = model(torch.ones(3, 4)).square().mean()
        expected = loss.item()
        loss.backward()
        loss.detach_().zero_()
        optimizer.step()
    assert seen.field("loss") == pytest.approx([expected])


def test_nonfinite_losses_stand_as_they_are():
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watching(model) as seen:
        for factor in (float("inf"), float("nan")):
            optimizer.zero_grad()
            (model(torch.ones(3, 4)).square().mean() * factor).backward()
            optimizer.step()
    assert seen.field("loss")[0] == math.inf
    assert math.isnan(seen.field("loss")[1])
    assert seen.field("gradient_norm") == [math.inf, math.inf]
    assert seen.field("backwards") == [1, 1]


def test_closures_show_loss_and_gradient_of_their_step():
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    x = torch.randn(8, 4)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=1)
    expected, norms = [], []

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        expected.append(loss.item())
        norms.append(float(nn.utils.get_total_norm([p.grad for p in model.parameters()])))
        return loss

    with watching(model) as seen:
        for _ in range(4):
            optimizer.step(closure)
    assert seen.field("step") == list(range(4))
    assert seen.field("loss") == pytest.approx(expected)
    assert seen.field("gradient_norm") == pytest.approx(norms)
    assert (seen.frames[1].columns["weight_gradient.norm"] > 0).all()
    assert (seen.frames[1].columns["update.ratio"] > 0).all()


def test_closures_that_evaluate_several_times_are_one_step():
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    x = torch.randn(8, 4)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")

    evaluated = []

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        evaluated.append(loss.item())
        return loss

    first = []
    with watching(model) as seen:
        for _ in range(3):
            count = len(evaluated)
            returned = optimizer.step(closure)
            first.append(evaluated[count])
            assert returned == first[-1]
    assert len(evaluated) > 3
    assert seen.field("step") == [0, 1, 2]
    assert seen.field("loss") == pytest.approx(first)  # the others are of weights that the step only tried


@pytest.mark.parametrize("every", [1, 2])
def test_under_a_grad_scaler_the_loss_is_the_unscaled_one_and_skipped_steps_are_none(every):
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    expected = []
    with watching(model, every=every) as seen:
        for step in range(8):
            optimizer.zero_grad()
            x = torch.randn(8, 4)
            loss = model(x * (1e38 if step in (0, 4) else 1)).square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            before = model[0].weight.detach().clone()
            scaler.step(optimizer)
            scaler.update()
            if not torch.equal(before, model[0].weight):
                expected.append(loss.item())
    assert len(expected) == 6
    assert seen.field("step") == list(range(6))
    finite = [(found, wanted) for found, wanted in zip(seen.field("loss"), expected, strict=True) if math.isfinite(found)]
    assert len(finite) >= 4
    assert [found for found, _ in finite] == pytest.approx([wanted for _, wanted in finite])
    assert all(math.isfinite(norm) and norm < 1.01 for norm in seen.field("gradient_norm"))


@pytest.mark.parametrize("every", [1, 2])
def test_a_loss_scale_that_was_seen_is_known_however_small_it_becomes(every):
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x = torch.randn(8, 4)
    with watching(model, every=every) as seen:
        for step in range(24):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update(1024.0 / 2**step)
    assert seen.field("loss") == pytest.approx([loss.item()] * 24)
    assert seen.field("loss_scale") == [1024.0, *(1024.0 / 2**step for step in range(23))]
    gradients = [frame.columns["activation_gradient.rms"] for frame in seen.frames]
    for gradient in gradients:
        assert gradient == pytest.approx(gradients[0], rel=1e-4)
    for kept in [frame.histograms["activation_gradient"] for frame in seen.frames if frame.histograms]:
        assert kept == pytest.approx(seen.frames[0].histograms["activation_gradient"])


@pytest.mark.parametrize("every", [1, 2])
def test_a_loss_scale_that_only_skipped_steps_had_large_is_known(every):
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    x = torch.randn(8, 4)
    with watching(model, every=every) as seen:
        for _ in range(24):
            optimizer.zero_grad()
            loss = 100 * model(x).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update(64.0)
    assert seen.field("loss") == pytest.approx([loss.item()] * 23)
    assert seen.field("loss_scale") == [64.0] * 23


def test_a_small_power_of_two_is_a_weight_where_no_scale_was_seen():
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(8, 4)
    with watching(model) as seen:
        for _ in range(3):
            loss = model(x).square().mean() * torch.tensor(64.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert seen.field("loss") == pytest.approx([loss.item()] * 3)
    assert all(math.isnan(scale) for scale in seen.field("loss_scale"))


@pytest.mark.parametrize("every", [1, 2])
def test_what_a_skipped_step_overflowed_is_not_the_next_steps(every):
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    expected = []
    with watching(model, every=every) as seen:
        for _ in range(60):
            optimizer.zero_grad()
            loss = 1e6 * model(torch.randn(8, 4)).square().mean()  # as with fp16, the first scales are too large
            before = model[0].weight.detach().clone()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if not torch.equal(before, model[0].weight):
                expected.append(loss.item())
    assert 5 < len(expected) < 58  # some steps were skipped
    assert seen.field("loss") == pytest.approx(expected)
    for frame in seen.frames:
        assert not frame.columns["activation_gradient.nonfinite"].any()
        assert not frame.columns["weight_gradient.nonfinite"].any()


def test_manual_steps():
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    losses = []
    with watching(model) as seen:
        for _ in range(5):
            model.zero_grad()
            loss = model(torch.randn(8, 4)).square().mean()
            loss.backward()
            losses.append(loss.item())
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
            seen.watch.manual_step()
    assert seen.field("step") == list(range(5))
    assert seen.field("loss") == pytest.approx(losses)
    assert all(frame.columns["weight.norm"].shape == (4,) for frame in seen.frames)
    assert (seen.frames[-1].columns["update.ratio"] > 0).all()
    assert (seen.frames[-1].columns["weight_gradient.norm"] > 0).all()
    assert not seen.frames[-1].columns["weight_gradient.carried"].any()


def test_an_observed_loss_of_a_loop_without_backward():
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model) as seen:
        for step in range(3):
            loss = model(torch.randn(8, 4)).square().mean()
            for parameter, gradient in zip(
                model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                parameter.grad = gradient
            seen.watch.observe_loss(float(step))
            optimizer.step()
    assert seen.field("loss") == [0, 1, 2]
    assert all(norm > 0 for norm in seen.field("gradient_norm"))
    assert (seen.frames[-1].columns["update.ratio"] > 0).all()
    assert (seen.frames[-1].columns["activation_gradient.rms"] > 0).all()


def test_an_optimizer_that_holds_none_of_the_parameters():
    old, model = mlp(4, 8, 2), mlp(4, 8, 2)
    optimizer = torch.optim.SGD(old.parameters(), lr=0.1)
    with watching(model) as seen:
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.ones(8, 4)).square().mean().backward()
            optimizer.step()
    assert len(seen.pulses) >= 7
    assert seen.field("foreign") == [1] * len(seen.pulses)
    assert seen.field("backwards") == [1] * len(seen.pulses) or seen.field("backwards")[1:] == [1] * (len(seen.pulses) - 1)
    (info,) = seen.facts.optimizers
    assert (info.type, info.parameters, info.strangers) == ("SGD", (), 4)
    last = seen.frames[-1]
    assert (last.columns["update.unchanged"] == 1).all()
    assert (last.columns["weight_gradient.norm"] > 0).all()
    assert last.columns["weight.norm"].shape == (4,)
    assert seen.get("weight_gradient.carried", "2.weight") == 1


def test_a_loop_that_never_steps_is_noted_after_a_hundred_backward_calls():
    model = mlp(4, 8, 2)
    with watching(model) as seen:
        for _ in range(250):
            model.zero_grad()
            model(torch.ones(8, 4)).square().mean().backward()
    assert seen.field("step") == [0, 1]
    assert seen.field("loss") == pytest.approx([model(torch.ones(8, 4)).square().mean().item()] * 2)
    assert seen.field("backwards") == [100, 100]
    assert seen.facts.optimizers == ()
    for frame in seen.frames:
        assert all(len(column) == len(frame.schema.sites(name.partition(".")[0])) for name, column in frame.columns.items())


def test_a_scheduler_and_an_optimizer_that_wraps_another():
    class Twice(torch.optim.Optimizer):
        def __init__(self, inner):
            super().__init__(inner.param_groups, {})
            self.inner = inner

        def step(self, closure=None):
            self.inner.step()
            self.inner.step()

    model = mlp(4, 8, 2)
    optimizer = Twice(torch.optim.SGD(model.parameters(), lr=0.1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    with watching(model) as seen:
        for _ in range(4):
            regress(model, optimizer, steps=1)
            scheduler.step()
    assert seen.field("step") == [0, 1, 2, 3]
    assert seen.field("learning_rate") == [0.1, 0.1, 0.05, 0.05]


def test_a_step_that_raises_is_no_step():
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def broken():
        raise ValueError("a closure's")

    with watching(model) as seen:
        regress(model, optimizer, steps=1)
        with pytest.raises(ValueError, match="a closure's"):
            optimizer.step(broken)
        regress(model, optimizer, steps=2)
    assert seen.field("step") == [0, 1, 2]


def test_a_step_that_raised_leaves_other_optimizers_and_later_watches_unharmed():
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise KeyboardInterrupt

    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    with watching(model):
        model(torch.randn(3, 4)).sum().backward()
        with pytest.raises(KeyboardInterrupt):
            Broken(model.parameters(), lr=0.1).step()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for _ in range(3):
            step(model, optimizer, torch.randn(3, 4))
        with pytest.raises(KeyboardInterrupt):
            Broken(model.parameters(), lr=0.1).step()
        for _ in range(3):
            step(model, optimizer, torch.randn(3, 4))
    assert seen.field("step") == [0, 1, 2, 3, 4, 5]


def test_every_batch_of_a_data_loader():
    data = torch.utils.data.TensorDataset(torch.randn(20, 4), torch.randint(2, (20,)))
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watching(model) as seen:
        for _ in range(2):
            for x, y in torch.utils.data.DataLoader(data, batch_size=8, shuffle=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
    assert seen.field("step") == list(range(6))  # the last batch of an epoch is smaller
    assert all((frame.columns["activation.rms"] > 0).all() for frame in seen.frames)


def test_parameters_that_come_to_the_optimizer_later():
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with watching(model) as seen:
        regress(model, optimizer, steps=2)
        optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.2})
        regress(model, optimizer, steps=2)
    assert seen.field("learning_rate") == [0.1, 0.1, 0.2, 0.2]
    (info,) = seen.facts.optimizers
    assert len(info.parameters) == 4
    assert seen.get("update.ratio", "0.weight") > 0


@pytest.mark.parametrize(
    "make", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.NAdam, torch.optim.Rprop]
)
def test_other_optimizers_step_too(make):
    model = mlp(4, 8, 2)
    with watching(model) as seen:
        regress(model, make(model.parameters(), lr=0.01), steps=2)
    assert seen.field("step") == [0, 1]
    assert (seen.frames[-1].columns["update.ratio"] > 0).all()


@pytest.mark.parametrize("add_up", [False, True])
def test_a_trainer_tells_where_its_steps_begin_and_whether_its_losses_add_up(add_up):
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(8, 4)
    with watching(model) as seen:
        seen.watch.follow(first_step=7, losses_add_up=add_up)
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(2):
                loss = model(x).square().mean() / 2
                loss.backward()
            optimizer.step()
    assert seen.field("step") == [frame.step for frame in seen.frames] == [7, 8, 9]
    assert seen.field("loss") == pytest.approx([loss.item() * (2 if add_up else 1)] * 3)
    assert seen.facts.losses_add_up is add_up
