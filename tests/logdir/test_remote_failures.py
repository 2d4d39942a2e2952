"""A store that is slow, fails, vanishes or is busy when the training ends: nothing is lost, and the training is the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import gradscope
from gradscope.cli import main
from gradscope.logdir.address import Address
from gradscope.logdir.errors import LogdirError
from gradscope.logdir.events import EventWriter
from gradscope.logdir.names import origin
from gradscope.logdir.names import record_name
from gradscope.logdir.pieces import JOURNAL
from gradscope.logdir.pieces import left_behind
from gradscope.logdir.shipment import Shipment
from gradscope.logdir.shipping import Pace
from gradscope.report import jsonreport
from tests.logdir.stores import KEY
from tests.logdir.stores import SECRET
from tests.models import mlp
from tests.models import regress

ROOT = Path(__file__).parents[2]
QUICK = Pace(first=0.05, retry=0.05, retry_most=0.2)
LONG = 60  # seconds until what must happen has


def until(condition):
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def warned(caught, slug):
    texts = [str(warning.message) for warning in caught if issubclass(warning.category, gradscope.GradscopeWarning)]
    assert all(text.endswith(f"[gradscope:{slug}]") for text in texts), texts
    assert not any(secret in text for text in texts for secret in (KEY, SECRET))
    return texts


@contextlib.contextmanager
def caught():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", gradscope.GradscopeWarning)
        yield found


def on_disk(directory):
    """What is recorded there, in the order of the names."""
    return b"".join(path.read_bytes() for path in sorted(directory.glob("*tfevents*")))


class Shipped:
    """Records that are written and shipped, without a training."""

    def __init__(self, store):
        self.remote = Address(store.address)
        self.logdir = self.remote.mirror.absolute()
        self.directory = self.logdir / "gradscope"
        self.writer = EventWriter(self.directory)
        self.shipment = Shipment(self.directory, self.remote / "gradscope", logdir=self.logdir, remote=self.remote, pace=QUICK)

    def write(self, count=20):
        for number in range(count):
            self.writer.write(bytes([number]) * 1000)


@pytest.fixture
def shipped(store):
    shipped = Shipped(store)
    yield shipped
    if shipped.shipment.pid is not None:
        os.kill(shipped.shipment.pid, signal.SIGKILL)
        with caught():
            shipped.shipment.finish(1)


@pytest.mark.parametrize("state", ["reset", "gone", 500, 503])
def test_a_store_that_fails_in_the_midst_and_comes_back_has_all_in_order(store, shipped, state):
    shipped.write()
    until(lambda: store.record() == on_disk(shipped.directory))
    store.line.become(state)
    with caught() as found:
        shipped.write()

        def noticed():
            shipped.shipment.look()
            return found

        until(noticed)
        store.line.become("well")
        shipped.write()
        until(lambda: store.record() == on_disk(shipped.directory))
        shipped.shipment.look()
        shipped.shipment.finish()
    (text,) = warned(found, "remote-failing")
    assert str(shipped.logdir) in text and store.address in text


def test_what_is_recorded_is_in_the_store_while_the_training_goes_on(store, shipped):
    for rounds in range(3):
        shipped.write()
        until(lambda: store.record() == on_disk(shipped.directory))
        assert len(store.listed()) > rounds
    assert {record_name(key) for key in store.listed()} == {record_name(store.listed()[0])}


def test_a_store_that_hangs_is_waited_for_with_a_bound_and_can_be_given_the_rest_later(store, shipped):
    shipped.write()
    until(lambda: store.record() == on_disk(shipped.directory))
    store.line.become("hang")
    shipped.write()
    until(lambda: store.line.refused)
    process = shipped.shipment.pid
    with caught() as found:
        shipped.shipment.finish(0.5)
    (text,) = warned(found, "remote-unshipped")
    command = f"gradscope ship {shipped.logdir} {store.address}"
    assert f"`{command}`" in text
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert store.record() != on_disk(shipped.directory)

    store.line.become("gone")
    done = CliRunner().invoke(main, command.split()[1:])
    assert done.exit_code == 2 and "cannot be reached" in done.stderr
    store.line.become("well")
    done = CliRunner().invoke(main, command.split()[1:])
    assert done.exit_code == 0, done.stderr
    assert store.record() == on_disk(shipped.directory)
    assert CliRunner().invoke(main, command.split()[1:]).stdout == f"0 bytes were shipped to {store.address}.\n"


def test_what_somebody_removed_from_the_store_is_shipped_again_when_it_is_asked_for(store, shipped):
    shipped.write()
    shipped.shipment.finish()
    arguments = ["ship", str(shipped.logdir), f"s3://{store.bucket}/elsewhere"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert len([key for key in store.listed() if key.startswith("elsewhere/")]) == 1
    journal = shipped.directory / JOURNAL
    journal.write_text(journal.read_text().replace("elsewhere", "nowhere"))
    done = CliRunner().invoke(main, ["ship", str(shipped.logdir), f"s3://{store.bucket}/nowhere"])
    assert done.exit_code == 0 and len([key for key in store.listed() if key.startswith("nowhere/")]) == 1


def run(steps=20, logdir=None):
    """The state after a training; watched where there is a logdir."""
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scope = None if logdir is None else gradscope.attach(model, logdir, every=1)
    regress(model, optimizer, steps=steps)
    if scope is not None:
        scope._archive.shipped(0.5)  # what close() does, but does not wait as long for
        scope.close()
    return [tensor.clone() for tensor in (*model.parameters(), torch.get_rng_state())]


@pytest.mark.parametrize("state", ["well", "hang", 503])
def test_training_is_bit_identical_whatever_the_store_does(store, state):
    store.line.become(state)
    bare = run()
    with caught() as found:
        watched = run(logdir=store.address)
    assert all(torch.equal(one, other) for one, other in zip(bare, watched, strict=True))
    assert all(
        slug in ("remote-failing", "remote-unshipped") for slug in (str(w.message)[:-1].rpartition(":")[2] for w in found)
    )
    mirror = Address(store.address).mirror
    assert gradscope.read(mirror).runs[0].steps == 20
    for path in mirror.rglob("*"):
        assert path.is_dir() or not any(secret.encode() in path.read_bytes() for secret in (KEY, SECRET))


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


def run_script(store, ending, *, before=""):
    """Runs the script, which ends as ``ending`` says."""
    script = textwrap.dedent(before) + SCRIPT.format(ending=textwrap.dedent(ending))
    command = [sys.executable, "-c", script, store.address]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert SECRET not in done.stderr and KEY not in done.stderr
    return done


FORK = """
def child():
    regress(model, optimizer, steps=5)
    scope.close()

