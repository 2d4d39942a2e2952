"""Which processes train one model together, as torch's own wrappers say.

That a process group exists says nothing: each of its processes may train a model of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from gradscope.capture.naming import parameters_of
from gradscope.capture.shards import shard_of


@dataclass(frozen=True)
class Company:
    """The processes that train one model together."""

    ranks: tuple[int, ...]  # of the default process group, in order
    rank: int  # of this process among the default group's
    by: str  # what keeps them together: "DistributedDataParallel", "DTensor"
    apart: frozenset[int] = frozenset()  # ``id`` of parameters that are each rank's own, as the wrapper was told

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def place(self) -> int:
        """This process's number among them; 0 writes the record."""
        return self.ranks.index(self.rank)


def processes() -> int:
    """How many processes the program runs in, as far as it is known: 1 where nothing says that there are more."""
    if _is_grouped():
        return torch.distributed.get_world_size()
    said = os.environ.get("WORLD_SIZE", "")  # torchrun and its kin, before the process group is there
    return int(said) if said.isdecimal() else 1


def own_rank() -> int:
    """Of this process; 0 where there is no process group."""
    return torch.distributed.get_rank() if _is_grouped() else 0


def company_of(model: torch.nn.Module, around: torch.nn.Module | None) -> Company | None:
    """Who trains a model together with this process; None: nobody, as far as can be seen.

    ``around`` is a DistributedDataParallel that called the model, should there be one.
    """
    if not _is_grouped():
        return None
    wrappers = [module for module in (around, *model.modules()) if isinstance(module, DistributedDataParallel)]
    ranks, by = _ranks_of(wrappers, (parameter for _, parameter in parameters_of(model)))
    together = tuple(sorted(ranks))
    here = torch.distributed.get_rank()
    return Company(together, here, by, _ignored(wrappers)) if len(together) > 1 and here in together else None


def _is_grouped() -> bool:
    """Whether this process is in a process group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _ranks_of(wrappers: Iterable[DistributedDataParallel], parameters: Iterable[torch.Tensor]) -> tuple[frozenset[int], str]:
    """The ranks of all wrappers and meshes together."""
    ranks: frozenset[int] = frozenset()
    by = ""
    for wrapper in wrappers:
        ranks, by = ranks | _members(wrapper.process_group), "DistributedDataParallel"
    for parameter in parameters:
        shard = shard_of(parameter)
        if shard is not None:
            ranks, by = ranks | shard.ranks, by or "DTensor"
    return ranks, by


def _ignored(wrappers: Iterable[DistributedDataParallel]) -> frozenset[int]:
    return frozenset(
        id(parameter)
        for wrapper in wrappers
        for name, parameter in wrapper.module.named_parameters()
        if name in wrapper.parameters_to_ignore
    )


def _members(group: Any) -> frozenset[int]:
    return frozenset(torch.distributed.get_process_group_ranks(group))


def common_store() -> Any:
    """Where all processes of the default process group can leave something for one another."""
    return torch.distributed.distributed_c10d._get_default_store()  # looked up here: some builds of torch have none


def calling_wrapper() -> torch.nn.Module | None:
    """The DistributedDataParallel whose forward pass is running."""
    found: torch.nn.Module | None = DistributedDataParallel._get_active_ddp_module()  # type: ignore[no-untyped-call]
    return found
