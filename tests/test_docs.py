"""The generated pages, by the script as it is called; and the written ones, that nothing is missing from them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gradscope.report.pages import by_family
from gradscope.rule import all_rules

ROOT = Path(__file__).parents[1]


def gen_docs(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "gen_docs"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "rules"
    assert gen_docs("--into", folder).returncode == 0
    return folder


@pytest.fixture
def folder(written, tmp_path):
    for page in written.iterdir():
        (tmp_path / page.name).write_bytes(page.read_bytes())
    return tmp_path


def test_the_committed_pages_are_fresh():
    checked = gen_docs("--check")
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_readme_names_every_rule_in_its_place():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for family, rules in by_family(all_rules()).items():
        cells = [", ".join(f"`{rule.name}`" for rule in rules if rule.kind == kind) for kind in ("cause", "symptom")]
        assert f"| {family} | {' | '.join(cells)} |\n" in readme


def test_every_decision_stands_in_the_index():
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    for decision in folder.glob("0*.md"):
        title = decision.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        assert f"- [{decision.name[:4]}]({decision.name}) {title}\n" in index


def test_faults_are_named_and_nothing_is_written(folder):
    (folder / "missing-zero-grad.md").write_text("old")
    (folder / "README.md").unlink()
    (folder / "no-such-rule.md").touch()
    checked = gen_docs("--check", "--into", folder)
    assert checked.returncode == 1
    assert [line.strip() for line in checked.stderr.splitlines()[1:]] == [
        "missing: README.md",
        "stale: missing-zero-grad.md",
        "orphaned: no-such-rule.md",
    ]
    assert (folder / "missing-zero-grad.md").read_text() == "old"


def test_writing_mends_every_fault(folder):
    (folder / "missing-zero-grad.md").write_text("old")
    (folder / "no-such-rule.md").touch()
    assert gen_docs("--into", folder).returncode == 0
    assert gen_docs("--check", "--into", folder).returncode == 0
    assert not (folder / "no-such-rule.md").exists()