for _ in range(2):
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("", 0),
        ("raise ValueError('a bug in the loop')", 1),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        (FORK, 0),
    ],
    ids=["exit", "exception", "SIGTERM", "SIGKILL", "fork"],
)
def test_however_the_process_ends_what_it_recorded_gets_to_the_store(store, ending, code):
    done = run_script(store, ending)
    assert done.returncode == code, done.stderr
    mirror = Address(store.address).mirror
    if code == -signal.SIGKILL:
        until(lambda: left_behind(Address(store.address)) is None)  # the shipper outlives what it ships for
    assert store.record() == on_disk(mirror / "gradscope") != b""
    assert len({origin(path.name) for path in (mirror / "gradscope").glob("*tfevents*")}) == 1
    assert left_behind(Address(store.address)) is None


@pytest.mark.parametrize(("state", "ending"), [("well", ""), ("hang", "scope._archive.shipped(0.5)\n")])
def test_training_itself_speaks_to_no_store(store, state, ending):
    """Neither where it answers nor where it hangs: it is another process that waits for it."""
    listening = """
    import sys
    spoken = []
    sys.addaudithook(lambda event, _: spoken.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
    """
    store.line.become(state)
    done = run_script(store, f"{ending}scope.close()\nassert not spoken, spoken", before=listening)
    assert done.returncode == 0, done.stderr
    assert ("remote-unshipped" in done.stderr) == (state == "hang")


def test_a_store_that_is_gone_at_the_end_costs_seconds_and_one_warning(store):
    store.line.become("gone")
    done = run_script(store, "", before="import gradscope.logdir.shipment as shipment\nshipment.FAILING_SECONDS = 1.0\n")
    assert done.returncode == 0
    assert done.stderr.count("[gradscope:remote-unshipped]") == 1
    assert f"gradscope ship {Address(store.address).mirror.absolute()} {store.address}" in done.stderr


def test_what_a_killed_training_left_is_told_of_and_goes_with_the_next_one(store):
    """Where its shipping process is killed too, as with a whole container."""
    ending = "os.kill(scope._archive._shipment.pid, signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)"
    store.line.become("gone")
    assert run_script(store, ending).returncode == -signal.SIGKILL
    store.line.become("well")
    mirror = Address(store.address).mirror
    with pytest.raises(LogdirError, match=f"gradscope ship {mirror} {store.address}"):
        gradscope.read(store.address)

    assert run_script(store, "").returncode == 0
    assert store.record() == on_disk(mirror / "gradscope")
    report = gradscope.read(store.address)
    assert report.unread == ()
    assert json.loads(jsonreport.render(report.runs))["runs"][0]["steps"] == 20
