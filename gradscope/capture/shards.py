"""Tensors that several ranks hold together: the part that lies here, and how the whole is spread.

A ``DTensor`` answers most operations with those of all its ranks: a norm of one is a collective, which waits for ever where
another rank does not take it too. Whatever is read here goes through ``local_of``, which is a plain tensor of this rank alone.
Shapes and element counts of a ``DTensor`` are those of the whole, and cost nothing.

What a rank says of a norm is an estimate of the whole's, from the part that lies there: ``norm of the part x scale_of(whole)``.
The root of the mean of their squares over all ranks of the mesh (0 from one that holds none of it) is the norm of the whole,
exactly: of one tensor, and of many together, whether they are cut up, the same everywhere, or each of both.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any
from typing import Literal
from typing import final

import torch

Placing = Literal["replicated", "sharded", "partial"]
_ON_ITS_WAY = "torch.distributed._functional_collectives"
_HOME = "torch.distributed.tensor"  # of the class; where nobody has imported it there is no such tensor


@final
@dataclass(frozen=True)
class Axis:
    """How a tensor lies along one dimension of its mesh of ranks."""

    placing: Placing  # the same on all ranks; a part on each; or on each a term of the sum that is the tensor
    dimension: int | None  # of the tensor, that is cut up; None where it is not
    ranks: int  # along this dimension of the mesh
    place: int  # of this rank among them
    group: Any  # torch.distributed.ProcessGroup of them; None on a rank that is not in the mesh


@final
@dataclass(frozen=True)
class Shard:
    """What one rank holds of a tensor that several ranks hold together. Holds no memory of it."""

    shape: tuple[int, ...]  # of the whole
    local_shape: tuple[int, ...]  # of what lies here; a dimension is 0 where this rank holds none of it
    axes: tuple[Axis, ...]  # one for each dimension of the mesh; empty on a rank that is not in the mesh
    ranks: frozenset[int]  # global ranks of the mesh

    @property
    def size(self) -> int:
        """Elements of the whole."""
        return math.prod(self.shape)

    @property
    def local_size(self) -> int:
        """Elements that lie here."""
        return math.prod(self.local_shape)

    @property
    def is_split(self) -> bool:
        """Whether ranks hold different elements of it."""
        return any(axis.placing == "sharded" for axis in self.axes)

    @property
    def is_partial(self) -> bool:
        """Whether what lies here is but a term of a sum over ranks: of such a tensor nothing is known without a collective."""
        return any(axis.placing == "partial" for axis in self.axes)

    @property
    def is_first_copy(self) -> bool:
        """Whether this rank's part is the one to count: exactly one rank of those that hold the same elements says so.

        Sums over all ranks of the mesh (of squares, counts, elements) are those of the whole where only first copies add to
        them: also where a tensor is split over some ranks and the same on others.
        """
        return bool(self.axes) and all(axis.place == 0 for axis in self.axes if axis.placing == "replicated")


def shard_of(tensor: torch.Tensor) -> Shard | None:
    """How a tensor is spread over ranks; None for a plain one, which is this rank's alone as far as it knows.

    Asks nobody: no collective, no wait for a device.
    """
    if not is_spread(tensor):
        return None
    spread: Any = tensor
    mesh, local = spread.device_mesh, spread._local_tensor
    here = mesh.get_coordinate()
    axes = () if here is None else tuple(_axis(mesh, d, spread.placements[d], here[d]) for d in range(mesh.ndim))
    ranks = frozenset(mesh.mesh.flatten().tolist())  # which torch keeps on the host, whatever device the mesh is of
    return Shard(tuple(tensor.shape), tuple(local.shape), axes, ranks)


def _axis(mesh: Any, dimension: int, placement: Any, place: int) -> Axis:
    placing: Placing = "sharded" if _is_cut(placement) else "replicated" if placement.is_replicate() else "partial"
    cut = int(placement.dim) if placing == "sharded" else None
    return Axis(placing, cut, int(mesh.size(dimension)), int(place), mesh.get_group(dimension))


def _is_cut(placement: Any) -> bool:
    """Whether each rank holds a part: also one of a tensor that a further dimension of the mesh cuts along the same axis."""
    return bool(placement.is_shard()) or type(placement).__name__ == "_StridedShard"


def is_spread(tensor: object) -> bool:
    """Whether a tensor is a ``DTensor``. Cheap: torch's distributed parts are not imported for it."""
    kind = type(tensor)
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        return False
    home = sys.modules.get(_HOME)
    return home is not None and isinstance(tensor, home.DTensor)


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """What lies on this rank of a tensor, without its history: itself where it is a plain one."""
    if not is_spread(tensor):
        return tensor
    spread: Any = tensor
    local: torch.Tensor = spread._local_tensor  # to_local() of a parameter makes another tensor
    return local


