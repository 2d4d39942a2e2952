"""Log directories that mean harm, or that a disk or another program has spoilt."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from tensorboard.compat.proto import types_pb2
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

from gradscope.logdir.tags import META
from gradscope.logdir.tags import PULSE
from gradscope.logdir.tags import SCHEMA
from gradscope.logdir.tags import STATS
from gradscope.logdir.tags import digest8
from gradscope.logdir.values import array_value
from gradscope.logdir.values import own_metadata
from gradscope.logdir.values import text_value
from gradscope.records import PULSE_FIELDS
from tests import timelines
from tests.logdir.samples import write_events
from tests.tensorboard import samples

MARKUP = '<img src=x onerror="alert(1)">'
LONG = 300_000  # sites, of which not all are shown
TOO_LONG = 1_000_000  # sites whose names alone are more than is read
SITES = json.dumps({"modules": [{"path": "a", "call": 0}, {"path": "b", "call": 0}]})


def write(folder: Path, values: Iterable[tuple[int, Summary.Value]], *, wall: float = 1e9) -> None:
    """One event for each value, at its step."""
    events = [Event(wall_time=wall + i, step=step, summary=Summary(value=[value])) for i, (step, value) in enumerate(values)]
    write_events(folder / "gradscope" / "events.out.tfevents.1.h.gradscope", events)


def described(value: Summary.Value, content: bytes | None = None) -> Summary.Value:
    """With the metadata that makes it ours."""
    value.metadata.CopyFrom(own_metadata())
    if content is not None:
        value.metadata.plugin_data.content = content
    return value


def schema(text: str) -> Summary.Value:
    return described(text_value(SCHEMA + digest8(text.encode()), text))


def column(numbers: Iterable[float], *, text: str = SITES, name: str = "activation.rms") -> Summary.Value:
    return described(array_value(f"{STATS}{digest8(text.encode())}/{name}", np.array(numbers, dtype=np.float32)))


def markup(folder: Path) -> None:
    """Names of modules, of the model and of what is found, all of them markup."""
    net = timelines.linear(f"{MARKUP}0", 4, 4, activation="relu") + timelines.linear("\u202eevil\x1b[31m\n1", 4, 4)
    timeline = timelines.build(net, columns={"weight_gradient.carried": 1.0}, pulses={"loss": 2.3})
    info = replace(timeline.info, model=MARKUP, notes=(MARKUP,))
    samples.record(folder, timelines.Timeline(info, timeline.frames, samples.pulse_rows(timeline)), report=MARKUP)


def many_names(folder: Path, *, count: int = LONG) -> None:
    text = json.dumps({"modules": [{"path": f"m{i}", "call": 0} for i in range(count)]}, separators=(",", ":"))
    rows = [column(np.full(count, step + 1.0), text=text) for step in range(3)]
    write(folder, [(0, schema(text)), *enumerate(rows)])


def too_many_names(folder: Path) -> None:
    many_names(folder, count=TOO_LONG)


def absurd_shapes(folder: Path) -> None:
    """Vectors that claim to be larger than any memory, negative, of another type or of no elements."""
    shapes = [(2**50,), (-1,), (2**31, 2**31, 2**31), (1,) * 100, (0,), ()]
    values = [column([1.0, 2.0])]
    for shape in shapes:
        value = column([1.0, 2.0])
        value.tensor.tensor_shape.CopyFrom(_shape(shape))
        values.append(value)
        values.append(described(Summary.Value(tag=value.tag, tensor=_single(shape))))
    write(folder, [(0, schema(SITES)), *enumerate(values)])


def wrong_columns(folder: Path) -> None:
    """Sound tensors that are not what their tags say."""
    good = [(step, column([1.0, 2.0])) for step in (0, 2, 4)]
    bad = [column([1.0]), column([[1.0, 2.0]]), column(np.zeros(100_000)), text_value(column([1.0]).tag, "no numbers")]
    odd = [
        described(array_value(f"{STATS}{tag}", np.zeros(2, dtype=np.float32)))
        for tag in (
            "",
            "/",
            "////",
            "deadbeef/activation.rms",
            f"deadbeef/{MARKUP}",
            f"{digest8(SITES.encode())}/activation.{MARKUP}",
        )
    ]
    write(
        folder,
        [(0, schema(SITES)), *good, *((step, value) for step, value in enumerate(bad, 5)), *((0, value) for value in odd)],
    )


def negative_steps(folder: Path) -> None:
    steps = (-1, -(2**62), 3, 2**62, 5)
    write(folder, [(0, schema(SITES)), *((step, column([1.0, step])) for step in steps)])


def not_a_number(folder: Path) -> None:
    samples.record(folder, timelines.poisoned(math.nan))


def no_clock(folder: Path) -> None:
    write(folder, [(0, schema(SITES)), *((step, column([1.0, 2.0])) for step in range(3))], wall=math.nan)


def bad_texts(folder: Path) -> None:
    """Descriptions that are no JSON, or JSON of something else, or nested beyond reason; metadata alike."""
    texts = ["{", "[" * 100_000, "null", "[1,2]", '{"name":1e999}', "\x00", ""]
    values = [described(text_value(META, text)) for text in texts]
    values += [described(text_value(f"{SCHEMA}{i:08x}", text), b"[" * 100_000) for i, text in enumerate(texts)]
    values += [described(text_value(SCHEMA + digest8(text.encode()), text), b"\xff") for text in texts]
    write(folder, [(0, value) for value in values])


def bad_pulses(folder: Path) -> None:
    rows = np.zeros((6, len(PULSE_FIELDS)))
    rows[:, 0] = [0, math.nan, math.inf, -1, 2**60, 3]
    blocks = [rows, rows[:, :3], rows[0], rows.astype(np.float32), np.zeros((0, len(PULSE_FIELDS)))]
    write(folder, [(step, described(array_value(PULSE, block))) for step, block in enumerate(blocks)])


def newer(folder: Path) -> None:
    write(folder, [(0, described(text_value(META, "{}"), b'{"version": 99}'))])


def damaged(folder: Path) -> None:
    """A sound run with bytes overwritten in the midst, and its end cut off."""
    samples.record(folder, samples.ramp())
    (path,) = (folder / "gradscope").iterdir()
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(range(200))
    path.write_bytes(content[:-300])


def empty(folder: Path) -> None:
    write(folder, [])


LOGDIRS: Mapping[str, Callable[[Path], None]] = {
    made.__name__: made
    for made in (
        markup, many_names, too_many_names, absurd_shapes, wrong_columns, negative_steps, not_a_number, no_clock, bad_texts,
        bad_pulses, newer, damaged, empty,
    )
}  # fmt: skip


def _shape(sizes: Iterable[int]) -> TensorShapeProto:
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in sizes])


def _single(sizes: Iterable[int]) -> TensorProto:
    """One number that is to fill a whole shape."""
    return TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=_shape(sizes), float_val=[1.0])
