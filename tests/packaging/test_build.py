"""What is built from the tree holds what it should, and answers wherever it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from gradscope.version import __version__

ROOT = Path(__file__).parents[2]
SOURCES = ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "gradscope", "tests")
OFFLINE = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that building leaves nothing behind in the repository."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        _copy(ROOT / name, tree / name)
    return tree


@pytest.fixture(scope="module")
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel built from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree), cwd=out)
    return out


@pytest.fixture(scope="module")
def metadata(built: Path) -> Message:
    wheel = zipfile.ZipFile(_one(built, "*.whl"))
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


@pytest.fixture(scope="module", params=["sdist", "wheel", "editable"])
def environment(request: pytest.FixtureRequest, tree: Path, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a virtual environment with gradscope installed in one of three ways; all else is borrowed."""
    sources = {
        "sdist": (str(_one(built, "*.tar.gz")),),
        "wheel": (str(_one(built, "*.whl")),),
        "editable": ("--editable", str(tree)),
    }
    home = tmp_path_factory.mktemp("environment with spaces")
    _run(sys.executable, "-m", "venv", "--without-pip", str(home), cwd=home)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    _run(str(home / "bin" / "python"), "-m", "pip", "install", *OFFLINE, *sources[request.param], cwd=home)
    return home / "bin"


def test_the_wheel_holds_every_module_and_the_marker_of_its_types(built: Path) -> None:
    packed = {name for name in zipfile.ZipFile(_one(built, "*.whl")).namelist() if ".dist-info/" not in name}
    assert packed == {*_modules(), *_page(), "gradscope/py.typed"}


def test_the_wheel_announces_command_and_tab(built: Path) -> None:
    wheel = zipfile.ZipFile(_one(built, "*.whl"))
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    announced = ConfigParser()
    announced.read_string(wheel.read(name).decode())
    assert dict(announced["tensorboard_plugins"]) == {"gradscope": "gradscope.tensorboard.loader:Loader"}
    assert dict(announced["console_scripts"]) == {"gradscope": "gradscope.cli:main"}


def test_the_sdist_holds_what_it_takes_to_build_and_no_tests(built: Path) -> None:
    with tarfile.open(_one(built, "*.tar.gz")) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    assert packed >= {"setup.cfg", "pyproject.toml", "README.md", "CHANGELOG.md", "gradscope/py.typed", *_modules()}
    assert not [name for name in packed if name.startswith("tests")]


def test_the_metadata_state_name_version_and_python(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("gradscope-torch", __version__)
    assert metadata["Requires-Python"] == ">=3.10"


def test_torch_is_required_without_an_upper_bound(metadata: Message) -> None:
    assert "torch>=2.4" in metadata.get_all("Requires-Dist", [])


def test_command_and_module_answer_wherever_they_are_installed(environment: Path) -> None:
    for command in (["gradscope"], ["python", "-m", "gradscope"]):
        said = _run(str(environment / command[0]), *command[1:], "--help", cwd=environment)
        assert "report" in said
        assert "demo" in said


def test_what_is_installed_is_what_runs_and_importing_it_leaves_torch_alone(environment: Path, tree: Path) -> None:
    script = "import gradscope, sys; print(gradscope.__file__, 'torch' in sys.modules, gradscope.__version__, sep='\\n')"
    where, has_torch, version = _run(str(environment / "python"), "-c", script, cwd=environment).splitlines()
    assert any(Path(where).is_relative_to(place) for place in (environment.parent, tree))
    assert (has_torch, version) == ("False", __version__)


def _modules() -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / "gradscope").rglob("*.py")}


def _page() -> set[str]:
    files = (ROOT / "gradscope" / "tensorboard" / "page").rglob("*")
    return {path.relative_to(ROOT).as_posix() for path in files if path.is_file()}


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    else:
        shutil.copy(source, target)


def _one(directory: Path, pattern: str) -> Path:
    (found,) = directory.glob(pattern)
    return found


def _run(*command: str, cwd: Path) -> str:
    """Run a command apart from the repository, and show what it said where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