def is_freed(tensor: torch.Tensor) -> bool:
    """Whether its memory was given back, as that of gathered parameters is between their uses: it must not be read."""
    if tensor.is_meta or tensor.layout is not torch.strided or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def scale_of(tensor: torch.Tensor) -> float:
    """What the norm of a part is multiplied with to estimate the whole's: sqrt(parts it is cut into); 1 of a plain tensor."""
    if not is_spread(tensor):
        return 1.0
    spread: Any = tensor
    parts = [spread.device_mesh.size(d) for d, placement in enumerate(spread.placements) if _is_cut(placement)]
    return math.sqrt(math.prod(parts))


def gradient_here(parameter: torch.Tensor) -> torch.Tensor | None:
    """What lies here of a parameter's gradient, of the same elements as of the parameter; None where there is nothing.

    Where a gradient is not spread as its parameter is, ranks have still to exchange it: it is not read.
    """
    gradient = parameter.grad
    if gradient is None or not _alike(parameter, gradient):
        return None
    local = local_of(gradient)
    return local if local.numel() else None


def _alike(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are spread in the same way; plain ones are."""
    spread, others = is_spread(tensor), is_spread(other)
    if not (spread and others):
        return spread is others
    one: Any = tensor
    two: Any = other
    return bool(one.placements == two.placements and one.device_mesh == two.device_mesh)


def whole_here(tensor: torch.Tensor) -> torch.Tensor | None:
    """A tensor whose every element lies here, as a plain one; None where only a part does, or its memory was given back."""
    if not is_spread(tensor):
        return None if is_freed(tensor) else tensor
    spread: Any = tensor
    return local_of(tensor) if all(placement.is_replicate() for placement in spread.placements) else None


def is_euclidean(norm: torch.Tensor) -> bool:
    """Whether a norm that ranks have still to put together is the Euclidean one."""
    spread: Any = norm
    terms = [placement for placement in spread.placements if placement.is_partial()]
    return all(type(term).__name__ == "_NormPartial" and term.norm_type == 2 for term in terms)


def estimate_of(scalar: torch.Tensor) -> torch.Tensor:
    """What this rank knows of a scalar, a loss say; the mean over the ranks of what each of them knows is its value."""
    if not is_spread(scalar):
        return scalar
    spread: Any = scalar
    local = local_of(scalar)
    sums = [d for d, placement in enumerate(spread.placements) if placement.is_partial() and placement.reduce_op == "sum"]
    return local * math.prod(spread.device_mesh.size(d) for d in sums) if sums else local


def part_here(tensor: torch.Tensor) -> torch.Tensor | None:
    """What lies on this rank of an activation or a gradient, a plain one being itself; None of a term of a sum over ranks.

    Where what ranks exchange is still on its way, it is waited for as whatever comes next in the model would wait for it.
    """
    if type(tensor) is torch.Tensor:
        return tensor
    if is_spread(tensor):
        spread: Any = tensor
        return None if any(placement.is_partial() for placement in spread.placements) else _arrived(local_of(tensor))
    return _arrived(tensor)


def _arrived(tensor: torch.Tensor) -> torch.Tensor:
    home = sys.modules.get(_ON_ITS_WAY)
    if home is None or not isinstance(tensor, home.AsyncCollectiveTensor):
        return tensor
    waited: torch.Tensor = tensor.trigger_wait()
    return waited
