"""What several processes and several copies of a model are promised: one report, the right ranks, nothing in the way."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import gradscope
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run
from gradscope.records import PULSE_FIELDS
from gradscope.report import jsonreport
from tests.stacks.ranks_report import RANKS
from tests.stacks.ranks_report import STEPS
from tests.stacks.running import in_ranks
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron


def ranks(kind: str, room: Path) -> list[dict[str, Any]]:
    """What each rank saw."""
    in_ranks("tests.stacks.ranks_report", kind, room, count=RANKS)
    return [json.loads((room / f"seen{rank}").read_text(encoding="utf-8")) for rank in range(RANKS)]


def names(report: gradscope.Report) -> tuple[list[str], list[str]]:
    """What a report calls the model, its modules and its parameters."""
    info = report.runs[0].info
    return [info.name, *(module.path for module in info.modules)], [parameter.name for parameter in info.parameters]


def own_names(model: nn.Module) -> tuple[list[str], list[str]]:
    modules = [path for path, _ in model.named_modules()]
    return [type(model).__name__, *modules], [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("kind", ["bad_shard", "on_a_budget"])
def test_the_first_rank_s_live_report_is_the_one_that_is_read_back(kind: str, tmp_path: Path) -> None:
    first, second = ranks(kind, tmp_path)
    read = gradscope.read(tmp_path / "log")
    assert first["text"] == str(read)
    assert first["json"] == jsonreport.render(read.runs)
    assert (first["slugs"], second["slugs"]) == ([], [])
    assert names(read) == own_names(perceptron())
    if kind == "bad_shard":
        (outlier,) = (finding for finding in read.findings if finding.rule == "rank-outlier")
        assert "rank 1" in outlier.message
        assert outlier.first_step == STEPS // 2
    else:
        assert not read.findings


def test_a_trainer_s_ranks_make_one_run_with_the_trainer_s_own_loss(tmp_path: Path) -> None:
    seen = ranks("huggingface", tmp_path)
    assert [one["slugs"] for one in seen] == [[], []]
    (directory,) = find_runs(tmp_path / "log")
    run = read_run(directory)
    assert run.info.ranks == RANKS
    losses = run.pulses[:, PULSE_FIELDS.index("loss")].tolist()
    assert losses == pytest.approx(json.loads((tmp_path / "losses0").read_text()), rel=1e-4)
    assert [int(count) for count in run.pulses[:, PULSE_FIELDS.index("backwards")]] == [2] * 6


# -- torch.compile


def test_a_step_that_is_not_sampled_is_nothing_new_to_the_compiler(tmp_path: Path) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    model = perceptron()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = classes(40)

    def advance(steps: int) -> None:
        for _, (inputs, labels) in zip(range(steps), batches, strict=False):
            optimizer.zero_grad()
            nn.functional.cross_entropy(compiled(inputs), labels).backward()
            optimizer.step()

    advance(3)
    with gradscope.attach(compiled, tmp_path, every=5):
        for _ in range(6):
            advance(1)
            before = copy.deepcopy(counters)
            assert before["stats"]["unique_graphs"] > 0
            advance(4)
            assert counters == before


# -- DataParallel


class TwoReplicas(nn.Module):
    """What ``nn.DataParallel`` does with two devices: replicas of the module, each called in a thread of its own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        halves, outputs = inputs.chunk(2), {}

        def call(place: int, replica: nn.Module) -> None:
            outputs[place] = replica(halves[place])

        threads = [threading.Thread(target=call, args=(place, replica_of(self.module))) for place in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return torch.cat([outputs[0], outputs[1]])


def replica_of(module: nn.Module) -> nn.Module:
    """As ``torch.nn.parallel.replicate`` makes it, on the same device."""
    replica: Any = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        setattr(replica, name, child and replica_of(child))
    for name, parameter in module._parameters.items():
        setattr(replica, name, None if parameter is None else parameter * 1)
    return replica


def test_what_spreads_a_model_over_devices_does_not_show_in_its_names(tmp_path: Path) -> None:
    model = perceptron()
    with gradscope.attach(nn.DataParallel(model), tmp_path, every=1) as scope:
        nn.functional.cross_entropy(nn.DataParallel(model)(torch.randn(4, 16)), torch.tensor([0, 1, 2, 3])).backward()
    assert names(scope.report()) == own_names(model)


@pytest.mark.parametrize("outermost", [True, False])
def test_replicas_are_left_alone_and_what_they_share_is_watched(outermost: bool, tmp_path: Path) -> None:
    bare, losses, _ = replicated(None, outermost=outermost)
    watched, seen, report = replicated(tmp_path, outermost=outermost)
    assert all(torch.equal(one, other) for one, other in zip(bare, watched, strict=True))
    assert seen == losses
    (directory,) = find_runs(tmp_path)
    run = read_run(directory)
    assert run.pulses[:, PULSE_FIELDS.index("loss")].tolist() == pytest.approx(losses)
    assert all((frame.columns["weight_gradient.norm"] > 0).all() for frame in run.frames)
    assert report is not None
    assert not report.findings
    assert "no call of the model's layers was seen" in report.runs[0].skipped["dead-units"]


def replicated(logdir: Path | None, *, outermost: bool) -> tuple[list[torch.Tensor], list[float], gradscope.Report | None]:
    torch.manual_seed(0)
    module = perceptron()
    model = TwoReplicas(module)
    scope = gradscope.attach(model if outermost else module, logdir, every=1) if logdir is not None else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for inputs, labels in classes(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if scope is not None:
        scope.close()
    return list(model.parameters()), losses, scope and scope.report()


# -- no optimizer


@pytest.mark.parametrize("batched", [False, True])
def test_within_a_transform_a_bad_input_is_not_laid_to_the_loss(batched: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = perceptron()
    parameters = dict(model.named_parameters())

    def loss_of(values: dict[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        def called(given: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(model, values, (given,))

        return nn.functional.cross_entropy(torch.func.vmap(called)(inputs) if batched else called(inputs), labels)

    with gradscope.attach(model, tmp_path, every=1) as scope:
        for step, (inputs, labels) in enumerate(classes(30)):
            given = inputs * float("nan") if step == 12 else inputs
            gradients, loss = torch.func.grad_and_value(loss_of)(parameters, given, labels)
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.sub_(0.1 * gradients[name])
            scope.observe(loss=loss)
            scope.step()
    (run,) = gradscope.read(tmp_path).runs
    assert run.diagnosis == ("nonfinite-loss" if batched else "nonfinite-input")
    assert ("nonfinite-origin" in run.skipped) is batched  # no layer is seen
