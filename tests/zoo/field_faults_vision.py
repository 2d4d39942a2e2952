"""Pictures: segmentation, separable convolutions, patches that are mixed, and what goes wrong with them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.field_data import shapes
from tests.zoo.field_models import Mixer
from tests.zoo.field_models import UNet
from tests.zoo.field_models import mobile
from tests.zoo.models import ViT
from tests.zoo.models import drawn
from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import still
from tests.zoo.proofs import worse
from tests.zoo.tasks import Maker
from tests.zoo.tasks import see


def unet_rate(watch: Watch, faulty: bool) -> Outcome:
    """A segmentation at the rate of a paper whose loss was divided by the number of pixels once more."""
    x, masks = shapes()
    model = UNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=20.0 if faulty else 0.1, momentum=0.9, nesterov=True)
    batches = data.batches(x, masks, size=16, steps=80)
    return fit(watch, model, batches, functional.binary_cross_entropy_with_logits, optimizer)


def masks_up_to_255(watch: Watch, faulty: bool) -> Outcome:
    """Masks as they stand in the files, where white is 255."""
    x, masks = shapes()
    model = UNet()
    batches = data.batches(x, 255 * masks if faulty else masks, size=16, steps=80)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return fit(watch, model, batches, functional.binary_cross_entropy_with_logits, optimizer)


class Frozen(nn.Module):
    """An encoder and a head; the encoder may run under no_grad(), to save memory."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        layers = list(mobile())
        self.encoder, self.head, self.frozen = nn.Sequential(*layers[:-1]), layers[-1], frozen

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.frozen):
            features = self.encoder(x)
        return self.head(features)


def encoder_under_no_grad(watch: Watch, faulty: bool) -> Outcome:
    return see(watch, Frozen(frozen=faulty), torch.optim.NAdam, lr=3e-3, steps=120)


def vit_parameter_groups(watch: Watch, faulty: bool) -> Outcome:
    """Groups with and without weight decay, picked by the type of layer; convolutions and bare parameters fall through."""
    x, y = data.digits()
    model = ViT()
    decayed = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    plain = [layer.bias for layer in model.modules() if isinstance(layer, nn.Linear)]
    plain += [p for layer in model.modules() if isinstance(layer, nn.LayerNorm) for p in layer.parameters()]
    if not faulty:
        plain += [*model.patches.parameters(), model.position, model.first]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    return fit(watch, model, data.batches(data.standardised(x), y, steps=100), functional.cross_entropy, optimizer)


def mixer_without_norms(watch: Watch, faulty: bool) -> Outcome:
    """Twelve mixer blocks in He's initialisation."""
    model = drawn(Mixer(depth=12, norm=not faulty), gain=2**0.5)
    return see(watch, model, partial(torch.optim.SGD, momentum=0.9), lr=0.01, steps=130, size=32)


def mixer_radam_rate(watch: Watch, faulty: bool) -> Outcome:
    return see(watch, Mixer(), torch.optim.RAdam, lr=3.0 if faulty else 1e-2, steps=150)


def mixer_epsilon(watch: Watch, faulty: bool) -> Outcome:
    """An eps copied from a recipe for another optimizer."""
    optimizer: Maker = partial(torch.optim.NAdam, eps=1.0 if faulty else 1e-8)
    return see(watch, Mixer(), optimizer, lr=2e-3, steps=120)


class CopyPasted(nn.Module):
    """Three convolutions, of which the second may be called twice and the third never."""

    def __init__(self, *, slip: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, stride=2, padding=1)
        self.second, self.third = (nn.Conv2d(24, 24, 3, padding=1) for _ in range(2))
        self.head, self.slip = nn.Linear(24 * 36, 10), slip

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.stem(x))
        x = functional.silu(self.second(x))
        x = functional.silu(self.second(x) if self.slip else self.third(x))
        return self.head(x.flatten(1))


def layer_copied_and_not_renamed(watch: Watch, faulty: bool) -> Outcome:
    return see(watch, CopyPasted(slip=faulty), torch.optim.Adamax, lr=3e-3, steps=100)


def convolutions_of_a_hundredth(watch: Watch, faulty: bool) -> Outcome:
    """Eight convolutions without norms, weights with a standard deviation of 0.01 as in an old paper."""
    layers: list[nn.Module] = []
    for inputs in (1, *[16] * 7):
        layers += [nn.Conv2d(inputs, 16, 3, stride=2 if inputs == 1 else 1, padding=1), nn.LeakyReLU(0.1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(144, 10))
    for layer in model:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.zeros_(layer.bias)
            nn.init.normal_(layer.weight, std=0.01) if faulty else nn.init.kaiming_normal_(layer.weight, a=0.1)
    return see(watch, model, partial(torch.optim.SGD, momentum=0.9), lr=0.01, steps=150)


PROGRAMS = (
    Fault(unet_rate, ("lr-too-high",), worse(2)),
    Fault(masks_up_to_255, ("loss-unbounded-below", "loss-input-mismatch"), lambda fault, twin: fault.end < -50),
    Fault(encoder_under_no_grad, ("detached-parameters", "idle-parameters"), worse(2)),
    Fault(vit_parameter_groups, ("optimizer-misses-parameters",), still("patches.weight", "position")),
    Fault(mixer_without_norms, ("missing-normalization",), worse(1.5)),
    Fault(mixer_radam_rate, ("lr-too-high",), worse(2)),
    Fault(mixer_epsilon, ("adam-epsilon-dominates",), worse(1.5)),
    Fault(layer_copied_and_not_renamed, ("idle-parameters",), still("third.weight"), aside=True),
    Fault(convolutions_of_a_hundredth, ("init-too-small",), worse(1.5)),
)
