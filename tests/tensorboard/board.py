"""TensorBoard itself, as a process of its own, and requests to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request
from urllib.request import urlopen

import numpy as np

ROOT = Path(__file__).parents[2]
LOADERS = ("true", "false")  # of --load_fast: the data server, and the one in Python
WAIT = 60  # seconds until a server must have loaded a small run

# As the `tensorboard` command does it, with the plugin that an installed gradscope announces.
_PROGRAM = """
import sys
# Where gradscope is installed from its sources, this would find modules that the copy under test lacks.
sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in str(finder)]
from tensorboard import default, program
from tensorboard.main_lib import global_init
from {module} import Loader
global_init()
board = program.TensorBoard(plugins=[*default.get_static_plugins(), Loader])
board.configure(argv=["tensorboard", *sys.argv[1:]])
print(board.launch(), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Answer:
    status: int
    media_type: str
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


@dataclass(frozen=True)
class Board:
    """A running TensorBoard."""

    url: str  # ends with a slash
    said: list[str]  # what it wrote to standard error

    def get(self, route: str, *, method: str = "GET", **parameters: Any) -> Answer:
        """The answer to a request of a route of ours."""
        return self.fetch(f"data/plugin/gradscope/{route}?{urlencode(parameters)}", method=method)

    def fetch(self, path: str, *, method: str = "GET") -> Answer:
        request = Request(self.url + path, method=method, headers={"Accept-Encoding": "identity"})
        try:
            with urlopen(request, timeout=WAIT) as reply:
                return Answer(reply.status, reply.headers.get_content_type(), reply.read())
        except HTTPError as error:
            return Answer(error.code, error.headers.get_content_type(), error.read())

    def json(self, route: str, **parameters: Any) -> Any:
        answer = self.get(route, **parameters)
        assert answer.status == 200, answer.content
        return answer.json

    def numbers(self, route: str, **parameters: Any) -> tuple[Any, np.ndarray]:
        """Header and numbers of a binary reply."""
        answer = self.get(route, **parameters)
        assert answer.status == 200, answer.content
        return unpacked(answer.content)

    def wait(self, ready: Callable[[], bool]) -> None:
        """Until ``ready``: TensorBoard loads in the background."""
        began = time.monotonic()
        while not ready():
            assert time.monotonic() - began < WAIT, self.said
            time.sleep(0.1)

    def wait_for_runs(self, count: int = 1) -> list[Any]:
        """The runs, once there are so many and none has grown for a moment."""
        seen: list[Any] = [None, None]

        def ready() -> bool:
            seen.append({run["run"]: run["etag"] for run in self.json("runs")["runs"]})
            time.sleep(0.3)
            return len(seen[-1]) >= count and seen[-1] == seen[-2] == seen[-3]

        self.wait(ready)
        return list(self.json("runs")["runs"])


def unpacked(content: bytes) -> tuple[Any, np.ndarray]:
    length = int.from_bytes(content[:4], "little")
    assert length % 4 == 0
    header = json.loads(content[4 : 4 + length])
    return header, np.frombuffer(content[4 + length :], dtype="<f4").reshape(header["shape"])


@contextmanager
def running(
    logdir: Path, *arguments: str, load_fast: str = "true", root: Path = ROOT, module: str = "gradscope.tensorboard.loader"
) -> Iterator[Board]:
    """TensorBoard over ``logdir``, with the gradscope in ``root``."""
    program = _PROGRAM.format(module=module)
    flags = ["--logdir", logdir, "--host", "127.0.0.1", "--port", "0", "--reload_interval", "1", "--load_fast", load_fast]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, flags), *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    reader = Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert re.match("http://", url), said
        yield Board(url, said)
    finally:
        process.terminate()
        process.wait(WAIT)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        reader.join(WAIT)


@contextmanager
def running_each(logdir: Path, *, runs: int) -> Iterator[dict[str, Board]]:
    """A server for each loader over ``logdir``, by the value of ``--load_fast``, once all have so many runs."""
    with ExitStack() as stack:
        boards = {load_fast: stack.enter_context(running(logdir, load_fast=load_fast)) for load_fast in LOADERS}
        for board in boards.values():
            board.wait_for_runs(runs)
        yield boards


def copied(folder: Path) -> Path:
    """``folder`` with a copy of the package and its tests in it, to be broken."""
    for name in ("gradscope", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def taken_away(path: Path) -> None:
    """A file or a folder that is missing from then on."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
