"""What of a model cannot be watched, and what to do about it: one warning for each kind, when it is certain."""

from __future__ import annotations

import sys
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from inspect import CO_GENERATOR
from typing import Any
from typing import final

import torch
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from gradscope.capture.graph import Graph
from gradscope.capture.naming import modules_of
from gradscope.capture.outputs import has_tensor
from gradscope.capture.roles import role_of
from gradscope.capture.slots import Slot
from gradscope.capture.slots import Watched
from gradscope.failures import warn

MOST_NAMED = 3
GRAPHS = 2  # that must show a layer at work without a call: in the first one the watching may have begun amid a forward pass
_MOST_FRAMES = 500
_CALLS = ("_wrapped_call_impl", "_call_impl")  # of torch.nn.Module: what m(x) goes through
_RESHAPED = frozenset(("T", "Transpose", "ToCopy"))  # between a weight and the operation of its layer
_OPERATIONS = {  # that a layer's forward() does with its weight
    "linear": frozenset(("Addmm", "Mm", "Linear")),
    "conv": frozenset(("Convolution", "ConvolutionOverrideable", "CudnnConvolution", "MkldnnConvolution")),
    "embedding": frozenset(("Embedding", "EmbeddingBag")),
    "norm": frozenset(("NativeBatchNorm", "CudnnBatchNorm", "NativeLayerNorm", "NativeGroupNorm")),
}


@final
class Unsupported:
    """Gathers what shows of it while a model runs, and tells it once a sampled step is over."""

    def __init__(self, left_out: Callable[[str], bool]) -> None:
        self._left_out = left_out
        self._told: set[str] = set()
        self._heard: set[str] = set()  # paths of modules of which a call was seen
        self._speechless: dict[str, str] = {}  # path -> what a module returned in the place of tensors
        self._direct: dict[str, None] = {}  # paths of modules whose forward() was called without them
        self._at_work: dict[str, int] = {}  # path -> graphs that showed a layer at work that was not called

    # -- what shows

    def attached(self, model: torch.nn.Module | None) -> None:
        """What is known before the first step."""
        modules = modules_of(model) if model is not None else ()
        found = [path for path, module in modules if isinstance(module, torch.jit.ScriptModule)]
        outermost = [path for path in found if not any(path != other and _is_within(path, other) for other in found)]
        told = [path for path in outermost if not self._left_out(path)]
        if told and self._is_first("scripted"):
            warn(
                "torchscript-module",
                f"Expected modules that Python runs; found {len(found)} that TorchScript runs, in {_named(told)}. The calls of "
                "layers inside are not seen; parameters, gradients, the loss and all other modules are watched. Attach to the "
                "model before it goes through torch.jit.script() or torch.jit.trace(), and train that one; or leave this part "
                "out with exclude=.",
            )

    def described(self, model: torch.nn.Module) -> None:
        """The model's parameters were looked at, after its first forward pass as a rule."""
        if next(model.parameters(), None) is None and self._is_first("without parameters"):
            warn(
                "model-without-parameters",
                f"Expected a model with parameters to train; found {type(model).__name__}, which has none. No "
                "optimizer can train it; losses are watched, and what goes into it and comes out, where it is the only model "
                "watched here. Give attach() the module whose parameters() the optimizer holds.",
            )

    def hear(self, watched: Watched, output: Any) -> None:
        """A module was called."""
        self._heard.add(watched.path)
        if isinstance(output, torch.Tensor) or not torch.is_grad_enabled() or watched.path in self._speechless:
            return
        module = watched.module()
        learns = module is not None and next(module.parameters(), None) is not None
        if learns and not isinstance(output, Iterator) and not has_tensor(output):
            self._speechless[watched.path] = type(output).__name__

    def look_up(self, watched: Mapping[int, Watched]) -> None:
        """A module was called for the first time: look by whose forward(), and whether that was called as it should be."""
        called: set[int] = set()
        forwards: list[tuple[str, int]] = []
        for name, owner in _callers():
            if name == "forward":
                forwards += [(watched[owner].path, owner)] if owner in watched else []
            else:
                called.add(owner)
        self._direct.update({path: None for path, owner in forwards if owner not in called})

    def read(self, graph: Graph, model: torch.nn.Module, slots: Sequence[Slot]) -> None:
        """Look in a loss's graph for layers that did their work although no call of theirs was seen."""
        weights = self._not_called(model)
        if not weights or not {slot.node for slot in slots} & {node.sequence for node in graph.nodes}:
            return  # where no call at all was seen in this step, it may have begun with the forward pass half done
        for index, node in enumerate(graph.nodes):
            if node.variable is not None and id(node.variable) in weights:
                path, role = weights[id(node.variable)]
                if _OPERATIONS[role] & _users(graph, index):
                    self._at_work[path] = self._at_work.get(path, 0) + 1
                    if self._at_work[path] >= GRAPHS:
                        self._direct[path] = None

    def _not_called(self, model: torch.nn.Module) -> dict[int, tuple[str, str]]:
        """Weights by ``id``, each with the path and the role of its layer: of layers of which no call was seen."""
        found: dict[int, tuple[str, str]] = {}
        in_use: set[int] = set()
        for path, module in modules_of(model):
            weight = dict(module.named_parameters(recurse=False)).get("weight")
            role = role_of(module)
            if weight is None or role not in _OPERATIONS:
                continue
            # Attention works with the weight of its last layer, and its own output is that layer's.
            if path in self._heard or self._left_out(path) or isinstance(module, NonDynamicallyQuantizableLinear):
                in_use.add(id(weight))
            else:
                found[id(weight)] = (path, role)
        return {key: place for key, place in found.items() if key not in in_use}

    # -- what is told

    def tell(self) -> None:
        """A sampled step is over."""
        paths = list(self._speechless)
        if paths and self._is_first("speechless"):
            warn(
                "forward-without-tensor",
                f"Expected forward() to return tensors; found {self._speechless[paths[0]]} from {_named(paths)}. What it puts "
                "out is not watched; the layers inside, parameters, gradients and the loss are. Return the tensors as well, in "
                "a tuple, a dict or a dataclass.",
            )
        if self._direct and self._is_first("direct"):
            warn(
                "forward-called-directly",
                f"Expected modules to be called as layer(x); found {_named(list(self._direct))} at work without such a call: "
                "forward() is called directly, or the weight is used by hand. Hooks do not run then, so what goes in and out "
                "there is not watched; parameters, gradients, the loss and all other modules are. Call the module itself.",
            )

    def _is_first(self, kind: str) -> bool:
        """Whether this kind has not been told of so far, as it is now."""
        first = kind not in self._told
        self._told.add(kind)
        return first


