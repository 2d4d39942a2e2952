"""What torch's GradScalers do, as watched models hear it, and which optimizers' steps they let happen."""

from __future__ import annotations

from typing import Any
from typing import Protocol

import torch
from torch.amp import GradScaler
from torch.compiler import is_dynamo_compiling
from torch.optim.optimizer import Optimizer

from gradscope.capture.transfer import number_at_hand
from gradscope.capture.wrapping import Wrapping


class Listener(Protocol):
    """Who wants to hear of GradScalers."""

    def after_update(self, scale: torch.Tensor) -> None:
        """A GradScaler, whose ``scale`` this is, has seen to all of its optimizers' steps, and set its scale for the next."""


def _telling(original: Any) -> Any:
    def update(self: GradScaler, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        scale = vars(self).get("_scale")
        if isinstance(scale, torch.Tensor) and not is_dynamo_compiling() and SCALERS.calls_through(update):
            for listener in SCALERS.listeners:
                listener.after_update(scale)

    return update


SCALERS: Wrapping[Listener] = Wrapping(GradScaler, "update", _telling)  # which ends each round


def factor_left_to(optimizer: Optimizer) -> torch.Tensor | None:
    """The factor of a GradScaler that the gradients still have, and that the optimizer's step takes out: fused ones do."""
    factor = vars(optimizer).get("grad_scale")
    return factor if isinstance(factor, torch.Tensor) else None


def unscales_itself(optimizer: Optimizer) -> bool:
    """Whether the gradients still have a GradScaler's factor when the optimizer steps."""
    return factor_left_to(optimizer) is not None


def is_held_back(optimizer: Optimizer) -> bool:
    """Whether the optimizer's step changes nothing, as it was told that gradients are not finite: fused ones are.

    Where to know it would be to wait for the device, the step counts.
    """
    found = vars(optimizer).get("found_inf")
    return isinstance(found, torch.Tensor) and (number_at_hand(found) or 0.0) > 0
