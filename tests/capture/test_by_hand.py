"""Steps that a loop makes by hand and tells of with ``scope.step()``: seen as an optimizer's are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.func import grad_and_value

from tests.capture.watching import watching
from tests.models import mlp

RATE = 0.1


def trained(*, by_hand, steps=5, clear="none", clears=True):
    """What a watch saw of a training, by an optimizer or by the same steps without one."""
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    with watching(model) as seen:
        for _ in range(steps):
            model(torch.randn(8, 4)).square().mean().backward()
            if by_hand:
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.sub_(RATE * parameter.grad)
                        if clears and clear == "before":
                            parameter.grad = None
                        elif clears and clear == "zeros":
                            parameter.grad.zero_()
                seen.watch.manual_step()
            else:
                optimizer.step()
            if clears:
                model.zero_grad()
    return seen


COLUMNS = (
    "weight.norm", "weight.row_spread", "weight_gradient.norm", "weight_gradient.absmax", "update.ratio", "update.unchanged",
    "activation.rms", "activation_gradient.rms",
)  # fmt: skip


@pytest.mark.parametrize("clear", ["none", "before", "zeros"])
def test_a_step_by_hand_shows_what_an_optimizers_shows(clear):
    expected, seen = trained(by_hand=False), trained(by_hand=True, clear=clear)
    assert seen.facts.by_hand and not expected.facts.by_hand
    assert seen.field("loss") == expected.field("loss")
    known = slice(0 if clear == "none" else 1, None)  # how the loop clears its gradients shows at the end of its first step
    assert seen.field("gradient_norm")[known] == pytest.approx(expected.field("gradient_norm")[known])
    for frame, other in list(zip(seen.frames, expected.frames, strict=True))[known]:
        for column in COLUMNS:
            np.testing.assert_allclose(frame.columns[column], other.columns[column], rtol=1e-5, err_msg=column)


def test_gradients_that_are_never_cleared_are_seen_in_place():
    seen = trained(by_hand=True, clears=False)
    assert all((frame.columns["weight_gradient.carried"] == 1).all() for frame in seen.frames[1:])


def test_a_change_after_the_step_was_told_of_belongs_to_the_next():
    model = mlp(4, 8, 2)
    with watching(model) as seen:
        for _ in range(3):
            model.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            seen.watch.manual_step()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(RATE * parameter.grad)
    assert all((frame.columns["update.ratio"] > 0).any() for frame in seen.frames[1:])
    assert not any((frame.columns["update.outside_change"] > 0).any() for frame in seen.frames[1:])


def test_an_optimizer_that_steps_later_takes_over():
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    with watching(model) as seen:
        for step in range(6):
            model.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            if step < 3:
                seen.watch.manual_step()
            else:
                optimizer.step()
    assert not seen.facts.by_hand
    assert seen.field("step") == list(range(6))
    assert (seen.frames[-1].columns["update.ratio"] > 0).all()


def test_under_grad_the_layers_show_what_they_show_without_it():
    inputs = [torch.randn(8, 4) for _ in range(4)]
    plain, within = (descended(inputs, transformed=transformed) for transformed in (False, True))
    assert [frame.schema.modules for frame in within.frames] == [frame.schema.modules for frame in plain.frames]
    for frame, other in zip(within.frames, plain.frames, strict=True):
        for column in ("input.rms", "activation.rms", "activation.mean", "activation.zero"):
            np.testing.assert_allclose(frame.columns[column], other.columns[column], rtol=1e-5, err_msg=column)
    for frame, other in list(zip(within.frames, plain.frames, strict=True))[
        1:
    ]:  # the weights that the first step finds are gone
        for column in ("weight.norm", "update.ratio"):
            np.testing.assert_allclose(frame.columns[column], other.columns[column], rtol=1e-5, err_msg=column)


def descended(inputs, *, transformed):
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    parameters = dict(model.named_parameters())

    def loss_of(values, given):
        return functional_call(model, values, (given,)).square().mean()

    with watching(model) as seen:
        for given in inputs:
            if transformed:
                gradients, loss = grad_and_value(loss_of)(parameters, given)
            else:
                loss = model(given).square().mean()
                gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.sub_(RATE * gradients[name])
            seen.watch.observe_loss(loss)
            seen.watch.manual_step()
    return seen


def nested(model, parameters, given):
    """A gradient of a gradient's norm."""

    def penalty(values):
        inner = torch.func.grad(lambda v: functional_call(model, v, (given,)).square().mean())(values)
        return sum(part.square().sum() for part in inner.values())

    return torch.func.grad(penalty)(parameters)


def per_sample(model, parameters, given):
    one = torch.func.grad(lambda v, x: functional_call(model, v, (x[None],)).square().mean())
    return {name: part.mean(0) for name, part in torch.func.vmap(one, in_dims=(None, 0))(parameters, given).items()}


def pulled_back(model, parameters, given):
    _, pull = torch.func.vjp(lambda v: functional_call(model, v, (given,)).square().mean(), parameters)
    return pull(torch.tensor(1.0))[0]


@pytest.mark.parametrize("gradients_of", [nested, per_sample, pulled_back])
def test_no_transform_is_disturbed(gradients_of):
    states = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = mlp(4, 8, 2)
        parameters = dict(model.named_parameters())

        def descend(step_over, model=model, parameters=parameters):
            for _ in range(4):
                gradients = gradients_of(model, parameters, torch.randn(8, 4))
                with torch.no_grad():
                    for name, parameter in parameters.items():
                        parameter.sub_(RATE * gradients[name])
                step_over()

        if watched:
            with watching(model) as seen:
                descend(seen.watch.manual_step)
            assert seen.field("step") == list(range(4))
        else:
            descend(lambda: None)
        states.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
    assert torch._C._functorch.peek_interpreter_stack() is None
