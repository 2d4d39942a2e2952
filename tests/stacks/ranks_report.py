"""One rank of a watched training whose reports a test compares: ``python -m tests.stacks.ranks_report KIND ROOM RANK``.

Prints JSON: the report of the live scope once it is closed, as text and as JSON, and the slugs of gradscope's warnings.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from torch import distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradscope
from gradscope.report import jsonreport
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron

RANKS, STEPS = 2, 40


def main(kind: str, room: Path, rank: int) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    distributed.init_process_group("gloo", init_method=f"file://{room / 'meeting'}", rank=rank, world_size=RANKS)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", gradscope.GradscopeWarning)
        scope = KINDS[kind](room, rank)
    said = [str(warning.message) for warning in caught if issubclass(warning.category, gradscope.GradscopeWarning)]
    report = scope.report()
    seen = {"text": str(report), "json": jsonreport.render(report.runs), "slugs": said, "logdir": str(scope.logdir)}
    (room / f"seen{rank}").write_text(json.dumps(seen), encoding="utf-8")
    distributed.barrier()
    os._exit(0)  # what is left of the group is torch's business


def healthy(room: Path, rank: int) -> gradscope.Scope:
    return _trained(room, rank, every=1)


def bad_shard(room: Path, rank: int) -> gradscope.Scope:
    """From half of the training on the second rank's data are of another size."""
    return _trained(room, rank, every=1, factor=100.0)


def on_a_budget(room: Path, rank: int) -> gradscope.Scope:
    return _trained(room, rank, every=None, steps=200)


def _trained(room: Path, rank: int, *, every: int | None, factor: float = 1.0, steps: int = STEPS) -> gradscope.Scope:
    model = DistributedDataParallel(perceptron())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.attach(model, room / "log", every=every) as scope:
        for step, (inputs, labels) in enumerate(classes(steps, seed=1 + rank)):
            optimizer.zero_grad()
            scaled = inputs * factor if rank == 1 and step >= steps // 2 else inputs
            nn.functional.cross_entropy(model(scaled), labels).backward()
            optimizer.step()
    return scope


def huggingface(room: Path, rank: int) -> gradscope.Scope:
    """The Trainer puts DistributedDataParallel around the model by itself, and micro-batches into a step."""
    from transformers import Trainer
    from transformers import TrainingArguments

    from gradscope.integrations.huggingface import GradscopeCallback
    from tests.integrations.test_huggingface import gpt
    from tests.stacks.trainer_stacks import sentences

    callback = GradscopeCallback(logdir=room / "log", every=1)
    arguments = TrainingArguments(
        output_dir=str(room / "out"), max_steps=6, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True,
        disable_tqdm=True, per_device_train_batch_size=4, gradient_accumulation_steps=2,
    )  # fmt: skip
    trainer = Trainer(model=gpt(), args=arguments, train_dataset=sentences(128, labelled=False), callbacks=[callback])
    trainer.train()
    (room / f"losses{rank}").write_text(json.dumps([log["loss"] for log in trainer.state.log_history if "loss" in log]))
    assert callback.scope is not None
    callback.scope.close()
    return callback.scope


KINDS: dict[str, Callable[[Path, int], gradscope.Scope]] = {
    "healthy": healthy,
    "bad_shard": bad_shard,
    "on_a_budget": on_a_budget,
    "huggingface": huggingface,
}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
