from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from gradscope.logdir.events import EventWriter
from gradscope.logdir.framing import masked_crc
from tests.logdir.samples import events_in


def _steps(directory):
    return [event.step for event in events_in(directory) if not event.file_version]


@settings(derandomize=True, deadline=None)
@given(st.binary(max_size=300))
def test_checksum_is_tensorboards(data):
    assert masked_crc(data) == masked_crc32c(data)


def test_no_file_before_the_first_record(tmp_path):
    writer = EventWriter(tmp_path / "run")
    writer.close()
    assert not (tmp_path / "run").exists()


def test_each_record_is_on_disk_when_write_returns_and_tensorboard_reads_it(tmp_path):
    writer = EventWriter(tmp_path / "run")
    for step in range(3):
        writer.write(Event(step=step).SerializeToString())
        (path,) = (tmp_path / "run").iterdir()
        events = list(EventFileLoader(str(path)).Load())
        assert events[0].file_version == "brain.Event:2"
        assert [event.step for event in events[1:]] == list(range(step + 1))


def test_file_name_is_one_that_tensorboard_takes_and_says_who_wrote_it(tmp_path):
    before = int(time.time())
    EventWriter(tmp_path).write(Event(step=1).SerializeToString())
    after = int(time.time())
    (path,) = tmp_path.iterdir()
    events, out, tfevents, stamp, *rest = path.name.split(".")
    assert (events, out, tfevents) == ("events", "out", "tfevents")
    assert len(stamp) == 10 and before <= int(stamp) <= after
    assert ".".join(rest) == f"{socket.gethostname()}.{os.getpid()}.0.gradscope"


def test_a_restart_begins_a_new_file_that_comes_last(tmp_path):
    for step in range(12):
        EventWriter(tmp_path).write(Event(step=step).SerializeToString())
    assert len(list(tmp_path.iterdir())) == 12
    assert _steps(tmp_path) == list(range(12))


def test_a_new_file_comes_last_after_the_clock_was_set_back(tmp_path):
    future = f"events.out.tfevents.{int(time.time()) + 10**6}.host.1.0.gradscope"
    (tmp_path / future).touch()
    EventWriter(tmp_path).write(Event(step=1).SerializeToString())
    assert sorted(path.name for path in tmp_path.iterdir())[0] == future


def test_rotation_keeps_every_record_in_order(tmp_path):
    writer = EventWriter(tmp_path, rotate_at=100)
    starts = []
    for step in range(40):
        starts.append(writer.at_start)
        writer.write(Event(step=step, wall_time=1.0).SerializeToString())
    assert _steps(tmp_path) == list(range(40))
    assert sum(starts) == len(list(tmp_path.iterdir())) > 5
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 200


def test_threads_do_not_tear_records(tmp_path):
    writer = EventWriter(tmp_path, rotate_at=2000)

    def work(first: int) -> None:
        for step in range(first, first + 200):
            writer.write(Event(step=step).SerializeToString())

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(_steps(tmp_path)) == [1000 * n + step for n in range(1, 5) for step in range(200)]


def _run(code: str, directory) -> None:
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True, timeout=60)


def test_a_forked_child_is_silent_even_where_a_thread_held_the_lock(tmp_path):
    code = """
import os, sys, threading
from pathlib import Path
from tensorboard.compat.proto.event_pb2 import Event
from gradscope.logdir.events import EventWriter
writer = EventWriter(Path(sys.argv[1]))
writer.write(Event(step=1).SerializeToString())
held, release = threading.Event(), threading.Event()
def hold():
    with writer._lock:
        held.set()
        release.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child == 0:
    writer.write(Event(step=2).SerializeToString())
    writer.close()
    os._exit(0)
release.set()
assert os.waitpid(child, 0)[1] == 0
writer.write(Event(step=3).SerializeToString())
"""
    _run(code, tmp_path)
    assert _steps(tmp_path) == [1, 3]


def test_a_short_write_is_cut_back_and_raised_and_the_file_goes_on(tmp_path):
    code = """
import resource, sys
from pathlib import Path
from tensorboard.compat.proto.event_pb2 import Event
from gradscope.logdir.events import EventWriter
directory = Path(sys.argv[1])
writer = EventWriter(directory)
writer.write(Event(step=1).SerializeToString())
(path,) = directory.iterdir()
whole = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (whole + 20, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        writer.write(Event(step=2, file_version="x" * 100).SerializeToString())
    except OSError as error:
        assert "of" in str(error), error
    else:
        raise AssertionError("a short write passed")
    assert path.stat().st_size == whole
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.write(Event(step=3).SerializeToString())
"""
    _run(code, tmp_path)
    assert _steps(tmp_path) == [1, 3]
