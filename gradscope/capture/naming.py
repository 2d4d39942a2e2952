"""What modules and parameters are called: as their author named them, whatever torch puts around them or in their place."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch.nn.parallel import DataParallel
from torch.nn.parallel import DistributedDataParallel

from gradscope.capture.gathered import leaves_for
from gradscope.capture.gathered import stand_ins

_MAKERS = ("torch.distributed.fsdp.", "torch.distributed._composable.")  # modules that make classes
_WRAPPED = "_orig_mod"  # what torch's wrapper calls the module in it


def modules_of(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """``named_modules`` without the wrappers of compiled submodules."""
    for path, module in model.named_modules():
        if not is_wrapper(module):
            yield _unwrapped_path(path), module


def parameters_of(
    model: torch.nn.Module, *, recurse: bool = True, remove_duplicate: bool = True
) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """``named_parameters``, with the names that they have where nothing is compiled, and as optimizers hold them: not what
    stands in for them while the model runs, see ``gathered``.
    """
    whole = stand_ins(model)
    for name, parameter in model.named_parameters(recurse=recurse, remove_duplicate=remove_duplicate):
        yield _unwrapped_path(name), whole.get(id(parameter), parameter)


def names_of(model: torch.nn.Module) -> dict[int, str]:
    """The names of the parameters by ``id``: of those that optimizers hold, and of the leaves that stand for them in graphs."""
    names = {id(parameter): name for name, parameter in parameters_of(model)}
    return names | {leaf: names[id(parameter)] for leaf, parameter in leaves_for(model).items() if id(parameter) in names}


def as_written(model: torch.nn.Module) -> torch.nn.Module:
    """The model that was given to a compiler, or to what spreads a training over processes or devices; any other as it is."""
    while (
        inner := unwrapped(model.module if isinstance(model, DataParallel | DistributedDataParallel) else model)
    ) is not model:
        model = inner
    return model


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """What ``torch.compile(module)`` was given to compile; any other module as it is."""
    while is_wrapper(model):
        model = model._modules[_WRAPPED] or model
    return model


def is_wrapper(module: torch.nn.Module) -> bool:
    """Whether it is what ``torch.compile(module)`` returns. Does not import the compiler."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return compiler is not None and isinstance(module, compiler.OptimizedModule)


def _unwrapped_path(path: str) -> str:
    return ".".join(part for part in path.split(".") if part != _WRAPPED) if _WRAPPED in path else path


def class_of(module: torch.nn.Module) -> type:
    """The class that its author gave a module: ``fully_shard`` puts one of its own, made for the purpose, in its place."""
    kind = type(module)
    made_for_it = kind.__module__.startswith(_MAKERS) and len(kind.__bases__) == 2
    return kind.__bases__[1] if made_for_it and issubclass(kind.__bases__[1], torch.nn.Module) else kind
