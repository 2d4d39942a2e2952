"""What can be told of a step before it is made, so that only the steps that may turn out suspicious have to be remembered."""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from gradscope.capture.naming import parameters_of
from gradscope.capture.probe.replay import Seen
from gradscope.capture.probe.step_again import is_elementwise
from gradscope.capture.probe.step_again import step_on
from gradscope.capture.pulses import is_loss_scale
from gradscope.capture.transfer import number_at_hand
from gradscope.records import RunInfo

MOST_MATRICES = 64
_EACH_WAY = 16  # elements along each dimension of a matrix

_Few = tuple[torch.Tensor, torch.Tensor, Any]  # of a weight, of its gradient and of its state


@dataclass(frozen=True)
class Ahead:
    """Numbers of the step that is about to be made, NaN for those that a device has still to work out."""

    loss: float = math.nan
    gradient_norm: float = math.nan
    update_ratio: float = math.nan  # of the median matrix, infinite where anything may come
    input_rms: float = math.nan  # of the largest input


def ahead(seen: Seen, optimizer: Optimizer, model: torch.nn.Module, info: RunInfo) -> Ahead | None:
    """What the host can work out of the optimizer's step to come; None where the step is made elsewhere. Nothing is changed."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if any(p.device.type != "cpu" for p in held):
        return None
    named = dict(parameters_of(model))
    counted = {id(named[p.name]) for p in info.parameters if len(p.shape) >= 2 and not p.zero_at_start and p.name in named}
    with torch.no_grad():
        gradients = [p.grad for p in held if p.grad is not None and p.grad.layout is torch.strided]
        norm = math.hypot(*map(_number, torch._foreach_norm(gradients) if gradients else ()))
        inputs = (_number(torch.linalg.vector_norm(x)) / math.sqrt(x.numel()) for x in seen.forward.inputs)
        return Ahead(_loss(seen), norm, _update_ratio(optimizer, counted), max(inputs, default=math.nan))


def _loss(seen: Seen) -> float:
    scale = 1.0 if seen.scale is None else _number(seen.scale)
    return _number(seen.loss) / (scale if is_loss_scale(scale) else 1.0)


def _number(value: torch.Tensor) -> float:
    number = number_at_hand(value)
    return math.nan if number is None else number


def _update_ratio(optimizer: Optimizer, counted: set[int]) -> float:
    """The norm of the step over that of the weight, of a few elements of each matrix; the median of them."""
    if not is_elementwise(optimizer):
        return math.inf
    ratios: list[float] = []
    for group in optimizer.param_groups:
        matrices = [p for p in group["params"] if id(p) in counted and p.grad is not None and p.grad.layout is torch.strided]
        settings = {key: value for key, value in group.items() if key != "params"}
        ratios += _ratios(optimizer, settings, matrices[:: max(1, len(matrices) // MOST_MATRICES)])
    return median(ratios) if ratios and not any(map(math.isnan, ratios)) else math.inf if ratios else math.nan


def _ratios(optimizer: Optimizer, settings: dict[str, Any], matrices: Sequence[torch.nn.Parameter]) -> Iterator[float]:
    few = [_few_of(p, p.grad, optimizer.state.get(p)) for p in matrices if p.grad is not None]
    before = [weight.clone() for weight, _, _ in few]
    if few:
        step_on(optimizer, settings, *zip(*few, strict=True))
    for start, (end, _, _) in zip(before, few, strict=True):
        length, size = _number(torch.linalg.vector_norm(end - start)), _number(torch.linalg.vector_norm(start))
        if size > 0:
            yield length / size


def _few_of(weight: torch.Tensor, gradient: torch.Tensor, state: Any) -> _Few:
    """Copies of a few elements, the same of the weight, of its gradient and of what the optimizer holds for each element."""
    places = tuple(slice(None, None, max(1, size // _EACH_WAY)) for size in weight.shape)

    def taken(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return (value.detach()[places] if value.shape == weight.shape else value.detach()).clone()
        return value

    kept = None if state is None else {name: taken(value) for name, value in state.items()}
    return taken(weight), taken(gradient), kept
