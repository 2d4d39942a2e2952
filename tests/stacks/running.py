"""Runs a stack's program, watched or not, in this process or in several, and keeps what came of it."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed

import gradscope
from tests.stacks.stack import Eye
from tests.stacks.stack import Stack

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 240  # that a program of several processes may take; none does unless it hangs


@dataclass(frozen=True)
class Order:
    """How a program is to be run."""

    logdir: Path | None
    fault: str
    steps: int
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Trace:
    """One run of a program, in one process."""

    losses: Mapping[str, tuple[float, ...]]
    ends: tuple[float, ...]
    state: Mapping[str, tuple[str, tuple[int, ...], bytes]]  # name -> dtype, shape, bits
    asked: tuple[str, ...]
    slugs: tuple[str, ...]  # of gradscope's own warnings


def run(stack: Stack, logdir: Path | None, *, fault: str = "", steps: int | None = None, **options: Any) -> tuple[Trace, ...]:
    """Train; one trace for each process. ``logdir=None``: with nobody watching."""
    order = Order(logdir, fault, stack.steps if steps is None else steps, options)
    return _carried_out(stack, (order,))[0]


def bare_and_watched(stack: Stack, logdir: Path, **options: Any) -> tuple[tuple[Trace, ...], tuple[Trace, ...]]:
    """Train with nobody watching, then watched; where it takes several processes, in the same ones, which are slow to start."""
    bare, watched = _carried_out(stack, (Order(None, "", stack.steps, {}), Order(logdir, "", stack.steps, options)))
    return bare, watched


def _carried_out(stack: Stack, orders: Sequence[Order]) -> list[tuple[Trace, ...]]:
    if stack.ranks == 1:
        return [(here(stack, order),) for order in orders]
    return _in_processes(stack, orders)


def here(stack: Stack, order: Order) -> Trace:
    torch.manual_seed(0)
    eye = Eye(order.logdir, **order.options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", gradscope.GradscopeWarning)
        try:
            state = stack.train(eye, order.fault, order.steps)
        finally:
            eye.close()
    said = [str(warning.message) for warning in caught if issubclass(warning.category, gradscope.GradscopeWarning)]
    return Trace(
        losses={name: tuple(losses) for name, losses in eye.losses.items()},
        ends=tuple(eye.ends),
        state={name: _bits(value) for name, value in state.items()},
        asked=tuple(eye.asked),
        slugs=tuple(text.rpartition("[gradscope:")[2].rstrip("]") for text in said),
    )


def _bits(value: torch.Tensor) -> tuple[str, tuple[int, ...], bytes]:
    held = value.detach().cpu().contiguous()
    return str(held.dtype), tuple(held.shape), held.reshape(-1).view(torch.uint8).numpy().tobytes()


def in_ranks(module: str, *arguments: str | Path, count: int) -> None:
    """Run ``python -m module ARGUMENTS RANK`` in so many processes, all of which have to end well."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    children = [subprocess.Popen([*command, str(rank)], cwd=ROOT) for rank in range(count)]
    try:
        codes = [child.wait(SECONDS) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert codes == [0] * count, f"{' '.join(command)} ended with {codes}"


def _in_processes(stack: Stack, orders: Sequence[Order]) -> list[tuple[Trace, ...]]:
    import tempfile

    with tempfile.TemporaryDirectory() as room:
        written = Path(room) / "orders"
        written.write_bytes(pickle.dumps((stack.train.__module__, stack.name, tuple(orders))))
        in_ranks("tests.stacks.rank", written, count=stack.ranks)
        by_rank = [pickle.loads((Path(room) / f"traces{rank}").read_bytes()) for rank in range(stack.ranks)]
        return list(zip(*by_rank, strict=True))
