"""FSDP2 (``fully_shard``): the tensors that stand in a model's modules for its parameters while these run.

Each rank's optimizer holds the parts of the parameters that lie there. Around a module's forward and backward pass whole ones,
gathered from all ranks, take their place: they are the leaves of the graph, and, between the forward pass of the root module
and its backward pass, what ``named_parameters`` gives. Which belong together is told by torch's own bookkeeping alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

_HOME = "torch.distributed.fsdp._fully_shard._fsdp_state"  # where nobody has imported it, nothing is sharded so
_WHOLE, _SMALLER = "_unsharded_param", "_sharded_post_forward_param"  # either is there only once it was made
_NONE: Mapping[int, torch.nn.Parameter] = MappingProxyType({})


def stand_ins(model: torch.nn.Module) -> Mapping[int, torch.nn.Parameter]:
    """The parameters of a model by the ``id`` of what stands in for each of them; empty without FSDP2."""
    if _HOME not in sys.modules:
        return _NONE
    names = (_WHOLE, _SMALLER)
    found = ((vars(held).get(name), held.sharded_param) for held in _held(model) for name in names)
    return {id(tensor): parameter for tensor, parameter in found if tensor is not None}


def leaves_for(model: torch.nn.Module) -> Mapping[int, torch.nn.Parameter]:
    """The parameters of a model by the ``id`` of the leaf that stands for each of them in a graph; empty without FSDP2."""
    if _HOME not in sys.modules:
        return _NONE
    return {id(held._unsharded_param): held.sharded_param for held in _held(model) if _WHOLE in vars(held)}


def holds_gathered_gradients(model: torch.nn.Module) -> bool:
    """Whether gradients wait to be given to the parameters: those of micro-batches whose ranks do not exchange them yet."""
    if _HOME not in sys.modules:
        return False
    return any(
        vars(held).get("unsharded_accumulated_grad") is not None
        or (_WHOLE in vars(held) and held._unsharded_param.grad is not None)
        for held in _held(model)
    )


def _held(model: torch.nn.Module) -> Iterator[Any]:
    """Torch's record of each parameter that is sharded."""
    state_of = sys.modules[_HOME]._get_module_fsdp_state
    states = {id(state): state for module in model.modules() if (state := state_of(module)) is not None}
    for state in states.values():
        for group in _groups(vars(state)):
            yield from group.fsdp_params


def _groups(state: Mapping[str, Any]) -> list[Any]:
    """Of parameters that are gathered together: one at most in older versions of torch."""
    several, one = state.get("_fsdp_param_groups"), state.get("_fsdp_param_group")
    return list(several) if several is not None else [one] if one is not None else []
