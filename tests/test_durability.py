"""What was captured is on the disk, however the process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import gradscope
from gradscope.capture.sampled import MOST_HELD
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run

ROOT = Path(__file__).parents[1]


SCRIPT = """
import os, signal, sys, multiprocessing
import torch
import gradscope
from tests.models import mlp, regress

model = mlp(4, 8, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scope = gradscope.attach(model, sys.argv[1], every=1)
regress(model, optimizer, steps=20)
{ending}
"""


def run_script(logdir, ending, *, before=""):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = textwrap.dedent(before) + SCRIPT.format(ending=textwrap.dedent(ending))
    command = [sys.executable, "-c", script, str(logdir)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def recorded(logdir):
    (run,) = find_runs(logdir)
    found = read_run(run)
    assert not found.damage
    return found


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("", 0),
        ("raise ValueError('a bug in the loop')", 1),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    ],
    ids=["exit", "exception", "SIGTERM"],
)
def test_an_end_without_close_loses_nothing(tmp_path, ending, code):
    done = run_script(tmp_path, ending)
    assert done.returncode == code, done.stderr
    found = recorded(tmp_path)
    assert len(found.frames) == len(found.pulses) == 20
    assert gradscope.read(tmp_path).runs[0].steps == 20


def test_kill_loses_the_last_frames_and_pulses_at_most(tmp_path):
    waiting = "import gradscope.live as live\nlive.FLUSH_SECONDS = -1.0\n"  # as if two seconds passed at every step
    assert run_script(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", before=waiting).returncode == -signal.SIGKILL
    found = recorded(tmp_path)
    assert len(found.frames) >= 20 - MOST_HELD
    assert len(found.pulses) >= 20 - MOST_HELD


def test_the_users_own_termination_handler_stays(tmp_path):
    before = """
        import signal, sys
        def stop(number, frame):
            print("mine")
            sys.exit(7)
        signal.signal(signal.SIGTERM, stop)
    """
    done = run_script(tmp_path, "os.kill(os.getpid(), signal.SIGTERM)", before=before)
    assert (done.returncode, done.stdout) == (7, "mine\n")
    assert len(recorded(tmp_path).frames) == 20


def test_a_forked_child_writes_nothing_but_what_it_watches_itself(tmp_path):
    ending = """
        def child():
            regress(model, optimizer, steps=5)
            scope.report()
            scope.close()

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        assert process.exitcode == 0
        pid = os.fork()
        if pid == 0:
            regress(model, optimizer, steps=5)
            own = mlp(4, 8, 2)
            gradscope.attach(own, sys.argv[1] + "_child", every=1)
            regress(own, torch.optim.SGD(own.parameters(), lr=0.1), steps=7)
            sys.exit(5)  # with the interpreter's own clearing up
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
        data = torch.utils.data.TensorDataset(torch.randn(16, 4))
        for (x,) in torch.utils.data.DataLoader(data, batch_size=4, num_workers=1):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    """
    done = run_script(tmp_path / "run", ending)
    assert done.returncode == 0, done.stderr
    found = recorded(tmp_path / "run")
    assert [frame.step for frame in found.frames] == list(range(24))
    assert len(list((tmp_path / "run" / "gradscope").iterdir())) == 1
    assert len(recorded(tmp_path / "run_child").pulses) == 7
