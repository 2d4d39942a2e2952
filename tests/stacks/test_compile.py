"""What is compiled is left as it is: no break of a graph, nothing compiled again, no trace of the watch in the compiler."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import gradscope
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run
from tests.stacks import compile_stacks
from tests.stacks.compile_stacks import BACKEND
from tests.stacks.compile_stacks import Classifier
from tests.stacks.running import run
from tests.stacks.tasks import classes

PROGRAMS = {stack.name: stack for stack in compile_stacks.STACKS}
LAYERS = {"stem", "blocks.0.linear", "blocks.1.linear", "head"}
NEVER_AGAIN = 10**6  # a cadence of which only the first step is sampled


@dataclass(frozen=True)
class Work:
    """What the compiler had to do."""

    graphs: int
    breaks: int
    frames: int


def work_of(program: Callable[[], object]) -> Work:
    counters.clear()
    program()
    return Work(
        graphs=counters["stats"]["unique_graphs"],
        breaks=sum(counters["graph_break"].values()),
        frames=counters["frames"]["total"],
    )


def names(logdir, kind, *, frame=-1):
    frames = read_run(find_runs(logdir)[0]).frames
    return [site.name for site in frames[frame].schema.sites(kind)]


def trained(model, call, steps, *, optimizer=None, between=lambda step: None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step, (inputs, labels) in enumerate(classes(steps)):
        between(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(call(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def model():
    torch.compiler.reset()
    torch.manual_seed(0)
    return Classifier()


@pytest.mark.parametrize("every", [4, None])
@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_is_compiled_that_would_not_be_and_no_graph_breaks(name, every, tmp_path):
    stack = PROGRAMS[name]
    bare = work_of(lambda: run(stack, None))
    watched = work_of(lambda: run(stack, tmp_path, every=every))
    assert bare.graphs > 0
    assert (watched.graphs, watched.breaks) == (bare.graphs, bare.breaks)
    assert watched.frames <= bare.frames


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_run_of_which_only_the_first_step_is_sampled_is_bit_identical(name, tmp_path):
    counters.clear()
    (bare,) = run(PROGRAMS[name], None)
    graphs = counters["stats"]["unique_graphs"]
    counters.clear()
    (watched,) = run(PROGRAMS[name], tmp_path, every=NEVER_AGAIN)
    assert counters["stats"]["unique_graphs"] == graphs
    assert watched.losses == bare.losses
    assert watched.state == bare.state


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name != "compile-several"])
def test_layers_are_seen_and_called_as_in_the_model_that_is_not_compiled(name, tmp_path):
    run(PROGRAMS[name], tmp_path, every=4)
    assert set(names(tmp_path, "activation")) >= LAYERS
    assert set(names(tmp_path, "weight")) == {name for name, _ in Classifier().named_parameters()}
    info = read_run(find_runs(tmp_path)[0]).info
    assert info.model == "Classifier"
    assert not any("_orig_mod" in module.path for module in info.modules)


@pytest.mark.parametrize("attach_to", ["model", "wrapper"])
def test_attached_after_compiled_steps_nothing_is_compiled_again(attach_to, model, tmp_path):
    compiled = torch.compile(model, backend=BACKEND)

    def program(watched):
        with ExitStack() as stack:

            def between(step):
                if watched and step == 5:
                    chosen = model if attach_to == "model" else compiled
                    stack.enter_context(gradscope.attach(chosen, tmp_path, every=4, name="late"))

            trained(model, compiled, 20, between=between)

    assert work_of(lambda: program(False)).graphs == 1
    assert work_of(lambda: program(True)) == Work(0, 0, 0)


def test_attached_after_steps_of_a_compiled_function_nothing_is_compiled_again(model, tmp_path):
    compiled = torch.compile(lambda inputs: model(inputs), backend=BACKEND)
    trained(model, compiled, 5)

    def program():
        with gradscope.attach(model, tmp_path, every=4):
            trained(model, compiled, 10)

    assert work_of(program) == Work(0, 0, 0)


def test_the_first_step_of_a_model_is_heard_whatever_else_was_compiled_before(model, tmp_path):
    trained(model, torch.compile(model, backend=BACKEND), 2)
    plain = Classifier()
    with gradscope.attach(plain, tmp_path, every=4):
        trained(plain, plain, 2)
    assert set(names(tmp_path, "activation", frame=0)) >= LAYERS


def test_evaluation_without_gradients_and_other_shapes_are_compiled_as_often_as_ever(model, tmp_path):
    def program():
        compiled = torch.compile(model, backend=BACKEND)

        def between(step):
            if step % 3 == 2:
                model.eval()
                with torch.no_grad():
                    compiled(torch.randn(8 + step, 16))
                model.train()

        trained(model, compiled, 30, between=between)

    bare = work_of(program)
    torch.compiler.reset()
    with gradscope.attach(model, tmp_path, every=4):
        assert work_of(program) == bare


def test_no_warning_of_torch_about_hooks_on_all_modules(model, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with gradscope.attach(model, tmp_path, every=1):
            trained(model, torch.compile(model, backend=BACKEND), 4)


def test_torch_still_warns_of_hooks_of_somebody_else(model, tmp_path):
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with gradscope.attach(model, tmp_path, every=1), pytest.warns(UserWarning, match="global hooks"):
            trained(model, torch.compile(model, backend=BACKEND), 2)
    finally:
        handle.remove()


def stance():
    return torch._dynamo.eval_frame._stance


def test_the_stance_is_put_back_as_it_was(model, tmp_path):
    torch.compiler.set_stance("eager_on_recompile")
    own = stance()
    try:
        model.compile(backend=BACKEND)
        seen = []
        with gradscope.attach(model, tmp_path, every=2):
            trained(model, model, 8, between=lambda step: seen.append(stance()))
        assert [held.stance for held in seen[::2]] == ["force_eager"] * 4
        assert all(held is own for held in seen[1::2])
        assert stance() is own
    finally:
        torch.compiler.set_stance("default")


def test_a_stance_that_the_user_takes_in_a_sampled_step_stays(model, tmp_path):
    model.compile(backend=BACKEND)
    scope = gradscope.attach(model, tmp_path, every=1)
    torch.compiler.set_stance("eager_on_recompile")
    try:
        scope.close()
        assert stance().stance == "eager_on_recompile"
    finally:
        torch.compiler.set_stance("default")


def test_a_stance_that_was_taken_in_a_sampled_step_and_given_back_after_it_does_not_leave_ours(model, tmp_path):
    model.compile(backend=BACKEND)
    with gradscope.attach(model, tmp_path, every=NEVER_AGAIN):
        theirs = torch.compiler.set_stance("eager_on_recompile")
        theirs.__enter__()
    theirs.__exit__(None, None, None)
    with gradscope.attach(nn.Linear(2, 2), tmp_path, name="other"):
        pass
    assert stance().stance == "default"


def test_nothing_is_left_of_the_watch_in_the_compiler(model, tmp_path):
    from torch._dynamo.callback import callback_handler
    from torch._dynamo.eval_frame import OptimizedModule

    before = (OptimizedModule.__call__, list(callback_handler.start_callbacks), stance())
    compiled = torch.compile(model, backend=BACKEND)
    with gradscope.attach(compiled, tmp_path, every=1):
        trained(model, compiled, 3)
        assert OptimizedModule.__call__ is not before[0]
        copied = copy.deepcopy(model)
    assert (OptimizedModule.__call__, callback_handler.start_callbacks, stance()) == before
    assert copied.state_dict().keys() == model.state_dict().keys()


def test_another_compiled_model_is_left_alone_where_the_watched_one_is_not_compiled(model, tmp_path):
    teacher = torch.compile(Classifier(), backend=BACKEND)
    plain = []

    def between(step):
        with torch.no_grad():
            teacher(torch.zeros(2, 16))
        plain.append(stance().stance)

    with gradscope.attach(model, tmp_path, every=1):
        trained(model, model, 6, between=between)
    assert plain == ["default"] * 6
    assert "head" in names(tmp_path, "activation")


def test_a_thread_that_trains_a_compiled_model_of_its_own_learns_the_same(model, tmp_path):
    other = copy.deepcopy(model)
    alone = trained(copy.deepcopy(model), other.forward, 1)
    losses = {}

    def beside():
        twin = copy.deepcopy(other)
        losses["beside"] = trained(twin, torch.compile(twin, backend=BACKEND), 20)

    thread = threading.Thread(target=beside)
    compiled = torch.compile(model, backend=BACKEND)
    with gradscope.attach(model, tmp_path, every=2):
        thread.start()
        losses["watched"] = trained(model, compiled, 20)
        thread.join()
    assert losses["beside"] == pytest.approx(losses["watched"], rel=1e-5)
    assert alone[0] == pytest.approx(losses["watched"][0], rel=1e-5)


def test_the_probe_runs_on_a_compiled_model(model, tmp_path):
    compiled = torch.compile(model, backend=BACKEND)
    with gradscope.attach(compiled, tmp_path, every=1) as scope:
        trained(model, compiled, 6, optimizer=torch.optim.SGD(model.parameters(), lr=30.0))
    assert scope.report().runs[0].diagnosis == "lr-too-high"
    assert read_run(find_runs(tmp_path)[0]).info.probe.startswith("ran at step")


def test_compiled_autograd_goes_on_as_it_did(model, tmp_path):
    def program():
        with torch._dynamo.config.patch(compiled_autograd=True):
            return trained(model, torch.compile(model, backend=BACKEND), 8)

    start = copy.deepcopy(model.state_dict())
    bare = program()
    model.load_state_dict(start)
    torch.compiler.reset()
    with gradscope.attach(model, tmp_path, every=3) as scope:
        assert program() == pytest.approx(bare, rel=1e-5)
    assert scope.report().runs[0].steps == 8
