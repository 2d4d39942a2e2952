"""What watching must never do: change the training, leave hooks, keep memory, wait for the device."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import random
import signal
import subprocess
import sys
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradscope
from gradscope.capture.steps import LOOP
from gradscope.exits import EXITS
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run
from tests.capture.watching import watching
from tests.models import KINDS
from tests.models import mlp
from tests.models import regress

MODULE_HOOKS = torch.nn.modules.module
OPTIMIZER_HOOKS = sys.modules["torch.optim.optimizer"]


# -- the training stays the same


def train(kind, logdir=None, *, steps=30, **options):
    """Train from a fixed seed; everything that the training leaves behind."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    make, batch, loss_of = KINDS[kind]
    model = make()
    scope = gradscope.attach(model, logdir, **options) if logdir is not None else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, batch())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    frames = 0
    if scope is not None:
        frames = scope.report().runs[0].sampled_steps
        scope.close()
    state = {**model.state_dict(), **{f"grad {name}": p.grad for name, p in model.named_parameters()}}
    randomness = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    return frames, losses, state, optimizer.state_dict()["state"], randomness


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_bit_identical_with_and_without(tmp_path, kind):
    bare = train(kind)
    for name, options in (("every", {"every": 1}), ("budget", {})):
        watched = train(kind, tmp_path / name, **options)
        assert watched[0] == 30 if name == "every" else watched[0] >= 8
        assert watched[1] == bare[1]
        for key in bare[2]:
            assert torch.equal(watched[2][key], bare[2][key]), (key, name)
        for key, values in bare[3].items():
            assert all(torch.equal(watched[3][key][part], values[part]) for part in values), (key, name)
        assert watched[4] == bare[4]


def test_what_is_imported_on_the_way_draws_no_random_number(tmp_path):
    code = """
import random, sys
import torch
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
optimizer = torch.optim.Adam(model.parameters())
before = random.getstate()
import gradscope
scope = gradscope.attach(model, sys.argv[1])
for _ in range(3):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()
str(scope.report())
scope.close()
assert random.getstate() == before
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


# -- nothing is left


def global_hooks():
    parts = [value for name, value in vars(MODULE_HOOKS).items() if name.startswith("_global_") and name.endswith("hooks")]
    parts += [OPTIMIZER_HOOKS._global_optimizer_pre_hooks, OPTIMIZER_HOOKS._global_optimizer_post_hooks]
    return [dict(part) for part in parts]


def own_hooks(model):
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    found = [getattr(module, name) for module in model.modules() for name in names]
    return [hook for part in found for hook in part] + [p._backward_hooks for p in model.parameters() if p._backward_hooks]


def test_nothing_is_left_after_closing(tmp_path):
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = (global_hooks(), torch.autograd.backward, signal.getsignal(signal.SIGTERM), EXITS.directories())
    scopes = [gradscope.attach(model, tmp_path, every=1), gradscope.attach(mlp(2, 2), tmp_path)]
    assert global_hooks() != before[0]
    assert torch.autograd.backward is not before[1]
    regress(model, optimizer, steps=3)
    assert not own_hooks(model)  # all hooks are global ones and on outputs
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    for scope in scopes:
        scope.close()
    assert (global_hooks(), torch.autograd.backward, signal.getsignal(signal.SIGTERM), EXITS.directories()) == before
    assert not LOOP.listeners
    assert not own_hooks(model)


def test_an_output_that_outlives_the_scope_goes_on_without_it(tmp_path):
    model = mlp(4, 8, 2)
    with gradscope.attach(model, tmp_path, every=1):
        out = model(torch.ones(3, 4))
    out.square().mean().backward()
    assert model[0].weight.grad is not None


def test_a_wrapper_of_backward_that_came_later_stays(tmp_path, monkeypatch):
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = []
    monkeypatch.setattr(torch.autograd, "backward", torch.autograd.backward)  # restores it at the end
    first = gradscope.attach(model, tmp_path / "first", every=1)
    inner = torch.autograd.backward

    def theirs(tensors, *args, **kwargs):
        calls.append(tensors)
        return inner(tensors, *args, **kwargs)

    torch.autograd.backward = theirs
    regress(model, optimizer, steps=2)
    first.close()
    assert torch.autograd.backward is theirs
    with gradscope.attach(model, tmp_path / "second", every=1):
        regress(model, optimizer, steps=3)
    assert torch.autograd.backward is theirs
    assert len(calls) == 5
    (run,) = find_runs(tmp_path / "second")
    assert read_run(run).pulses[:, 6].tolist() == [1, 1, 1]  # backward calls: each was counted once


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: torch.load(_saved(model), weights_only=False),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_work_while_attached_and_carry_nothing(tmp_path, copied):
    model = KINDS["resnet"][0]()
    with gradscope.attach(model, tmp_path, every=1) as scope, warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        nn.functional.cross_entropy(
            model(torch.randn(2, 3, 8, 8)), torch.tensor([0, 1])
        ).backward()  # mid-step, with hooks in place
        twin = copied(model)
        copy.deepcopy(optimizer.state_dict())
        optimizer.step()
        seen = len(scope._watch._modules.slots)
        twin(torch.randn(2, 3, 8, 8)).sum().backward()
        torch.optim.SGD(twin.parameters(), lr=0.1).step()
        assert not own_hooks(twin)
        assert len(scope._watch._modules.slots) == seen
        assert scope.report().runs[0].steps == 1
    assert list(twin.state_dict()) == list(model.state_dict())


def test_outputs_can_be_saved_while_attached(tmp_path):
    model = mlp(4, 8, 2)
    with gradscope.attach(model, tmp_path, every=1), warnings.catch_warnings():
        warnings.simplefilter("error")
        out = model(torch.ones(3, 4))
        assert torch.equal(torch.load(_saved(out)), out)
        assert torch.equal(copy.deepcopy(out.detach()), out)


def _saved(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return buffer


# -- memory


def live_tensors():
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_memory_does_not_grow_with_the_steps(tmp_path):
    model = KINDS["gpt"][0]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    outputs = []
    with gradscope.attach(model, tmp_path, every=1) as scope:

        def run(steps):
            for _ in range(steps):
                optimizer.zero_grad()
                logits = model(torch.randint(17, (2, 6)))
                outputs.append(weakref.ref(logits))
                logits.square().mean().backward()
                optimizer.step()

        run(30)
        scope.report()
        tensors, objects = live_tensors(), len(gc.get_objects())
        run(270)
        scope.report()
        assert live_tensors() <= tensors  # other tests may leave some that go meanwhile
        assert sum(ref() is not None for ref in outputs) <= 1  # the loop's own last one
        columns = len(scope._archive.frames[-1].columns)
        # A frame holds its columns and its histograms; what else may grow is a constant.
        assert len(gc.get_objects()) - objects < 270 * (columns + 12) + 3000


@pytest.mark.parametrize("closed", [True, False])
def test_a_deleted_model_is_freed_with_its_parameters_and_closes_its_scope(tmp_path, closed):
    model = mlp(4, 8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = gradscope.attach(model, tmp_path, every=1)
    regress(model, optimizer, steps=3)
    held = [weakref.ref(model), weakref.ref(model[0]), weakref.ref(model[0].weight)]
    if closed:
        scope.close()
    del model, optimizer
    gc.collect()
    assert [ref() for ref in held] == [None] * 3
    assert not LOOP.listeners
    assert scope.report().runs[0].steps == 3
    assert gradscope.read(tmp_path).runs[0].steps == 3


def test_a_scope_that_nobody_holds_goes_on_watching(tmp_path):
    model = mlp(4, 8, 2)
    gradscope.attach(model, tmp_path, every=1)
    gc.collect()
    regress(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=4)
    del model
    gc.collect()
    assert gradscope.read(tmp_path).runs[0].steps == 4


# -- waiting for the device


class Operations(TorchDispatchMode):
    """Notes every operation of torch while gradscope's own code is on the stack."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        frame = sys._getframe()
        while frame is not None:
            if "gradscope/capture/" in frame.f_code.co_filename:
                if frame.f_code.co_name not in ON_THE_HOST:
                    self.found.append(func.overloadpacket._qualified_op_name)
                break
            frame = frame.f_back
        return func(*args, **(kwargs or {}))


