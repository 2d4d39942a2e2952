"""What holds for every file of the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gradscope

PAGE = Path(gradscope.__file__).parent / "tensorboard" / "page"
MODULES = sorted(PAGE.glob("*.js"))
MARKUP = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function|srcdoc")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_takes_no_data_for_markup_and_loads_nothing_from_elsewhere(path):
    text = path.read_text("utf-8")
    assert not MARKUP.search(text)
    assert not re.search(r"https?://|//cdn", text)
    assert text.startswith("/**")  # says what it is for
    assert len(text.splitlines()) <= 300


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_what_a_module_imports_is_there(path):
    for name, source in re.findall(r"import \{([^}]*)\} from \"\./([^\"]+)\"", path.read_text("utf-8")):
        exported = (PAGE / source).read_text("utf-8")
        for wanted in filter(None, (part.strip() for part in name.split(","))):
            assert re.search(rf"export (async )?(function|const|class) {wanted}\b", exported), f"{wanted} in {source}"


@pytest.mark.parametrize("path", sorted(PAGE.glob("*.css")), ids=lambda path: path.name)
def test_a_style_loads_nothing_and_is_asked_for(path):
    text = path.read_text("utf-8")
    assert not re.search(r"@import|url\(", text)
    assert len(text.splitlines()) <= 300
    assert f'"{path.stem}"' in (PAGE / "index.js").read_text("utf-8")


@pytest.mark.parametrize("path", [*MODULES, *PAGE.glob("*.css")], ids=lambda path: path.name)
def test_lines_are_no_longer_than_elsewhere(path):
    assert [line for line in path.read_text("utf-8").splitlines() if len(line) > 128] == []
