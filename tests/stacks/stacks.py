"""All stacks there are: those that the modules of this package whose names end in ``_stacks`` list."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from tests.stacks.stack import Stack


@cache
def all_stacks() -> tuple[Stack, ...]:
    """In the order of the modules' names, and within each as it lists them."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    modules = [importlib.import_module(f"tests.stacks.{name}") for name in names if name.endswith("_stacks")]
    return tuple(stack for module in modules for stack in module.STACKS)
