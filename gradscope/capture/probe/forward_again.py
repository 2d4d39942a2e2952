"""One forward pass of the model, remembered so that it can be made again with other weights, and nothing shows afterwards.

Made again, it runs on tensors of its own: the model's parameters and buffers are only exchanged for them while it runs, and
never written to. So their values, versions and gradients cannot change, whatever happens.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from collections.abc import Sized
from contextlib import ExitStack
from contextlib import contextmanager
from typing import Any
from typing import final

import numpy as np
import torch
from torch.nn.modules import module as hooks
from torch.utils._pytree import tree_leaves

Weights = Mapping[int, torch.Tensor]  # by the id of the parameter that each stands for
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")


@final
class Randomness:
    """The state of every generator that a forward pass may draw from. Reading it waits for no device."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._cpu = torch.get_rng_state()
        self._devices = [(device, torch.get_device_module(device).get_rng_state(device)) for device in devices]
        self._python = random.getstate()
        self._numpy = np.random.get_state()

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        for device, state in self._devices:
            torch.get_device_module(device).set_rng_state(state, device)
        random.setstate(self._python)
        np.random.set_state(self._numpy)


@final
class Forward:
    """What one forward pass of ``model`` found: made as it begins, and completed by ``ended`` with what it took and gave."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._modules = list(model.modules())
        self._devices = list(
            dict.fromkeys(t.device for t in _tensors_of(self._modules) if t.device.type not in ("cpu", "meta"))
        )
        self._randomness = Randomness(self._devices)
        self._buffers = [{name: _copied(b) for name, b in module._buffers.items()} for module in self._modules]
        self._training = [module.training for module in self._modules]
        self._autocast = [_autocast(kind) for kind in dict.fromkeys(("cpu", *(device.type for device in self._devices)))]
        self._attributes = [_attributes(module) for module in self._modules]
        self._versions: list[tuple[torch.Tensor, int]] = []
        self._args: Any = ()
        self._kwargs: Any = {}
        self.outputs: list[torch.Tensor] = []
        self.ends: dict[tuple[Any, int], int] = {}  # the node and result that each output came out of -> its place
        self.stateful = False

    def began(self, args: Any) -> None:
        """The pass begins with these positional arguments."""
        self._versions = [(leaf, leaf._version) for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]

    def ended(self, args: Any, kwargs: Any, output: Any) -> None:
        """It took these arguments and put this out."""
        self._args, self._kwargs = args, kwargs
        known = {id(tensor) for tensor, _ in self._versions}
        later = (leaf for leaf in tree_leaves(kwargs) if isinstance(leaf, torch.Tensor) and id(leaf) not in known)
        self._versions += [(leaf, leaf._version) for leaf in later]
        self.outputs = _leaves(output)
        self.ends = {(o.grad_fn, o.output_nr): i for i, o in enumerate(self.outputs) if o.grad_fn is not None}
        self.stateful = any(_attributes(m) != before for m, before in zip(self._modules, self._attributes, strict=True))

    def release_outputs(self) -> None:
        """Let go of the outputs and their graph; the pass can still be made again."""
        self.outputs, self.ends = [], {}

    @property
    def obstacle(self) -> str | None:
        """Why the pass cannot be made again as it was, as a clause; None where it can. Asked when no hook of ours is on."""
        if self.stateful:
            return "the model keeps state from one forward pass to the next in attributes of its own"
        if any(tensor._version != version for tensor, version in self._versions):
            return "the batch was changed in place after it was used"
        if any(module.training is not mode for module, mode in zip(self._modules, self._training, strict=True)):
            return "the model went from training to evaluation mode within the step"
        if any(getattr(hooks, name) for name in _GLOBAL_HOOKS) or any(
            module.__dict__[n] for module in self._modules for n in _HOOKS
        ):
            return "hooks hang on the model's modules, and would run again"
        return None

    @property
    def in_halves(self) -> bool:
        """Whether operations ran in 16 bits by autocast."""
        return any(enabled for _, enabled, _ in self._autocast)

    @property
    def inputs(self) -> list[torch.Tensor]:
        """The floating-point tensors that it took."""
        return [leaf for leaf in tree_leaves((self._args, self._kwargs)) if _is_float(leaf)]

    def again(self, weights: Weights, *, change: Callable[[Any], Any] | None = None) -> list[torch.Tensor]:
        """The outputs with these weights in the place of the parameters, from the same random state and buffers.

        ``change`` is applied to the arguments, a pair of positional ones and keywords. Gradients are as the caller has
        switched them. Whatever the pass raises comes out; the model is as it was before all the same.
        """
        args, kwargs = (self._args, self._kwargs) if change is None else change((self._args, self._kwargs))
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # it has warned at the first time
            stack.enter_context(_randomness_restored(self._devices))
            stack.enter_context(_exchanged(self._modules, weights, self._buffers))
            for kind, enabled, dtype in self._autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
            self._randomness.restore()
            return _leaves(self._model(*args, **kwargs))


@contextmanager
def _randomness_restored(devices: Sequence[torch.device]) -> Iterator[None]:
    now = Randomness(devices)
    try:
        yield
    finally:
        now.restore()


@contextmanager
def _exchanged(
    modules: Sequence[torch.nn.Module], weights: Weights, buffers: Sequence[Mapping[str, torch.Tensor | None]]
) -> Iterator[None]:
    """Put these weights, and copies of these buffers, into the modules, and afterwards what they held, attributes and all."""
    held = [(m, dict(m.__dict__), dict(m._parameters), dict(m._buffers)) for m in modules]
    try:
        for module, values in zip(modules, buffers, strict=True):
            for name, parameter in module._parameters.items():
                if id(parameter) in weights:
                    module._parameters[name] = weights[id(parameter)]  # type: ignore[assignment]
            module._buffers.update({name: _copied(value) for name, value in values.items()})
            flat = module.__dict__.get("_flat_weights")
            if isinstance(flat, list):  # recurrent layers keep their parameters in a list of their own
                module.__dict__["_flat_weights"] = [weights.get(id(weight), weight) for weight in flat]
        yield
    finally:
        for module, attributes, parameters, own_buffers in held:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            _refill(module._parameters, parameters)
            _refill(module._buffers, own_buffers)


def _refill(kept: dict[str, Any], before: dict[str, Any]) -> None:
    kept.clear()
    kept.update(before)


def _attributes(module: torch.nn.Module) -> dict[str, tuple[Any, ...]]:
    """What tells whether an attribute has changed: which object it is, how long, which version of a tensor."""
    return {name: _mark(value) for name, value in module.__dict__.items()}


def _mark(value: Any) -> tuple[Any, ...]:
    if isinstance(value, torch.Tensor):
        return id(value), value._version
    return (id(value), len(value)) if isinstance(value, Sized) and not isinstance(value, torch.nn.Module) else (id(value),)


def _copied(value: torch.Tensor | None) -> torch.Tensor | None:
    return None if value is None else value.detach().clone()


def _tensors_of(modules: Sequence[torch.nn.Module]) -> Iterator[torch.Tensor]:
    for module in modules:
        yield from (tensor for held in (module._parameters, module._buffers) for tensor in held.values() if tensor is not None)


def _autocast(kind: str) -> tuple[str, bool, torch.dtype]:
    return kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def _leaves(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.layout is torch.strided and leaf.numel() > 1