# They read a number only once it is known to be on the host, and make a step on a few elements only where all are there.
ON_THE_HOST = ("number_at_hand", "step_on")

# Each makes the host wait for an accelerator: it needs a value, or a size that depends on values.
WAITING = {
    "aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::is_nonzero", "aten::nonzero", "aten::masked_select",
    "aten::unique_dim", "aten::_unique2", "aten::bincount", "aten::repeat_interleave", "aten::allclose",
}  # fmt: skip
ON_THE_CPU_ONLY = {"aten::bincount", "aten::equal"}  # short cuts that the code takes only where tensors lie on the CPU


@pytest.mark.parametrize("kind", KINDS)
def test_no_operation_of_a_sampled_step_needs_a_value(kind):
    """On the CPU nothing can wait, so this counts the operations that would wait on an accelerator.

    It shows that hooks, backward and step issue none, and no copy to another device. It cannot show that a copy to the host
    is asynchronous there (see the test below, for a machine with CUDA), and it leaves out the first step, which looks once
    whether each parameter is all zero, and which is replayed where it looks suspicious.
    """
    torch.manual_seed(0)
    make, batch, loss_of = KINDS[kind]
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    noted = Operations()
    with watching(model) as seen:
        for step in range(4):
            data = batch()
            if step == 1:
                noted.__enter__()
            optimizer.zero_grad()
            loss_of(model, data).backward()
            optimizer.step()
        noted.__exit__(None, None, None)
    assert len(seen.frames) == 4
    assert "aten::index_select" in noted.found  # the note works
    assert WAITING & set(noted.found) <= ON_THE_CPU_ONLY


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_waits_for_a_cuda_device(tmp_path, kind):
    make, batch, loss_of = KINDS[kind]
    with torch.device("cuda"):
        model = make()
        data = batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watching(model) as seen:
        for step in range(8):
            if step == 1:
                torch.cuda.set_sync_debug_mode("error")
            optimizer.zero_grad()
            loss_of(model, data).backward()
            optimizer.step()
        torch.cuda.set_sync_debug_mode("default")
    assert len(seen.frames) == 8
    assert all(np.isfinite(frame.columns["activation.rms"]).all() for frame in seen.frames)
