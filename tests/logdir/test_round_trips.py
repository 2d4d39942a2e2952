"""Whatever a run tells the recorder, in whatever order, the reader gives back."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import Phase
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from gradscope import replay
from gradscope.logdir.recorder import Recorder
from gradscope.logdir.runs import RunDirectory
from gradscope.logdir.runs import read_run
from gradscope.logdir.tags import REPORT
from gradscope.logdir.values import scalar_of
from gradscope.logdir.values import text_of
from gradscope.records import HISTOGRAM_BINS
from gradscope.records import PULSE_FIELDS
from gradscope.records import STATISTICS
from gradscope.records import Frame
from gradscope.records import ModuleInfo
from gradscope.records import OptimizerInfo
from gradscope.records import ParameterInfo
from gradscope.records import RunInfo
from gradscope.records import Schema
from gradscope.records import Site
from tests.logdir.samples import assert_same_frame
from tests.logdir.samples import events_in

NAMES = st.text(max_size=12) | st.sampled_from(
    ["", "layers.0", "../../x", "/etc/x", "a\x1b[31m\n", "\u202eb", "ü.重み.🙂", "a|`<b>"]
)
FLOATS = st.floats(allow_nan=False)  # NaN is no equal of itself; columns and pulses have it
NUMBERS = st.floats(width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45])
STEPS = st.integers(0, 40) | st.integers(0, 2**40)
COLUMNS = [(kind, name) for kind, names in STATISTICS.items() for name in names]
HISTOGRAM_KINDS = ("activation", "activation_gradient", "weight_gradient")


@st.composite
def schemas(draw) -> Schema:
    def sites():
        found = draw(st.lists(st.builds(Site, NAMES, st.integers(0, 3)), max_size=4, unique=True))
        return tuple(found)

    return Schema(sites(), sites(), sites(), sites(), sites())


def infos() -> st.SearchStrategy[RunInfo]:
    modules = st.builds(
        ModuleInfo, NAMES, NAMES, NAMES, st.lists(NAMES, max_size=2).map(tuple), st.none() | NAMES, st.booleans()
    )
    shapes = st.lists(st.integers(0, 2**62), max_size=3).map(tuple)
    parameters = st.builds(ParameterInfo, NAMES, NAMES, shapes, NAMES, st.booleans(), st.booleans())
    optimizers = st.from_type(OptimizerInfo).filter(lambda found: found == found)
    return st.builds(
        RunInfo,
        name=NAMES,
        model=NAMES,
        modules=st.lists(modules, max_size=2).map(tuple),
        parameters=st.lists(parameters, max_size=2).map(tuple),
        optimizers=st.lists(optimizers, max_size=1).map(tuple),
        versions=st.dictionaries(NAMES, NAMES, max_size=2),
        started=FLOATS,
        every=st.none() | st.integers(),
        select=st.none() | st.lists(NAMES, max_size=2).map(tuple),
        ranks=st.integers(),
        notes=st.lists(NAMES, max_size=2).map(tuple),
    )


@st.composite
def frames(draw, of, told) -> Frame:
    schema = draw(st.sampled_from(of))
    columns = {}
    for kind, name in draw(st.lists(st.sampled_from(COLUMNS), unique=True, max_size=5)):
        size = len(schema.sites(kind))
        columns[f"{kind}.{name}"] = np.array(draw(st.lists(NUMBERS, min_size=size, max_size=size)), dtype=np.float32)
    histograms = {}
    if columns:
        for kind in draw(st.lists(st.sampled_from(HISTOGRAM_KINDS), unique=True, max_size=2)):
            values = draw(st.lists(NUMBERS, min_size=1, max_size=4))
            histograms[kind] = np.resize(np.clip(np.float32(values), -60000, 60000), (len(schema.sites(kind)), HISTOGRAM_BINS))
    return Frame(told.step(draw(STEPS)), schema, columns, histograms)


@st.composite
def pulse_rows(draw, told) -> np.ndarray:
    steps = [told.step(drawn) for drawn in draw(st.lists(STEPS, max_size=4))]
    rows = np.array([draw(st.lists(st.floats(), min_size=len(PULSE_FIELDS), max_size=len(PULSE_FIELDS))) for _ in steps])
    rows = rows.reshape(-1, len(PULSE_FIELDS))
    rows[:, PULSE_FIELDS.index("step")] = steps
    rows[:, PULSE_FIELDS.index("foreign")] = draw(st.sampled_from([0.0, 1.0]))
    return rows


@dataclass
class Told:
    """What a recorder was told, as it has to come back: a later record of a step counts."""

    info: RunInfo | None = None
    frames: dict[int, Frame] = field(default_factory=dict)
    pulses: dict[tuple[float, float], np.ndarray] = field(default_factory=dict)
    scalars: list[tuple[str, int, float]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rising: bool = False  # a new file that goes back to an earlier step takes the place of what was after it
    next_step: int = 0

    def step(self, drawn: int) -> int:
        if not self.rising:
            return drawn
        self.next_step += 1 + drawn % 1000
        return self.next_step


def tell(recorder: Recorder, told: Told, draw, schemas_there) -> None:
    kind = draw(st.sampled_from(["info", "frame", "frame", "frame", "pulses", "pulses", "scalars", "text"]))
    if kind == "info":
        told.info = draw(infos())
        recorder.info(told.info)
    elif kind == "frame":
        frame = draw(frames(schemas_there, told))
        recorder.frame(frame, {})
        if frame.columns:
            told.frames[frame.step] = frame
    elif kind == "pulses":
        rows = draw(pulse_rows(told))
        recorder.pulses(rows)
        told.pulses.update({(row[0], row[PULSE_FIELDS.index("foreign")]): row for row in rows})
    elif kind == "scalars":
        name, step, number = f"gradscope/observed/{draw(NAMES)}", draw(STEPS), draw(NUMBERS)
        recorder.scalars(step, {name: number})
        told.scalars.append((name.encode("utf-8", "replace").decode(), step, number))
    else:
        told.texts.append(draw(st.text(max_size=40)))
        recorder.text(told.texts[-1], draw(STEPS))


@settings(max_examples=100, derandomize=True, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(st.data())
def test_records_of_every_kind_come_back_in_any_order_and_with_any_contents(data):
    told = Told(rising=data.draw(st.booleans()))
    there = data.draw(st.lists(schemas(), min_size=1, max_size=3))
    with TemporaryDirectory() as name:
        recorder = Recorder(Path(name), rotate_at=400 if told.rising else 2**20)
        recorder.info(RunInfo("net", "Net"))
        for _ in range(data.draw(st.integers(0, 8))):
            tell(recorder, told, data.draw, there)
        recorder.close()
        run = read_run(RunDirectory(".", Path(name)), histograms=True)
        assert run.damage == ()
        assert run.info == (told.info or RunInfo("net", "Net"))
        assert [frame.step for frame in run.frames] == sorted(told.frames)
        for frame in run.frames:
            assert_same_frame(frame, told.frames[frame.step])
        assert_rows(run.pulses, told.pulses)
        values = [(event.step, value) for event in events_in(Path(name)) for value in event.summary.value]
        points = [(value.tag, step, scalar_of(value)) for step, value in values if "/observed/" in value.tag]
        np.testing.assert_equal(points, [(tag, step, np.float32(number)) for tag, step, number in told.scalars])
        texts = [text_of(value.tensor) for _, value in values if value.tag == REPORT]
        assert texts == [text.encode("utf-8", "replace") for text in told.texts]
        replay.read(name)


def assert_rows(found: np.ndarray, told: dict[tuple[float, float], np.ndarray]) -> None:
    by_place = {(row[0], row[PULSE_FIELDS.index("foreign")]): row for row in found}
    assert len(by_place) == len(found) and by_place.keys() == told.keys()
    assert (np.diff(found[:, 0]) >= 0).all()
    for place, row in told.items():
        np.testing.assert_array_equal(by_place[place], row)
