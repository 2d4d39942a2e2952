"""An optimizer's step, made with other gradients, or on other tensors: on copies of the weights, with no hook called."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import final

import torch
from torch.optim.optimizer import Optimizer

MOST_AT_ONCE = (
    1 << 24
)  # bytes of weights that are stepped together: beside them their state and the step's own work take memory
_NEED_MORE = frozenset(("LBFGS", "SparseAdam"))  # than a dense gradient
_ELEMENTWISE = frozenset(
    ("SGD", "ASGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop")
)
_HELD_BY_SCALERS = ("grad_scale", "found_inf")


@final
class StepAgain:
    """What an optimizer held before its step: settings, and copies of its state.

    Knows the optimizers of ``torch.optim``, whose ``step`` depends on nothing else, and goes parameter by parameter.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._groups = [_settings(group) for group in optimizer.param_groups]
        self._parameters = [list(group["params"]) for group in optimizer.param_groups]
        self._state: dict[int, Any] = {id(p): _copied(state) for p, state in optimizer.state.items()}

    def step(self, weights: Mapping[int, torch.Tensor], gradients: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """The weights after the step, by the id of their parameter. Empties ``gradients``; nothing else is changed."""
        found: dict[int, torch.Tensor] = {}
        for settings, parameters in zip(self._groups, self._parameters, strict=True):
            given = {id(p): weights[id(p)] if id(p) in weights else p.detach() for p in parameters}
            found.update({key: weight for key, weight in given.items() if key not in gradients})
            for keys in _portions({key: weight for key, weight in given.items() if key in gradients}):
                copies = [given[key].detach().clone() for key in keys]
                states = [_copied(self._state.get(key)) for key in keys]
                step_on(self._optimizer, settings, copies, [gradients.pop(key) for key in keys], states)
                found.update(zip(keys, copies, strict=True))
        return found


def step_on(
    optimizer: Optimizer,
    settings: Mapping[str, Any],
    weights: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    states: Sequence[Any],
) -> None:
    """Write the optimizer's step, with these settings of a group, into ``weights``. Uses up gradients and states."""
    clone = object.__new__(type(optimizer))
    clone.__dict__.update({k: v for k, v in optimizer.__dict__.items() if k not in ("step", *_HELD_BY_SCALERS)})
    clone.state = optimizer.state.__class__(optimizer.state.default_factory)
    leaves = [weight.requires_grad_() for weight in weights]
    for leaf, gradient, state in zip(leaves, gradients, states, strict=True):
        leaf.grad = gradient
        if state is not None:
            clone.state[leaf] = state
    clone.param_groups = [{**_copied(dict(settings)), "params": leaves}]
    type(optimizer).step.__wrapped__(clone)  # type: ignore[attr-defined]  # within the one that calls the hooks
    for leaf in leaves:
        leaf.grad = None
        leaf.requires_grad_(False)


def can_step_again(optimizer: Optimizer) -> bool:
    """Whether the optimizer is one whose step can be made again."""
    kind = type(optimizer)
    known = kind.__module__.startswith("torch.optim.") and kind.__name__ not in _NEED_MORE
    return known and callable(getattr(kind.step, "__wrapped__", None)) and not optimizer.defaults.get("differentiable")


def is_elementwise(optimizer: Optimizer) -> bool:
    """Whether what becomes of one element depends on no other, so that the step can be made of a few of them."""
    return can_step_again(optimizer) and type(optimizer).__name__ in _ELEMENTWISE


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) for key, value in group.items() if key != "params"}


def _portions(weights: Mapping[int, torch.Tensor]) -> Iterator[list[int]]:
    """The keys, as many together as may be stepped at once."""
    together: list[int] = []
    size = 0
    for key, weight in weights.items():
        if together and size + weight.nbytes > MOST_AT_ONCE:
            yield together
            together, size = [], 0
        together.append(key)
        size += weight.nbytes
    if together:
        yield together


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value
