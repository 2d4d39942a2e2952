from __future__ import annotations

import pytest

from tests.logdir.stores import serving
from tests.logdir.stores import store_at


@pytest.fixture(scope="session")
def s3_port():
    with serving() as port:
        yield port


@pytest.fixture
def store(s3_port, monkeypatch, tmp_path):
    """An empty bucket; ``runs`` is made in a directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    with store_at(s3_port, monkeypatch) as store:
        yield store
