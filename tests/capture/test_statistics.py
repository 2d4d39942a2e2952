"""The sampled numbers against slow, obvious computations on the full tensors, of sizes that the sample covers whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradscope.records import HISTOGRAM_BINS
from gradscope.records import HISTOGRAM_LOWEST
from tests.capture.watching import watching


class Put(nn.Module):
    """Puts out what it is given, with a gradient."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale


def seen_of(module, x, weights=None):
    """One step with the loss sum(weights * output); what was seen of it, the output and its gradient."""
    model = nn.Sequential(module)
    weights = torch.ones(()) if weights is None else weights
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watching(model) as seen:
        out = model(x)
        out = out[0] if isinstance(out, tuple) else out
        out.retain_grad()
        (out * weights).sum().backward()
        optimizer.step()
    return seen, out.detach(), out.grad


def test_moments_and_fractions():
    x = torch.randn(8, 32)
    x[0, :4] = 0.0
    weights = torch.randn(8, 32)
    weights[:, :3] = 0.0
    seen, out, gradient = seen_of(Put(), x, weights)
    for kind, full in (("activation", out), ("activation_gradient", gradient), ("input", x)):
        site = "(input)" if kind == "input" else "0"
        assert seen.get(f"{kind}.rms", site) == pytest.approx(full.square().mean().sqrt().item())
        assert seen.get(f"{kind}.absmax", site) == full.abs().max().item()
        assert seen.get(f"{kind}.nonfinite", site) == 0
    for kind, full in (("activation", out), ("input", x)):
        site = "(input)" if kind == "input" else "0"
        assert seen.get(f"{kind}.mean", site) == pytest.approx(full.mean().item(), abs=1e-7)
    for kind, full in (("activation", out), ("activation_gradient", gradient)):
        assert seen.get(f"{kind}.zero", "0") == (full == 0).float().mean().item()


@pytest.mark.parametrize("batch", [2, 4, 8])
@pytest.mark.parametrize(
    ("module", "shape", "batch_axis"),
    [
        (nn.Identity(), (None, 32), 0),
        (nn.Linear(6, 32), (None, 6), 0),
        (nn.Linear(6, 32), (None, 4, 6), 0),
        (nn.Conv2d(3, 32, 1), (None, 3, 2, 2), 0),
        (nn.Conv1d(3, 32, 1), (None, 3, 4), 0),
        (nn.LSTM(6, 32), (4, None, 6), 1),
        (nn.LSTM(6, 32, batch_first=True), (None, 4, 6), 0),
    ],
)
def test_signal_is_the_deviation_over_the_batch(module, shape, batch_axis, batch):
    torch.manual_seed(0)
    x = torch.randn([size or batch for size in shape])
    seen, out, _ = seen_of(module if list(module.parameters()) else nn.Sequential(Put(), module), x)
    expected = out.var(dim=batch_axis).mean().sqrt().item()
    site = seen.sites("activation")[0]
    # Positions beyond 32 / batch are not all in the sample, and rows of a batch stand for one another in turn.
    covered = 32 // batch >= math.prod(out.shape) // batch // 32
    assert seen.get("activation.signal", site) == pytest.approx(expected, rel=1e-5 if covered else 0.2)


