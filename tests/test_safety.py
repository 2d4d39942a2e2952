"""Nothing is executed that comes from a log directory, nothing lies outside it, and nothing goes over a network."""

from __future__ import annotations

import ast
import os
import platform
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import gradscope
from tests.models import mlp

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gradscope"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

# Modules that make objects, or run code, of bytes that they read.
UNSAFE_MODULES = frozenset(
    ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "runpy")
)
# Calls that do so, or that write and read by pickle underneath.
UNSAFE_CALLS = frozenset(
    ("eval", "exec", "compile", "__import__", "system", "popen", "spawnl", "execv", "unsafe_load", "full_load")
)
OBJECT_COLLECTIVES = frozenset(
    "all_gather_object gather_object broadcast_object_list scatter_object_list send_object_list".split()
)

LOADERS = frozenset(("load", "loadtxt", "fromfile"))  # of torch and numpy
# Where a module is imported by a name, or a program is run: the names are those of the package's own files.
IMPORTS_BY_NAME = {"rule.py", "demos/__init__.py", "cli/__init__.py"}
PROGRAMS = {"logdir/shipment.py"}


def unsafe_in(source: str, name: str = "some.py") -> list[str]:
    """What of the source could run data as code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [module for module in modules if module.partition(".")[0] in UNSAFE_MODULES]
            found += [module for module in modules if module.partition(".")[0] == "subprocess" and name not in PROGRAMS]
        elif isinstance(node, ast.Call):
            found += _unsafe_call(node, name)
    return found


def _unsafe_call(node: ast.Call, name: str) -> list[str]:
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    owner = node.func.value.id if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) else ""
    of_library = owner in ("torch", "np", "numpy")
    builtin = isinstance(node.func, ast.Name) or owner in ("builtins", "os", "yaml")
    if called == "import_module":
        return [] if name in IMPORTS_BY_NAME else [called]
    if (called in UNSAFE_CALLS and builtin) or called in OBJECT_COLLECTIVES or (called in LOADERS and of_library):
        return [f"{owner}.{called}"]
    return ["allow_pickle"] if any(keyword.arg == "allow_pickle" for keyword in node.keywords) else []


def test_no_module_unpickles_or_runs_what_it_reads():
    names = {path.relative_to(PACKAGE).as_posix(): path for path in SOURCES}
    assert len(names) > 200
    found = {name: unsafe_in(path.read_text(encoding="utf-8"), name) for name, path in names.items()}
    assert {name: unsafe for name, unsafe in found.items() if unsafe} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import dill as d", "import torch\ntorch.load('x')", "np.load(f)",
        "eval(text)", "exec(text)", "__import__(name)", "importlib.import_module(name)", "import subprocess", "os.system(x)",
        "dist.all_gather_object(found, mine)", "open_array(path, allow_pickle=True)", "compile(text, '', 'exec')",
    ],
)  # fmt: skip
def test_the_check_sees_each_way_to_run_what_was_read(source):
    assert unsafe_in(source)


# -- a training, its report and its end, in a process of its own

TRAINING = """
import os, sys, warnings
warnings.simplefilter("error", append=True)
import torch
import gradscope
from tests.models import mlp, regress

model = mlp(4, 8, 2)
{before}
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scope = gradscope.attach(model, sys.argv[1], every=1{arguments})
regress(model, optimizer, steps=12)
scope.report()
{ending}
scope.close()
report = gradscope.read(sys.argv[1])
assert report.runs[0].steps == 12, report
print("whole")
"""


def train(logdir, *, before="", arguments="", ending="", prefix=""):
    code = prefix + TRAINING.format(before=textwrap.dedent(before), arguments=arguments, ending=textwrap.dedent(ending))
    return subprocess.run(
        [sys.executable, "-c", code, str(logdir)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def everything_below(folder):
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_files_and_directories_are_made_as_the_users_umask_says(tmp_path, umask, file, folder):
    done = train(tmp_path / "logs", prefix=f"import os\nos.umask({umask})\n")
    assert done.stdout == "whole\n", done.stderr
    made = everything_below(tmp_path)
    assert {"logs", "logs/gradscope"} < made.keys()
    for path in made.values():
        assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path


NAMES_OF_MODULES = """
class Odd(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("../../x", "/tmp/absolute", "a/../../../b", "\\x1b[31m\\n", "~", "con\\0", "<img src=x onerror=alert(1)>"):
            self._modules[name] = torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 2)
    def forward(self, x):
        for module in list(self._modules.values())[:-1]:
            x = module(x)
        return self.head(x)

