"""What scripts/fuzz starts from, and what it has found, without the fuzzer."""

from __future__ import annotations

import pytest

from tests.fuzz import targets

FOUND = [(name, path.name) for name in targets.TARGETS for path in sorted((targets.CORPUS / name).iterdir())]


@pytest.mark.parametrize(("name", "found"), FOUND)
def test_no_input_breaks_the_reader_or_the_report(name, found):
    targets.TARGETS[name]((targets.CORPUS / name / found).read_bytes())


@pytest.mark.parametrize("name", targets.TARGETS)
def test_there_is_something_to_begin_with_and_not_too_much(name):
    assert 0 < sum(len(data) for data in targets.inputs(name)) < 600_000