def test_signal_of_channels_last_is_that_of_channels_first():
    torch.manual_seed(0)
    x = torch.randn(8, 3, 2, 2)
    conv = nn.Conv2d(3, 32, 1)
    plain, _, _ = seen_of(conv, x)
    last, out, _ = seen_of(conv.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    for statistic in ("mean", "rms", "absmax", "signal", "zero"):
        name = f"activation.{statistic}"
        assert last.get(name, "0") == pytest.approx(plain.get(name, "0"), rel=1e-5)


@pytest.mark.parametrize("batch", [2, 8, 64])
def test_signal_of_a_constant_batch_is_zero_and_of_a_changing_one_is_not(batch):
    torch.manual_seed(0)
    row = torch.randn(1, 5, 40)
    constant, _, _ = seen_of(Put(), row.expand(batch, 5, 40))
    assert constant.get("activation.signal", "0") == pytest.approx(0, abs=1e-6)
    assert constant.get("activation.rms", "0") > 0.9
    changing, out, _ = seen_of(Put(), row + torch.randn(batch, 1, 1))
    assert changing.get("activation.signal", "0") == pytest.approx(out.var(0).mean().sqrt().item(), rel=0.35)


def test_batches_of_different_sizes_in_one_model_each_get_their_own_signal():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Put(), Put()

        def forward(self, x):
            return self.b(self.a(x).view(4, 2, 32).mean(0))

    x = torch.randn(8, 32)
    seen, out, _ = seen_of(Pooled(), x)
    assert seen.get("activation.signal", "0.a") == pytest.approx(x.var(0).mean().sqrt().item(), rel=1e-5)
    assert seen.get("activation.signal", "0.b") == pytest.approx(out.var(0).mean().sqrt().item(), rel=1e-5)


def test_a_batch_of_one_has_no_signal():
    seen, _, _ = seen_of(Put(), torch.randn(1, 32))
    assert math.isnan(seen.get("activation.signal", "0"))
    assert seen.get("activation.rms", "0") > 0


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_large_and_small_values_neither_overflow_nor_vanish(scale):
    torch.manual_seed(0)
    x = torch.randn(8, 32)
    seen, _, _ = seen_of(Put(), x * scale, torch.randn(8, 32) * scale)
    usual, _, _ = seen_of(Put(), x)
    for name in ("activation.mean", "activation.rms", "activation.absmax", "activation.signal"):
        assert seen.get(name, "0") == pytest.approx(usual.get(name, "0") * scale, rel=1e-4)
    assert seen.get("activation.nonfinite", "0") == 0
    assert 0.5 * scale < seen.get("activation_gradient.rms", "0") < 2 * scale


def test_nonfinite_elements_are_counted_and_left_out():
    x = torch.ones(8, 32)
    x[0, 0], x[1, 1], x[2, 2] = float("nan"), float("inf"), -float("inf")
    seen, _, _ = seen_of(Put(), x)
    assert seen.get("activation.nonfinite", "0") == pytest.approx(3 / 256)
    assert seen.get("input.nonfinite", "(input)") == pytest.approx(3 / 256)
    assert seen.get("activation.absmax", "0") == float("inf")
    assert seen.get("activation.mean", "0") == pytest.approx(253 / 256)
    assert seen.get("activation.rms", "0") == pytest.approx(math.sqrt(253 / 256))


def test_active_units_are_bits():
    x = -torch.rand(8, 32)
    for unit in (0, 5, 15, 16, 31):
        x[unit % 8, unit] = 1.0
    seen, _, _ = seen_of(Put(), x)
    assert int(seen.get("activation.active_low", "0")) == 1 << 0 | 1 << 5 | 1 << 15
    assert int(seen.get("activation.active_high", "0")) == 1 << 0 | 1 << 15


def test_units_of_a_convolution_are_its_channels():
    conv = nn.Conv2d(3, 32, 1)
    nn.init.zeros_(conv.weight)
    conv.bias.data = torch.where(torch.arange(32) % 3 == 0, 1.0, -1.0)
    seen, _, _ = seen_of(nn.Sequential(conv, nn.ReLU()), torch.randn(4, 3, 3, 3))
    bits = sum(1 << unit for unit in range(0, 32, 3))
    for site in ("0.0", "0.1"):
        found = int(seen.get("activation.active_low", site)) | int(seen.get("activation.active_high", site)) << 16
        assert found == bits
    assert seen.get("activation.zero", "0.1") == pytest.approx(21 / 32)


@pytest.mark.parametrize(("module", "limit"), [(nn.Tanh(), 2.18), (nn.Sigmoid(), 4.36)])
def test_saturation_is_the_share_with_little_derivative(module, limit):
    torch.manual_seed(0)
    x = torch.randn(8, 32) * limit
    seen, _, _ = seen_of(nn.Sequential(Put(), module), x)
    x.requires_grad_()
    (derivative,) = torch.autograd.grad(module(x).sum(), x)
    expected = (derivative < 0.05 * (1.0 if isinstance(module, nn.Tanh) else 0.25)).float().mean().item()
    assert 0.2 < expected < 0.5
    assert seen.get("activation.saturated", "0.1") == pytest.approx(expected, abs=1 / 128)
    assert seen.get("activation.saturated", "0.0") == pytest.approx(expected, abs=1 / 128)  # by the node that follows it


def test_what_cannot_saturate_has_no_saturation():
    seen, _, _ = seen_of(nn.Sequential(Put(), nn.ReLU()), torch.randn(8, 32))
    assert np.isnan(seen.frames[0].columns["activation.saturated"]).all()


def test_histograms_count_magnitudes_in_powers_of_two():
    torch.manual_seed(0)
    x = torch.randn(8, 32) * torch.exp2(torch.randint(-60, 30, (8, 32)).float())
    x[0, 0] = 0.0
    seen, out, gradient = seen_of(Put(), x, torch.full((8, 32), 0.3))
    for kind, full in (("activation", out), ("activation_gradient", gradient)):
        expected = np.zeros(HISTOGRAM_BINS)
        for value in full.flatten().tolist():
            exponent = math.floor(math.log2(abs(value))) if value else -1000
            expected[min(max(exponent - HISTOGRAM_LOWEST, 0), HISTOGRAM_BINS - 1)] += 1 / 256
        place = seen.sites(kind).index("0")
        np.testing.assert_allclose(seen.frames[0].histograms[kind][place], expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_are_sampled_as_they_are(dtype):
    torch.manual_seed(0)
    x = torch.randn(8, 32).to(dtype)
    seen, out, _ = seen_of(Put().to(dtype), x)
    assert seen.get("activation.rms", "0") == pytest.approx(out.double().square().mean().sqrt().item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 3), (64, 1), (3, 1, 7), (2, 3, 4, 5), (2, 2, 2, 2, 2)])
def test_any_shape_can_be_sampled(shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    seen, _, _ = seen_of(Put(), x)
    assert seen.get("activation.absmax", "0") <= x.abs().max().item()
    assert seen.get("activation.absmax", "0") > 0
    assert seen.get("activation_gradient.rms", "0") == pytest.approx(1)
