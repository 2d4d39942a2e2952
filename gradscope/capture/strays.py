"""Parameters that a model's forward pass uses and ``model.parameters()`` does not know: layers in a plain list, say."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from itertools import islice
from typing import Any
from typing import final

import torch

from gradscope.capture.graph import Graph
from gradscope.capture.naming import modules_of
from gradscope.capture.naming import names_of
from gradscope.capture.slots import Slot
from gradscope.records import Stray

MOST_STRAYS = 32  # that are told of
MOST_ANEW = 2  # graphs that showed others, from which they are taken to be made in each forward pass
MOST_PLACES = 20_000  # attributes and items that are looked through for a home
_DEEPEST = 4  # lists within lists within attributes
_MOST_ITEMS = 256  # of one list
_OF_TORCH = frozenset(vars(torch.nn.Module()))  # what every module has


@final
class Strays:
    """Looks for them in graphs as they are read. Holds none of them: goes by ``id`` and by how often each was written to."""

    def __init__(self) -> None:
        self._versions: dict[int, int] = {}  # of those that an earlier graph showed, when it did
        self._others: set[int] = set()  # that have no home in the model
        self._anew = 0  # graphs that showed some that no earlier one had, and that the model holds nowhere

    def look(
        self, graph: Graph, model: torch.nn.Module, slots: Sequence[Slot], held: Callable[[], Collection[int]]
    ) -> tuple[Stray, ...]:
        """Those that this graph shows and an earlier one showed with the same values; ``held``: by any optimizer.

        Those that no attribute leads to count where layers of the model were called before them: they are a global's, or are
        made within the forward pass, and then two earlier graphs had to show others.
        """
        found = _within(graph, model, slots)
        if not found:
            return ()
        optimized = held()
        left = {id(parameter): (parameter, amid) for parameter, amid in found if id(parameter) not in optimized}
        known = {key for key, (parameter, _) in left.items() if self._versions.get(key) == parameter._version}
        homes = _homes(model, left.keys() - self._others)
        self._others |= left.keys() - homes.keys()
        homeless = [parameter for key, (parameter, amid) in left.items() if amid and key in self._others]
        self._anew += any(id(parameter) not in self._versions for parameter in homeless)
        if self._anew <= MOST_ANEW:
            self._versions = {key: parameter._version for key, (parameter, _) in left.items()} | self._versions
        of_none = [parameter for parameter in homeless if id(parameter) in known or self._anew > MOST_ANEW]
        return (*_described(homes, known), *map(_made, of_none))[:MOST_STRAYS]


def _within(graph: Graph, model: torch.nn.Module, slots: Sequence[Slot]) -> list[tuple[torch.nn.Parameter, bool]]:
    """Leaves that are parameters, but not the model's, used before its output was there; and whether amid its layers.

    What comes later is the loss's: a discriminator, a net that compares features. Autograd numbers nodes as they are made.
    """
    numbers = [slot.node for slot in slots if slot.node >= 0 and slot.site.call == 0]
    own = names_of(model)
    found = []
    for index, node in enumerate(graph.nodes):
        leaf = node.variable
        if numbers and isinstance(leaf, torch.nn.Parameter) and id(leaf) not in own:
            first_use = min((graph.nodes[taker].sequence for taker in graph.consumers[index]), default=max(numbers) + 1)
            if first_use <= max(numbers):
                found.append((leaf, first_use > min(numbers)))
    return found


def _homes(model: torch.nn.Module, wanted: Collection[int]) -> dict[int, tuple[str, str, int] | None]:
    """Where the model's attributes lead to these parameters, of what class the owner is, and their elements; by ``id``.

    None for one that evaluates among modules that train: it was put out of sight on purpose, as a teacher is.
    """
    homes: dict[int, tuple[str, str, int] | None] = {}
    for place, holder in _attributes(model) if wanted else ():
        owners = modules_of(holder) if isinstance(holder, torch.nn.Module) else [("", None)]
        for path, owner in owners:
            for parameter in owner.parameters(recurse=False) if owner is not None else [holder]:
                if id(parameter) in wanted:
                    kind = type(owner).__name__ if owner is not None else "Parameter"
                    home = (f"{place}.{path}" if path else place, kind, parameter.numel())
                    homes.setdefault(id(parameter), home if owner is None or owner.training else None)
    return homes


def _attributes(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Modules and parameters that attributes lead to, but that are not registered, each with the way there."""
    registered = {id(module) for module in model.modules()}
    seen: set[int] = set(registered)
    roots = ((path, module) for path, module in modules_of(model))
    queue = [
        (f"{path}.{name}" if path else name, value, 1)
        for path, module in roots
        for name, value in vars(module).items()
        if name not in _OF_TORCH
    ]
    for looked, (place, value, depth) in enumerate(queue):
        if looked >= MOST_PLACES:
            return
        if isinstance(value, torch.Tensor | torch.nn.Module):
            if id(value) not in seen:
                seen.add(id(value))
                yield place, value
        elif depth <= _DEEPEST and id(value) not in seen:
            seen.add(id(value))
            queue.extend((place + step, item, depth + 1) for step, item in _items(value))


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    """What a list, a mapping or an object of the user's own holds, each with how it is reached."""
    if isinstance(value, str | bytes | int | float | type):
        return ()
    if isinstance(value, list | tuple):
        return [(f"[{i}]", item) for i, item in enumerate(value[:_MOST_ITEMS])]
    if isinstance(value, dict):  # not any mapping: some read a disk
        return [(f"[{key!r}]", item) for key, item in islice(value.items(), _MOST_ITEMS)]
    try:
        return [(f".{name}", item) for name, item in vars(value).items()]
    except TypeError:  # it has none
        return ()


def _described(homes: Mapping[int, tuple[str, str, int] | None], known: Collection[int]) -> list[Stray]:
    """One for each module, or parameter that stands by itself."""
    sizes: dict[tuple[str, str], int] = {}
    for place, kind, size in (home for key, home in homes.items() if home is not None and key in known):
        sizes[place, kind] = sizes.get((place, kind), 0) + size
    return [Stray(place, kind, size) for (place, kind), size in sizes.items()]


def _made(parameter: torch.nn.Parameter) -> Stray:
    return Stray("", f"Parameter of shape {tuple(parameter.shape)}", parameter.numel())
