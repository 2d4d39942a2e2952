"""What is fuzzed: bytes as a log directory, from the reader to the report in each format. Also replayed without a fuzzer."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from gradscope import replay
from gradscope.logdir.codec import CodecError
from gradscope.logdir.codec import dumps
from gradscope.logdir.codec import loads
from gradscope.logdir.errors import LogdirError
from gradscope.logdir.framing import HEADER_SIZE
from gradscope.logdir.framing import claimed_length
from gradscope.logdir.framing import framed
from gradscope.logdir.reader import EventFile
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run
from gradscope.records import RunInfo
from gradscope.records import Schema
from gradscope.report import jsonreport
from gradscope.report import markdown
from gradscope.report import text

NAME = "events.out.tfevents.1700000000.host.1.0.gradscope"
CORPUS = Path(__file__).parent / "corpus"


def file(data: bytes) -> None:
    """``data`` as an event file: whatever it is, records come out whole, and no more than there is."""
    with TemporaryDirectory() as folder:
        path = Path(folder, NAME)
        path.write_bytes(data)
        for window in (1, 2**22):
            whole = EventFile(path, window=window)
            found = list(whole.records())
            assert sum(len(payload) + 16 for payload in found) <= len(data)
            assert list(whole.records()) == []
            if whole.damage is None:
                read = b"".join(map(framed, found))
                assert data.startswith(read)
                assert len(data) - len(read) < HEADER_SIZE or claimed_length(data, len(read)) is not None


def records(data: bytes) -> None:
    """``data`` as records whose checksums hold, to the end of the report."""
    _report(b"".join(map(framed, _split(data))))


def damaged(data: bytes) -> None:
    """``data`` as an event file as it is, to the end of the report."""
    _report(data)


def texts(data: bytes) -> None:
    """``data`` as the JSON of a description or of a list of sites."""
    for kind in (RunInfo, Schema):
        try:
            value = loads(kind, data)
        except CodecError:
            continue
        assert dumps(loads(kind, dumps(value))) == dumps(value)


TARGETS: Mapping[str, Callable[[bytes], None]] = {target.__name__: target for target in (file, records, damaged, texts)}


def inputs(name: str) -> list[bytes]:
    """The corpus of one target."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def joined(payloads: list[bytes]) -> bytes:
    """What ``records`` takes apart again."""
    return b"".join(len(payload).to_bytes(2, "little") + payload for payload in payloads)


def _split(data: bytes) -> list[bytes]:
    """Two bytes of length before each record; a last one that is cut off is taken as far as it goes."""
    found, at = [], 0
    while at + 2 <= len(data):
        length = int.from_bytes(data[at : at + 2], "little")
        found.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    return found


def _report(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        Path(folder, NAME).write_bytes(data)
        try:
            for run in find_runs(Path(folder)):
                read_run(run, histograms=True)
            report = replay.read(folder)
        except LogdirError as error:
            _assert_harmless(str(error))
            return
        for render in (text.render, markdown.render):
            _assert_harmless(render(report.runs).replace("\n", " "))
        _assert_harmless(repr(report))
        _assert_harmless(str(report).replace("\n", " "))
        json.loads(jsonreport.render(report.runs))


def _assert_harmless(shown: str) -> None:
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown), ascii(shown)
