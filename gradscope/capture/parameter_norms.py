"""The norms of gradients and weights, one of each parameter, on the device that these lie on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from gradscope.capture.shards import gradient_here
from gradscope.capture.shards import is_spread
from gradscope.capture.shards import local_of
from gradscope.capture.shards import scale_of
from gradscope.capture.transfer import to_device
from gradscope.capture.transfer import together
from gradscope.trends import Mask

_ORDINARY = {torch.Tensor}  # types of gradients that lie on this rank alone
_STRIDED = {torch.strided}  # layouts of gradients whose norm is taken as they are


class Norms(NamedTuple):
    """The norms of gradients of some parameters. Made at every step."""

    ids: tuple[int, ...]
    norms: tuple[torch.Tensor, ...]  # scalars, float32
    together: torch.Tensor  # float32 [parameters], see ``transfer.together``


@dataclass(frozen=True)
class Parts:
    """What lies on this rank of parameters that several ranks hold together."""

    scales: torch.Tensor  # float32 [parameters], what their norms are multiplied with to estimate those of the whole
    here: Mask  # [parameters]; those of which anything lies here

    @staticmethod
    def of(parameters: Sequence[torch.Tensor], device: torch.device) -> Parts:
        scales = torch.tensor([scale_of(p) for p in parameters], dtype=torch.float32, device="cpu")
        return Parts(to_device(scales, device), np.array([local_of(p).numel() > 0 for p in parameters], dtype=bool))


def norms_of_gradients(parameters: Sequence[torch.Tensor]) -> Norms:
    """The norms of the gradients that these parameters have."""
    gradients = [p.grad for p in parameters]
    there = [g for g in gradients if g is not None]
    if not there:
        return NONE
    if set(map(type, there)) != _ORDINARY and any(map(is_spread, there)):
        return _norms_of_parts(parameters)
    plain = {g.layout for g in there} == _STRIDED and all(dtype.is_floating_point for dtype in {g.dtype for g in there})
    if len(there) == len(gradients) and plain:  # the rule; without a pair for each of thousands of parameters
        ids = tuple(map(id, parameters))
    else:
        dense = {id(p): d for p, g in zip(parameters, gradients, strict=True) if g is not None and (d := _dense(g)) is not None}
        ids, there = tuple(dense), list(dense.values())
    norms = norms_of(there)
    return Norms(ids, norms, together(norms))


def _norms_of_parts(parameters: Sequence[torch.Tensor]) -> Norms:
    """The same where several ranks hold some of these together: estimates from what lies here, see ``shards``."""
    found = [(p, d) for p in parameters if (g := gradient_here(p)) is not None and (d := _dense(g)) is not None]
    if not found:
        return NONE
    norms = norms_of([gradient for _, gradient in found])
    scaled = tuple(torch._foreach_mul(norms, [scale_of(p) for p, _ in found]))
    return Norms(tuple([id(p) for p, _ in found]), scaled, together(scaled))


def norms_of(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Euclidean norm of each, float32. Squares are summed in float32 (float64 for float64): past 1.8e19 they are infinite."""
    if not tensors:
        return ()
    with torch.no_grad():
        if torch.float64 in {tensor.dtype for tensor in tensors}:
            return tuple([norm.float() for norm in torch._foreach_norm(tensors, dtype=torch.float64)])
        return tuple(torch._foreach_norm(tensors, dtype=torch.float32))


def _dense(gradient: torch.Tensor) -> torch.Tensor | None:
    """The numbers of a gradient, real and imaginary parts of complex ones; None where there are no such numbers."""
    if gradient.is_complex() and not gradient.is_sparse:
        return torch.view_as_real(gradient.detach().resolve_conj())
    if not gradient.is_floating_point():
        return None
    return _summed(gradient.detach()) if gradient.is_sparse else gradient.detach()


def _summed(gradient: torch.Tensor) -> torch.Tensor:
    """The values of a sparse gradient once those at one place are added up, on an accelerator among zeros."""
    if gradient.is_cpu or gradient.is_coalesced():
        return gradient.coalesce().values()
    return sum_by_place(gradient._indices(), gradient._values(), gradient.shape)


def sum_by_place(indices: torch.Tensor, values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """What ``coalesce`` finds, then zeros: it would wait for the device, to learn how many places there are.

    ``indices`` are [dimensions, entries], ``values`` [entries, ...].
    """
    places = torch.zeros_like(indices[0])
    for index, size in zip(indices, shape, strict=False):
        places = places * size + index
    places, order = torch.sort(places)
    rows = torch.zeros_like(places)
    rows[1:] = torch.cumsum(places[1:] != places[:-1], 0)
    return torch.zeros_like(values).index_add_(0, rows, values.index_select(0, order))


NONE = Norms((), (), together(()))
