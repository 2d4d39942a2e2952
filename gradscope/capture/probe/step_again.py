"""An optimizer's step, remembered so that it can be made again with other gradients and on copies of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from typing import final

import torch
from torch.optim.optimizer import Optimizer

_NEED_MORE = frozenset(("LBFGS", "SparseAdam"))  # than a dense gradient
_HELD_BY_SCALERS = ("grad_scale", "found_inf")


@final
class StepAgain:
    """What an optimizer held before its step: settings, and copies of its state.

    Knows the optimizers of ``torch.optim``, whose ``step`` depends on nothing else.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._groups = [{k: _copied(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        self._parameters = [list(group["params"]) for group in optimizer.param_groups]
        self._state: dict[int, Any] = {id(p): _copied(state) for p, state in optimizer.state.items()}

    def step(self, weights: Mapping[int, torch.Tensor], gradients: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """The weights after the step, by the id of their parameter. No hook runs, and nothing that is given is changed."""
        copies: dict[int, torch.Tensor] = {}
        clone = object.__new__(type(self._optimizer))
        clone.__dict__.update({k: v for k, v in self._optimizer.__dict__.items() if k not in ("step", *_HELD_BY_SCALERS)})
        clone.state = self._optimizer.state.__class__(self._optimizer.state.default_factory)
        clone.param_groups = []
        for settings, parameters in zip(self._groups, self._parameters, strict=True):
            for parameter in parameters:
                given = weights[id(parameter)] if id(parameter) in weights else parameter.detach()
                copy = copies[id(parameter)] = given.detach().clone().requires_grad_()
                copy.grad = gradients.get(id(parameter))
                copy.grad = None if copy.grad is None else copy.grad.detach().clone()
                if id(parameter) in self._state:
                    clone.state[copy] = _copied(self._state[id(parameter)])
            clone.param_groups.append({**_copied(settings), "params": [copies[id(p)] for p in parameters]})
        type(self._optimizer).step.__wrapped__(clone)  # type: ignore[attr-defined]  # within the one that calls the hooks
        return {key: copy.detach() for key, copy in copies.items()}


def can_step_again(optimizer: Optimizer) -> bool:
    """Whether the optimizer is one whose step can be made again."""
    kind = type(optimizer)
    known = kind.__module__.startswith("torch.optim.") and kind.__name__ not in _NEED_MORE
    return known and callable(getattr(kind.step, "__wrapped__", None)) and not optimizer.defaults.get("differentiable")


def state_bytes(optimizer: Optimizer) -> int:
    """What a copy of its state takes."""
    tensors = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value
