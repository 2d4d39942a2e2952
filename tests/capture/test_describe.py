"""What forward passes show of modules: the type of their output, and how much a batch norm's statistics are taken over."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradscope.capture.describe import Description
from gradscope.records import RunInfo
from tests.capture.watching import seen_of
from tests.capture.watching import step
from tests.capture.watching import watching
from tests.models import mlp


def facts_of(seen, path):
    return next(module for module in seen.facts.modules if module.path == path)


def test_the_type_of_a_modules_output():
    model = mlp(4, 8, 2)
    assert facts_of(seen_of(model, torch.randn(3, 4)), "0").dtype == "float32"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(torch.randn(3, 4)).float().square().mean()
        loss.backward()
        optimizer.step()
    assert facts_of(seen, "0").dtype == "bfloat16"


def test_the_fewest_values_of_a_batch_norm():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(4), nn.BatchNorm1d(4))
    model(torch.randn(2, 3, 6, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for batch in (6, 2, 6):
            step(model, optimizer, torch.randn(batch, 3, 6, 6))
    assert facts_of(seen, "1").samples == 2 * 4 * 4
    assert facts_of(seen, "4").samples == 2
    assert facts_of(seen, "0").samples is None


def test_whether_parameters_began_at_zero_may_be_told_later():
    model = mlp(4, 8, 2)
    description = Description(RunInfo(name="m", model="Sequential"))
    description.model(model)
    known = description.info.parameters
    description.start_values({known[0].name: True, "of a model before": True})
    assert [p.zero_at_start for p in description.info.parameters] == [True, *(p.zero_at_start for p in known[1:])]
    assert [p.name for p in description.info.parameters] == [p.name for p in known]


def test_a_batch_norm_that_evaluates_takes_none():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).eval()
    assert facts_of(seen_of(model, torch.randn(3, 4)), "1").samples is None


class Encoded(nn.Module):
    """An encoder whose features a head takes, with what is done to them in between."""

    def __init__(self, between=lambda x: x, *, without=True, target=False):
        super().__init__()
        self.encoder, self.head = mlp(4, 8, 6), mlp(6, 8, 2)
        self.between, self.without, self.target = between, without, target

    def forward(self, x):
        with torch.set_grad_enabled(not self.without):
            features = self.encoder(x)
        out = self.head(torch.ones(x.shape[0], 6) if self.target else self.between(features))
        return out + features[:, :2] if self.target else out


def ungraded(model, *, before=lambda model: None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for _ in range(4):
            before(model)
            step(model, optimizer, torch.randn(3, 4))
    found = {module.path for module in seen.facts.modules if module.ungraded}
    return found, seen.facts.wiring.cuts


@pytest.mark.parametrize("between", [lambda x: x, lambda x: x.view(-1, 6), lambda x: x.flatten(1)[:, :]])
def test_modules_that_ran_without_gradients_in_front_of_one_with_them(between):
    found, cuts = ungraded(Encoded(between))
    assert {"encoder.0", "encoder.2"} <= found and not any(path.startswith("head") for path in found)
    assert cuts == (("encoder.2", "head.0"),)


def test_modules_that_ran_with_gradients_or_whose_features_no_module_takes():
    assert ungraded(Encoded(without=False)) == (set(), ())
    assert ungraded(Encoded(target=True)) == (set(), ())


def test_a_validation_or_a_target_is_no_encoder():
    def validate(model):
        with torch.no_grad():
            model(torch.randn(3, 4))
            model.head(model.encoder(torch.randn(3, 4)))

    assert ungraded(Encoded(without=False), before=validate) == (set(), ())


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_encoder_has_gradients(reentrant):
    class Checkpointed(Encoded):
        def forward(self, x):
            return self.head(checkpoint(self.encoder, x.requires_grad_(), use_reentrant=reentrant))

    assert ungraded(Checkpointed())[0] == set()


def test_what_was_seen_stays_known_where_parameters_change():
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for number in range(8):
            if number == 5:
                model[2] = nn.Linear(8, 3)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            step(model, optimizer, torch.randn(3, 4))
    assert facts_of(seen, "0").dtype == "float32"