Odd.__name__ = Odd.__qualname__ = "../../../outside"
model = Odd()
"""


def test_no_name_of_a_module_or_a_model_leads_out_of_the_log_directory(tmp_path):
    """Not even of the second model in a log directory, whose directory is called after it."""
    second = """
    twin = Odd()
    with gradscope.attach(twin, sys.argv[1], every=1):
        pass
    """
    done = train(
        tmp_path / "below" / "logs", before=f"os.makedirs(sys.argv[1], exist_ok=True)\n{NAMES_OF_MODULES}", ending=second
    )
    made = everything_below(tmp_path)
    outside = [name for name in made if name != "below" and not (name + "/").startswith("below/logs/")]
    assert outside == [], done.stderr
    assert any(name.startswith("below/logs/gradscope/") for name in made)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", ".", "", "a\nb", "\x1b[31m"])
def test_a_name_that_is_no_name_of_a_directory_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name is what the run's directory is called"):
        gradscope.attach(mlp(2, 2), tmp_path / "logs", name=name)
    assert everything_below(tmp_path) == {}


def test_a_log_directory_that_is_a_link_is_followed_and_nothing_that_is_there_is_written_over(tmp_path):
    """As TensorBoard follows links: a log directory on another disk is usual. Files are only ever made anew."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "logs").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "gradscope").mkdir()
    kept = tmp_path / "kept"
    kept.write_bytes(b"precious")
    # A link under each name that the process could give its file in the seconds to come.
    links = f"""
    import time
    from gradscope.logdir.names import file_name
    for ahead in range(60):
        os.symlink({str(kept)!r}, os.path.join(sys.argv[1], "gradscope", file_name(int(time.time()) + ahead, os.getpid(), 0)))
    """
    done = train(tmp_path / "logs", before=links)
    assert kept.read_bytes() == b"precious"
    assert "Traceback" not in done.stderr.partition("assert report")[0]
    made = everything_below(tmp_path)
    assert all(name.partition("/")[0] in ("disk", "logs", "kept") for name in made)


# -- no network

# Whoever asks the kernel for a socket that is no local one is killed by it, whatever language asks. (BPF, see seccomp(2).)
NO_SOCKETS = """
import ctypes, platform, struct
def forbid():
    call = {{"x86_64": 41, "aarch64": 198}}[platform.machine()]
    steps = [
        (0x20, 0, 0, 0),             # load the number of the system call
        (0x15, 0, 3, call),          # socket? else allow
        (0x20, 0, 0, 16),            # load its first argument, the family
        (0x15, 1, 0, 1),             # AF_UNIX? allow
        (0x06, 0, 0, 0x80000000),    # kill the process
        (0x06, 0, 0, 0x7FFF0000),    # allow
    ]
    program = b"".join(struct.pack("HBBI", *step) for step in steps)
    held = ctypes.create_string_buffer(program)
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]
    libc = ctypes.CDLL(None, use_errno=True)
    given = Program(len(steps), ctypes.cast(held, ctypes.c_void_p).value)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(given), 0, 0) == 0, ctypes.get_errno()
forbid()
{python}
"""
# Python's own sockets of any family, local ones included, and names that are looked up.
NO_PYTHON_SOCKETS = """
import sys
def watch(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        raise RuntimeError(f"gradscope asked for {event} {arguments}")
sys.addaudithook(watch)
"""
COMMANDS = """
import sys
from gradscope.cli import main
for command in (["rules"], ["rules", "lr-too-high"], *(["report", sys.argv[1], "--fail-on", "never", "--format", form]
                                                       for form in ("text", "markdown", "json"))):
    try:
        main(command)
    except SystemExit as end:
        assert not end.code, command
    print("whole")
"""
KILLED = -31  # SIGSYS
filters = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="needs Linux's filter of system calls"
)


def without_network(code, *arguments):
    whole = NO_SOCKETS.format(python=NO_PYTHON_SOCKETS) + code
    return subprocess.run(
        [sys.executable, "-c", whole, *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@filters
def test_training_report_and_end_need_no_network(tmp_path):
    done = without_network(TRAINING.format(before="", arguments="", ending=""), tmp_path / "logs")
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr
    said = without_network(COMMANDS, tmp_path / "logs")
    assert (said.returncode, said.stdout.count("whole")) == (0, 5), said.stderr


@filters
@pytest.mark.parametrize("family", [2, 10, 16])
def test_whoever_asks_for_a_socket_is_killed(family):
    """So that the test above can fail: by C's own function, which Python's hooks do not see."""
    done = without_network(f"import ctypes\nctypes.CDLL(None).socket({family}, 1, 0)\nprint('alive')")
    assert (done.returncode, done.stdout) == (KILLED, "")


@filters
@pytest.mark.parametrize("code", ["socket.socket(socket.AF_UNIX)", "socket.getaddrinfo('localhost', 1)", "socket.socketpair()"])
def test_whoever_asks_python_for_one_is_told(code):
    done = without_network(f"import socket\n{code}")
    assert "gradscope asked for socket." in done.stderr
