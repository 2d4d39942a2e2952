"""One rank of a training that a test watches: ``python -m tests.capture.ranks.program KIND ROOM RANK``. Prints JSON."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradscope
from gradscope.records import PULSE_FIELDS
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron

STEPS = 300
KILLED_AT = 20


def main(kind: str, room: Path, rank: int) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", init_method=f"file://{room / 'meeting'}", rank=rank, world_size=2)
    torch.manual_seed(0)
    seen: dict[str, object] = {"rank": rank}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", gradscope.GradscopeWarning)
        train(kind, room, rank, seen)
    said = [str(warning.message) for warning in caught if issubclass(warning.category, gradscope.GradscopeWarning)]
    seen["slugs"] = [text.rpartition("[gradscope:")[2].rstrip("]") for text in said]
    print(json.dumps(seen), flush=True)
    os._exit(0)  # what is left of the group is torch's business


def train(kind: str, room: Path, rank: int, seen: dict[str, object]) -> None:
    inner = perceptron()
    model: nn.Module = inner if kind == "own" else DistributedDataParallel(inner)
    every = {"budget": None, "killed": 1, "own": 1, "second": 1}[kind]
    scope = gradscope.attach(model, room / "log", every=every) if not (kind == "second" and rank == 0) else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = STEPS if kind == "budget" else 40
    try:
        for step, (inputs, labels) in enumerate(classes(steps, seed=1 + rank)):
            if kind == "killed" and rank == 1 and step == KILLED_AT:
                os._exit(9)
            if kind == "budget" and step % 50 == 10 * rank:
                time.sleep(0.05)  # each rank is slow at times, and the first thinks that its steps are long
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    except RuntimeError as error:
        seen["error"] = str(error)
    if scope is not None:
        before = time.monotonic()
        scope.close()
        seen["closing"] = time.monotonic() - before
        seen["steps"] = scope.report().runs[0].steps
        seen["notes"] = list(scope.report().runs[0].info.notes)
        seen["sampled"] = sampled(scope)


def sampled(scope: gradscope.Scope) -> list[int]:
    """The steps that this rank sampled, by what it had when it was handed over."""
    rows = scope._archive.pulses
    return [int(step) for step in rows[rows[:, PULSE_FIELDS.index("sampled")] > 0, 0]]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
