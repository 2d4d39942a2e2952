"""What can happen to an event file, and what can be put into one to harm whoever reads it."""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboard.compat.proto import types_pb2
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

from gradscope.logdir.framing import framed
from gradscope.logdir.framing import masked_crc
from gradscope.logdir.recorder import Recorder
from gradscope.logdir.tags import META
from gradscope.logdir.tags import PULSE
from gradscope.logdir.tags import SCHEMA
from gradscope.logdir.tags import STATS
from gradscope.logdir.tags import digest8
from gradscope.logdir.values import array_value
from gradscope.logdir.values import own_metadata
from gradscope.logdir.values import text_value
from gradscope.logdir.wire import as_varint
from gradscope.records import Frame
from gradscope.records import Schema
from gradscope.records import Site
from tests.logdir import samples

NAME = "events.out.tfevents.1700000000.h.1.0.gradscope"
LATE = "events.out.tfevents.9900000000.h.1.0.gradscope"
SMALL = Schema(modules=(Site("a"),), parameters=(Site("a.weight"),))


def small(step: int) -> Frame:
    return Frame(step, SMALL, {"weight.norm": np.float32([step + 1]), "activation.rms": np.float32([0.5])})


def small_file(folder: Path, steps: int = 6) -> Path:
    """A file of frames and pulses, of some two thousand bytes."""
    recorder = Recorder(folder)
    recorder.info(samples.INFO)
    for step in range(steps):
        recorder.frame(small(step), {})
    recorder.pulses(samples.pulses(range(steps)))
    recorder.close()
    (path,) = folder.iterdir()
    return path


def header(length: int) -> bytes:
    encoded = struct.pack("<Q", length)
    return encoded + struct.pack("<I", masked_crc(encoded))


def wrong(payload: bytes) -> bytes:
    """A record whose payload is not what its checksum says."""
    return framed(payload)[:-1] + bytes([framed(payload)[-1] ^ 1])


# -- records that would become much more than they are


def claims(length: int) -> Iterator[bytes]:
    yield header(length) + bytes(64)


def many_values(count: int = 3_000_000) -> Iterator[bytes]:
    """An event of values of two bytes each, of which parsing makes a hundred."""
    summary = bytes((0x0A, 0)) * count
    yield framed(bytes((0x2A,)) + as_varint(len(summary)) + summary)


def many_dimensions(count: int = 100_000) -> Iterator[bytes]:
    """Within what is parsed, and the product of all sizes has millions of digits."""
    dims = [TensorShapeProto.Dim(size=2**62)] * count
    yield _event(_tensor(f"{STATS}00000000/weight.norm", dims, bytes(8)))


def too_many_dimensions(count: int = 2_000_000) -> Iterator[bytes]:
    shape = bytes((0x12, 0)) * count
    yield framed(_nested((0x2A, 0x0A, 0x42, 0x12), shape))


def packed_integers(count: int = 20_000_000) -> Iterator[bytes]:
    """Of a byte each, which become eight."""
    yield framed(_nested((0x2A, 0x0A, 0x42, 0x52), bytes(count)))


def long_name(count: int = 20_000_000) -> Iterator[bytes]:
    """A tag of nothing but slashes, and one of nothing but words."""
    yield _event(_tensor(STATS + "/" * count, [], b""))
    yield _event(Summary.Value(tag="loss " * (count // 10), simple_value=1.0))


def long_text(count: int = 8_000_000) -> Iterator[bytes]:
    """JSON of empty lists."""
    yield _event(text_value(META, "[" + "[]," * count + "[]]"))


def long_metadata(count: int = 20_000_000) -> Iterator[bytes]:
    value = _tensor(PULSE, [], b"")
    value.metadata.CopyFrom(own_metadata())
    value.metadata.plugin_data.content = b'{"version":' + b"[" * count
    yield _event(value)


def nested_fields() -> Iterator[bytes]:
    """Fields of the pulses whose names are no names."""
    value = array_value(PULSE, np.zeros((1, 2)))
    value.metadata.CopyFrom(own_metadata())
    value.metadata.plugin_data.content = b'{"fields":["step",' + b"[" * 900 + b"]" * 900 + b"]}"
    yield _event(value)


def wide_tables(sites: int = 150_000, frames: int = 500) -> Iterator[bytes]:
    """Frames of a few bytes, whose list of sites makes a row of 150,000 numbers of each."""
    text = json.dumps({"modules": [{"path": f"m{i}"} for i in range(sites)]}, separators=(",", ":"))
    yield _event(text_value(SCHEMA + digest8(text.encode()), text))
    for step in range(frames):
        yield _event(array_value(f"{STATS}{digest8(text.encode())}/weight.norm", np.zeros(0, dtype=np.float32)), step=step)


def many_lists_of_sites(count: int = 40, sites: int = 60_000) -> Iterator[bytes]:
    for number in range(count):
        text = json.dumps({"modules": [{"path": f"{number}.{i}"} for i in range(sites)]}, separators=(",", ":"))
        yield _event(text_value(SCHEMA + digest8(text.encode()), text))


def many_layouts(count: int = 4000) -> Iterator[bytes]:
    """Every frame over another list of sites."""
    for step in range(count):
        yield _event(array_value(f"{STATS}{step:08x}/weight.norm", np.zeros(1, dtype=np.float32)), step=step)


def overlapping_claims(count: int = 250_000) -> Iterator[bytes]:
    """A header every twelve bytes, each of which claims two thirds of the file and is wrong."""
    yield header(8 * count) * count


def wrong_records(count: int = 40_000) -> Iterator[bytes]:
    yield wrong(b"x") * count


def falling_steps(count: int = 4000) -> Iterator[bytes]:
    for step in range(count, 0, -1):
        yield _event(array_value(f"{STATS}00000000/weight.norm", np.zeros(1, dtype=np.float32)), step=step)


BOMBS: Mapping[str, Callable[[], Iterator[bytes]]] = {
    "claims 4 GB": lambda: claims(2**32),
    "claims 256 MB": lambda: claims(2**28),
    **{
        made.__name__.replace("_", " "): made
        for made in (
            many_values, many_dimensions, too_many_dimensions, packed_integers, long_name, long_text, long_metadata,
            nested_fields, wide_tables, many_lists_of_sites, many_layouts, overlapping_claims, wrong_records, falling_steps,
        )
    },
}  # fmt: skip


def plant(folder: Path, name: str) -> Path:
    """A bomb in a file of its own, beside a sound one that comes before it."""
    small_file(folder)
    path = folder / LATE
    with path.open("wb") as file:
        file.writelines(BOMBS[name]())
    return path


# -- places where a file is expected


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def endless_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def terminal_device(path: Path) -> None:
    path.symlink_to("/dev/tty")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("absent"))


NO_FILES: Mapping[str, Callable[[Path], None]] = {
    made.__name__.replace("_", " "): made
    for made in (pipe, unix_socket, endless_device, terminal_device, link_to_itself, link_to_nothing)
}


def _event(value: Summary.Value, *, step: int = 0) -> bytes:
    return framed(Event(wall_time=1.0, step=step, summary=Summary(value=[value])).SerializeToString())


def _tensor(tag: str, dims: list[TensorShapeProto.Dim], content: bytes) -> Summary.Value:
    tensor = TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=TensorShapeProto(dim=dims), tensor_content=content)
    return Summary.Value(tag=tag, tensor=tensor)


def _nested(keys: tuple[int, ...], content: bytes) -> bytes:
    for key in reversed(keys):
        content = bytes((key,)) + as_varint(len(content)) + content
    return content
