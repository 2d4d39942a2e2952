"""One line suffices in every way of training that is listed: the same report as in the plain loop, and nothing disturbed."""

from __future__ import annotations

import pytest

from tests.stacks import proving
from tests.stacks.running import bare_and_watched
from tests.stacks.running import run
from tests.stacks.stack import RUN
from tests.stacks.stacks import all_stacks

STACKS = {stack.name: stack for stack in all_stacks()}

# Further processes take seconds to start: two of these stacks show every fault and the default budget here, the others one
# fault; scripts/stacks runs all of it.
PART = {stack.name for stack in all_stacks() if stack.ranks > 1 and stack.name not in ("ddp", "fsdp2")} | {"spawned-worker"}
FAULTS = {
    f"{stack.name}-{fault}": (stack, fault)
    for stack in all_stacks()
    for fault in list(stack.faults)[: 1 if stack.name in PART else None]
}
BUDGETED = [stack.name for stack in all_stacks() if stack.name not in PART]


@pytest.mark.parametrize("name", STACKS)
def test_a_healthy_run_is_watched_without_a_trace_and_without_an_alarm(name, tmp_path):
    stack = STACKS[name]
    bare, watched = bare_and_watched(stack, tmp_path, every=1)

    assert [set(trace.slugs) for trace in watched] == [set(stack.quiet)] + [set()] * (stack.ranks - 1)
    if not stack.differs:
        for alone, seen in zip(bare, watched, strict=True):
            assert seen.losses == alone.losses
            assert seen.state == alone.state

    report = proving.report_of(tmp_path)
    assert not proving.alarms(report)
    assert sorted(proving.step_counts(report).values()) == proving.counted(watched[0])

    recorded = proving.recorded_losses(tmp_path)
    for own, losses in watched[0].losses.items():
        seen = recorded[own] if own != RUN else next(iter(recorded.values()))
        assert proving.nearly_equal(seen, losses, stack.tolerance), (own, seen, losses)


@pytest.mark.parametrize("name", BUDGETED)
def test_a_healthy_run_on_the_default_budget_raises_nothing(name, tmp_path):
    stack = STACKS[name]
    watched = run(stack, tmp_path)
    report = proving.report_of(tmp_path)
    assert not proving.alarms(report)
    assert sorted(proving.step_counts(report).values()) == proving.counted(watched[0])


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(name, tmp_path):
    stack, fault = FAULTS[name]
    run(stack, tmp_path, fault=fault, every=1)
    assert stack.faults[fault] in proving.diagnoses(proving.report_of(tmp_path))


def test_every_stack_shows_two_faults():
    assert [stack.name for stack in STACKS.values() if len(stack.faults) < 2] == []
