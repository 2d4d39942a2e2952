"""What sampled steps show of the loss: its input, its target, its labels and its weight."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.capture.watching import watching
from tests.models import GPT
from tests.models import ResNet
from tests.models import images
from tests.models import mlp

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
CLASSES = (torch.arange(64) * 7 % 5 + torch.arange(64) % 2) % 5
TARGETS = torch.randn(64, 3, generator=torch.Generator().manual_seed(1)) * 10 + 50


def train(loss, *, widths=(8, 16, 5), model=None, steps=1, backwards=1, scaler=None):
    """What a watch sees of ``steps`` steps at a rate of 0 on ``loss(model)``, a list of losses or one."""
    torch.manual_seed(0)
    model = mlp(*widths) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False) if scaler is None else scaler
    with watching(model) as seen:
        for step in range(steps):
            optimizer.zero_grad()
            for i in range(backwards):
                scaler.scale(loss(model) if backwards == steps == 1 else loss(model, step * backwards + i)).backward()
            scaler.step(optimizer)
            scaler.update()
    return seen


def entropy(labels):
    shares = torch.bincount(labels.flatten()) / labels.numel()
    return torch.special.entr(shares).sum().item()


def logits(*widths):
    torch.manual_seed(0)
    return mlp(*widths)(X).detach()


def test_a_classifier():
    seen = train(lambda model: functional.cross_entropy(model(X), CLASSES))
    assert seen.sites("loss") == ["(loss)"]
    assert seen.get("loss.weight", "(loss)") == 1
    assert seen.get("loss.target_count", "(loss)") == 64
    assert seen.get("loss.label_entropy", "(loss)") == pytest.approx(entropy(CLASSES), rel=1e-5)
    assert seen.get("loss.label_entropy_seen", "(loss)") == pytest.approx(entropy(CLASSES), rel=1e-5)
    assert math.isnan(seen.get("loss.target_mean", "(loss)"))
    out = logits(8, 16, 5)  # 64 by 5: all of them are sampled
    assert seen.get("loss.input_mean", "(loss)") == pytest.approx(out.mean().item(), abs=1e-6)
    assert seen.get("loss.input_rms", "(loss)") == pytest.approx(out.square().mean().sqrt().item(), rel=1e-5)
    assert seen.get("loss.input_signal", "(loss)") == pytest.approx(out.var(0).mean().sqrt().item(), rel=1e-5)
    assert seen.get("loss.log_partition", "(loss)") == pytest.approx(out.logsumexp(1).abs().mean().item(), rel=1e-4)


def hand_written(model):
    return ((model(X) - TARGETS) ** 2).mean()


REGRESSIONS = {
    "mse_loss": lambda model: functional.mse_loss(model(X), TARGETS),
    "l1_loss": lambda model: functional.l1_loss(model(X), TARGETS),
    "smooth_l1_loss": lambda model: functional.smooth_l1_loss(model(X), TARGETS),
    "module": lambda model: nn.HuberLoss()(model(X), TARGETS),
    "written out": hand_written,
    "the other way round": lambda model: (TARGETS - model(X)).square().mean(),
    "absolute": lambda model: (model(X) - TARGETS).abs().mean(),
    "product": lambda model: (lambda d: (d * d).mean())(model(X) - TARGETS),
    "summed over features": lambda model: ((model(X) - TARGETS) ** 2).sum(-1).mean(),
    "sum over number": lambda model: ((model(X) - TARGETS) ** 2).sum() / TARGETS.numel(),
    "gaussian_nll_loss": lambda model: functional.gaussian_nll_loss(
        model(X), TARGETS, torch.ones_like(TARGETS).requires_grad_() * 2
    ),
}


@pytest.mark.parametrize("loss", REGRESSIONS.values(), ids=REGRESSIONS)
def test_a_regression(loss):
    seen = train(loss, widths=(8, 16, 3))
    out = logits(8, 16, 3)
    assert seen.get("loss.input_mean", "(loss)") == pytest.approx(out.mean().item(), abs=1e-6)
    assert seen.get("loss.input_signal", "(loss)") == pytest.approx(out.var(0).mean().sqrt().item(), rel=1e-5)
    assert seen.get("loss.target_mean", "(loss)") == pytest.approx(TARGETS.mean().item(), rel=1e-5)
    assert seen.get("loss.target_rms", "(loss)") == pytest.approx(TARGETS.square().mean().sqrt().item(), rel=1e-5)
    assert seen.get("loss.target_low", "(loss)") == pytest.approx(TARGETS.min().item(), rel=1e-5)
    assert seen.get("loss.target_high", "(loss)") == pytest.approx(TARGETS.max().item(), rel=1e-5)
    assert seen.get("loss.target_signal", "(loss)") == pytest.approx(TARGETS.var(0).mean().sqrt().item(), rel=1e-4)
    assert seen.get("loss.target_nonfinite", "(loss)") == 0
    assert seen.get("loss.target_count", "(loss)") == TARGETS.numel()
    assert seen.get("loss.weight", "(loss)") == 1
    assert math.isnan(seen.get("loss.label_entropy", "(loss)"))


def test_one_output_squeezed():
    seen = train(lambda model: ((model(X).squeeze(-1) - TARGETS[:, 0]) ** 2).mean(), widths=(8, 16, 1))
    assert seen.get("loss.target_mean", "(loss)") == pytest.approx(TARGETS[:, 0].mean().item(), rel=1e-5)
    assert seen.get("loss.target_count", "(loss)") == 64


def likelihood(mean):
    def loss(model):
        out = model(X)
        return functional.gaussian_nll_loss(mean(out), TARGETS, functional.softplus(out[:, 3:]))

    return train(loss, widths=(8, 16, 6)).get("loss.target_mean", "(loss)")


@pytest.mark.parametrize("mean", [lambda out: out[:, :3], lambda out: out.chunk(2, dim=1)[0], lambda out: out.split(3, 1)[0]])
def test_a_likelihood_tells_its_target_where_the_outputs_are_cut_in_columns(mean):
    assert likelihood(mean) == pytest.approx(TARGETS.mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    "mean", [lambda out: out.view(64, 2, 3)[:, 0], lambda out: out.view(64, 3, 2)[..., 0], lambda out: out.flip(1)[:, :3]]
)
def test_cuts_that_are_no_columns_of_the_layer_tell_nothing(mean):
    assert math.isnan(likelihood(mean))


@pytest.mark.parametrize("column", [lambda out: out[:, 1], lambda out: out[:, -1], lambda out: out.unbind(1)[1]])
def test_one_column_of_several(column):
    seen = train(lambda model: (column(model(X)) - TARGETS[:, 0]).square().mean(), widths=(8, 16, 2))
    assert seen.get("loss.target_mean", "(loss)") == pytest.approx(TARGETS[:, 0].mean().item(), rel=1e-5)
    assert seen.get("loss.input_mean", "(loss)") == pytest.approx(logits(8, 16, 2)[:, 1].mean().item(), abs=1e-6)


def test_a_large_target_is_sampled():
    target = torch.linspace(-1, 1, 512 * 96).view(512, 96).t().contiguous().t()
    seen = train(lambda model: functional.mse_loss(model(torch.ones(512, 8)), target), widths=(8, 96))
    assert seen.get("loss.target_mean", "(loss)") == pytest.approx(0, abs=0.1)
    assert seen.get("loss.target_rms", "(loss)") == pytest.approx(3**-0.5, rel=0.1)
    assert seen.get("loss.target_signal", "(loss)") == pytest.approx(target.var(0).mean().sqrt().item(), rel=0.2)
    assert seen.get("loss.target_count", "(loss)") == target.numel()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_targets_that_are_not_finite(value):
    target = TARGETS.clone()
    target[:16] = value
    for loss in (lambda model: functional.mse_loss(model(X), target), lambda model: ((model(X) - target) ** 2).mean()):
        seen = train(loss, widths=(8, 16, 3))
        assert seen.get("loss.target_nonfinite", "(loss)") == pytest.approx(0.25)
        assert seen.get("loss.target_high", "(loss)") == pytest.approx(TARGETS[16:].max().item(), rel=1e-5)


def test_an_output_that_is_not_finite_says_nothing_of_the_target():
    model = mlp(8, 16, 3)
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    seen = train(hand_written, model=model)
    assert math.isnan(seen.get("loss.target_nonfinite", "(loss)"))
    assert seen.get("loss.input_rms", "(loss)") == math.inf


def test_a_huge_output_drowns_the_target():
    model = mlp(8, 16, 3)
    with torch.no_grad():
        model[2].weight *= 1e9
    assert math.isnan(train(hand_written, model=model).get("loss.target_rms", "(loss)"))


def test_labels_that_are_ignored_do_not_count():
    labels = torch.where(CLASSES == 2, -100, CLASSES)
    for loss in (
        lambda model: functional.cross_entropy(model(X), labels),
        lambda model: functional.cross_entropy(model(X), CLASSES, ignore_index=2),
    ):
        seen = train(loss)
        assert seen.get("loss.target_count", "(loss)") == (CLASSES != 2).sum()
        assert seen.get("loss.label_entropy", "(loss)") == pytest.approx(entropy(CLASSES[CLASSES != 2]), rel=1e-5)


def test_no_labels_at_all():
    seen = train(lambda model: functional.cross_entropy(model(X), torch.full((64,), -100), reduction="sum"))
    assert seen.get("loss.target_count", "(loss)") == 0
    assert math.isnan(seen.get("loss.label_entropy", "(loss)"))


def test_sorted_labels():
    def loss(model, step):
        return functional.cross_entropy(model(X), torch.full((64,), step % 5))

    seen = train(loss, steps=10)
    assert [seen.get("loss.label_entropy", "(loss)", step=i) for i in range(10)] == [0] * 10
    running = [seen.get("loss.label_entropy_seen", "(loss)", step=i) for i in range(10)]
    assert running[:2] == pytest.approx([0, math.log(2)], abs=1e-6)
    assert running[-1] == pytest.approx(math.log(5), rel=1e-5)


def test_very_many_labels_are_sampled():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    labels = torch.arange(64 * 64 * 4).view(4, 64, 64) % 4
    seen = train(lambda model: functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), labels), model=model)
    assert seen.get("loss.label_entropy", "(loss)") == pytest.approx(math.log(4), rel=1e-3)
    assert seen.get("loss.target_count", "(loss)") == pytest.approx(labels.numel(), rel=1e-4)
    assert math.isfinite(seen.get("loss.input_signal", "(loss)"))
    assert math.isnan(seen.get("loss.log_partition", "(loss)"))


WEIGHTS = {
    "a quarter": (lambda loss: loss / 4, 0.25),
    "a factor": (lambda loss: 0.5 * loss * 3, 1.5),
    "a tensor": (lambda loss: loss * torch.tensor(0.3), 0.3),
    "the other way round": (lambda loss: -loss, -1.0),
    "a mean of one": (lambda loss: loss.mean(), 1.0),
    "a large number": (lambda loss: loss * 1024, 1024.0),
    "tokens, a power of two": (lambda loss: loss / torch.tensor(512.0), 1 / 512),
    "stacked": (lambda loss: torch.stack([loss, loss]).mean(), 0.5),
    "summed": (lambda loss: sum([loss * 0.1]), 0.1),
    "less": (lambda loss: 1 - 2 * loss, -2.0),
    "learned": (lambda loss: loss * torch.tensor(0.4, requires_grad=True) + torch.tensor(1.0, requires_grad=True), 0.4),
    "no constant": (lambda loss: loss.sqrt(), math.nan),
}


@pytest.mark.parametrize(("scaled", "weight"), WEIGHTS.values(), ids=WEIGHTS)
def test_the_weight_of_a_loss(scaled, weight):
    seen = train(lambda model: scaled(functional.cross_entropy(model(X), CLASSES)))
    assert seen.get("loss.weight", "(loss)") == pytest.approx(weight, nan_ok=True)


WHOLE = {
    "unreduced": lambda y: functional.cross_entropy(y, CLASSES, reduction="none").mean(),
    "sum over number": lambda y: functional.cross_entropy(y, CLASSES, reduction="none").sum() / 64,
    "smoothed": lambda y: functional.cross_entropy(y, CLASSES, label_smoothing=0.1),
    "soft": lambda y: functional.cross_entropy(y, functional.one_hot(CLASSES, 5).float()),
    "soft, written out": lambda y: -(functional.one_hot(CLASSES, 5) * y.log_softmax(-1)).sum(-1).mean(),
    "divergence": lambda y: functional.kl_div(y.log_softmax(-1), y.detach().softmax(-1), reduction="batchmean"),
    "weighed classes": lambda y: functional.cross_entropy(y, CLASSES, weight=torch.arange(1.0, 6)),
}


@pytest.mark.parametrize("loss", WHOLE.values(), ids=WHOLE)
def test_losses_whose_weight_is_one_however_they_are_made(loss):
    seen = train(lambda model: loss(model(X)))
    assert seen.sites("loss") == ["(loss)"]
    assert seen.get("loss.weight", "(loss)") == pytest.approx(1)
    assert [found.reduction for found in seen.facts.wiring.losses] == ["mean"]


def test_a_sum_stays_a_sum():
    seen = train(lambda model: functional.cross_entropy(model(X), CLASSES, reduction="none").sum())
    assert (seen.facts.wiring.losses[0].reduction, seen.get("loss.weight", "(loss)")) == ("sum", 1)


def test_a_gradscaler_is_no_weight():
    scaler = torch.amp.GradScaler("cpu")
    seen = train(lambda model: functional.cross_entropy(model(X), CLASSES) / 2, scaler=scaler)
    assert seen.get("loss.weight", "(loss)") == 0.5
    assert seen.field("loss_scale") == [65536]


def test_a_scale_that_has_come_down_is_no_weight_either():
    """A scale that was large before is one still where it was halved until nothing overflows."""
    model = mlp(8, 16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watching(model) as seen:
        for _ in range(60):
            optimizer.zero_grad()
            difference = model(X) - TARGETS
            scaler.scale((difference * difference).mean() / 2).backward()
            scaler.step(optimizer)
            scaler.update(4.0)
    weights = [float(frame.columns["loss.weight"][0]) for frame in seen.frames[17:] if "loss.weight" in frame.columns]
    assert {weight for weight in weights if not math.isnan(weight)} == {0.5}
    assert len(seen.facts.wiring.losses) == 1


def test_accumulation_counts_the_labels_of_all_and_takes_the_rest_from_the_last():
    def loss(model, i):
        return functional.cross_entropy(model(X) * (1 + i), torch.full((64,), i)) / 4

    seen = train(loss, backwards=4)
    assert seen.get("loss.weight", "(loss)") == 0.25
    assert seen.get("loss.target_count", "(loss)") == 256
    assert seen.get("loss.label_entropy", "(loss)") == pytest.approx(math.log(4), rel=1e-5)
    assert seen.get("loss.input_rms", "(loss)") == pytest.approx(4 * logits(8, 16, 5).square().mean().sqrt().item(), rel=1e-5)


def test_two_losses_have_a_site_each():
    def loss(model):
        out = model(X)
        return functional.mse_loss(out[:, :3], TARGETS) + 0.1 * functional.cross_entropy(out, CLASSES)

    seen = train(loss)
    assert seen.sites("loss") == ["(loss)", "(loss)#1"]
    assert [found.kind for found in seen.facts.wiring.losses] == ["mse", "cross_entropy"]
    assert [seen.get("loss.weight", site) for site in seen.sites("loss")] == pytest.approx([1, 0.1])
    assert seen.get("loss.target_mean", "(loss)") == pytest.approx(50, abs=3)
    assert seen.get("loss.target_count", "(loss)#1") == 64


def test_losses_that_take_turns_keep_their_sites():
    def loss(model, step):
        out = model(X)
        return functional.cross_entropy(out, CLASSES) if step % 2 else functional.mse_loss(out[:, :3], TARGETS)

    seen = train(loss, steps=4)
    assert [found.kind for found in seen.facts.wiring.losses] == ["mse", "cross_entropy"]
    counts = [seen.frames[i].columns["loss.target_count"].tolist() for i in range(4)]
    assert counts[0] == [192]
    assert [math.isnan(count[0]) for count in counts] == [False, True, False, True]
    assert [count[1:] == [64] for count in counts] == [False, True, False, True]


def test_a_language_model():
    seen = train(
        lambda model: functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()),
        model=GPT(),
    )
    assert seen.get("loss.label_entropy", "(loss)") == pytest.approx(entropy(tokens), rel=1e-5)
    assert seen.get("loss.log_partition", "(loss)") > 0


tokens = torch.arange(48).view(4, 12) * 5 % 17


def test_logits_that_no_linear_layer_made():
    x, labels = images()
    seen = train(lambda model: functional.cross_entropy(model(x), labels), model=nn.Sequential(ResNet(), nn.LayerNorm(4)))
    assert math.isnan(seen.get("loss.log_partition", "(loss)"))
    assert seen.get("loss.input_signal", "(loss)") > 0


def test_sixteen_bits():
    def loss(model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return functional.cross_entropy(model(X), CLASSES)

    seen = train(loss)
    assert seen.get("loss.log_partition", "(loss)") == pytest.approx(
        logits(8, 16, 5).logsumexp(1).abs().mean().item(), rel=0.02
    )
    half = mlp(8, 16, 3).to(torch.bfloat16)
    seen = train(lambda model: functional.mse_loss(model(X.bfloat16()), TARGETS.bfloat16()), model=half)
    assert seen.get("loss.target_mean", "(loss)") == pytest.approx(TARGETS.mean().item(), rel=0.01)


def test_what_a_checkpoint_packed_is_left_alone():
    runs = []

    def loss(model):
        def inner(x):
            runs.append(1)
            return functional.cross_entropy(model(x), CLASSES)

        return checkpoint(inner, X.clone().requires_grad_(), use_reentrant=False)

    seen = train(loss)
    assert len(runs) == 2  # the forward pass and the recompute
    assert seen.get("loss.weight", "(loss)") == 1
    assert math.isnan(seen.get("loss.input_rms", "(loss)"))
    assert math.isnan(seen.get("loss.target_count", "(loss)"))


def test_a_loss_that_nothing_is_known_of_has_no_site():
    seen = train(lambda model: model(X).cos().prod())
    assert seen.sites("loss") == []
    assert [found.kind for found in seen.facts.wiring.losses] == ["other"]


def test_the_graph_is_counted_where_it_was_read():
    state = torch.zeros(8, 5)

    def loss(model, step):
        nonlocal state
        state = torch.tanh(state + model(X[:8]))
        return state.square().mean()

    model = mlp(8, 5)
    with watching(model) as seen:
        for step in range(4):
            loss(model, step).backward(retain_graph=True)
            torch.optim.SGD(model.parameters(), lr=0.0).step()
    nodes = [seen.get("step.graph_nodes", "(step)", step=i) for i in range(4)]
    assert nodes[0] < nodes[1] < nodes[2]
    assert math.isnan(nodes[3])


def test_losses_near_the_end_of_float32_warn_nobody():
    """A warning of numpy's would speak in the user's program, and end the watching where warnings are errors."""
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.fill_(3e37)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with watching(model) as seen:
            for _ in range(2):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(torch.full((32, 4), 2.0)), torch.zeros(32, dtype=torch.long)).backward()
                optimizer.step()
    assert len(seen.frames) == 2
