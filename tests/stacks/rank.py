"""One process of a program that several train together: ``python -m tests.stacks.rank ORDERS RANK``."""

from __future__ import annotations

import os
import pickle
import sys
from importlib import import_module
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import distributed

from tests.stacks.running import here


def main(written: Path, rank: int) -> None:
    module, name, orders = pickle.loads(written.read_bytes())
    stack = next(stack for stack in import_module(module).STACKS if stack.name == name)  # the others' modules import a lot
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    traces = []
    for number, order in enumerate(orders):
        meeting = written.with_name(f"meeting{number}")
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=stack.ranks)
        traces.append(here(stack, order))
        distributed.barrier()
        distributed.destroy_process_group()
    written.with_name(f"traces{rank}").write_bytes(pickle.dumps(traces))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