def _is_within(path: str, other: str) -> bool:
    return other == "" or path.startswith(f"{other}.")


def _named(paths: Sequence[str]) -> str:
    names = ", ".join(path or "the model itself" for path in paths[:MOST_NAMED])
    return names if len(paths) <= MOST_NAMED else f"{names} and {len(paths) - MOST_NAMED} more"


def _users(graph: Graph, index: int) -> set[str]:
    """The operations that take a weight, as it is or turned round."""
    takers = [graph.nodes[taker] for taker in graph.consumers[index]]
    turned = [place for place in graph.consumers[index] if graph.nodes[place].name in _RESHAPED]
    return {taker.name for taker in takers} | {name for place in turned for name in _users(graph, place)}


def _callers() -> Iterator[tuple[str, int]]:
    """Calls of modules and of their ``forward`` that are being made, innermost first, each with the module's ``id``."""
    frame = sys._getframe()
    home = torch.nn.Module._call_impl.__code__.co_filename
    for _ in range(_MOST_FRAMES):
        if frame.f_back is None:
            return
        frame = frame.f_back
        name = frame.f_code.co_name
        if frame.f_code.co_flags & CO_GENERATOR:  # it runs whenever the next of its values is wanted, by whomever
            continue
        if name == "forward" or (name in _CALLS and frame.f_code.co_filename == home):
            owner = frame.f_locals.get("self")
            if isinstance(owner, torch.nn.Module):
                yield name, id(owner)
