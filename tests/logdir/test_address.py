from __future__ import annotations

from pathlib import Path

import pytest

from gradscope.logdir.address import Address
from gradscope.logdir.address import is_address
from gradscope.logdir.address import unfit
from gradscope.logdir.address import without_secrets


@pytest.mark.parametrize(
    ("logdir", "said"),
    [
        ("s3://bucket/run", True),
        ("simplecache::gs://bucket", True),
        ("runs/a", False),
        ("C:/runs", False),
        ("a file ://x", False),
        (Path("runs"), False),
        (None, False),
    ],
)
def test_an_address_is_told_from_a_path(logdir, said):
    assert is_address(logdir) is said


@pytest.mark.parametrize(
    ("text", "mirror"),
    [
        ("s3://bucket/team/run", "runs/s3/bucket/team/run"),
        ("s3://bucket/team/run/", "runs/s3/bucket/team/run"),
        ("sftp://me:hush@host/runs/1", "runs/sftp/host/runs/1"),
        ("file:///data/../run", "runs/file/data/run/"),
    ],
)
def test_the_mirror_is_named_after_the_address_and_lies_below_runs(text, mirror):
    found = Address(text).mirror
    assert found.as_posix().startswith(mirror.rstrip("/")) or found.parent.as_posix() == mirror.rstrip("/")
    assert ".." not in found.parts and "hush" not in str(found)


def test_two_addresses_have_two_mirrors():
    texts = ["s3://b/a b", "s3://b/a_b", "s3://b/x/../a_b", "gs://b/a_b", "s3://b/a//b"]
    assert len({Address(text).mirror for text in texts}) == len(texts)


def test_below_an_address():
    assert (Address("s3://b/run/") / "gradscope").text == "s3://b/run/gradscope"
    assert Address("s3://b/run") / "." == Address("s3://b/run")


def test_logins_and_queries_are_not_shown(monkeypatch):
    address = Address("sftp://me:hush@host/run?token=also-hush")
    assert str(address) == "sftp://host/run" and "hush" not in repr(address)
    monkeypatch.setenv("SOME_SECRET_KEY", "very-secret")
    assert without_secrets("denied for very-secret at https://me:pw@host/x?sig=1") == "denied for *** at https://host/x"


def test_what_can_be_shipped_to():
    assert unfit(Address("s3://bucket/run")) is None
    assert unfit(Address("file:///tmp/run")) is None
    assert "one process alone" in str(unfit(Address("memory://run")))
    assert "knows no store" in str(unfit(Address("nosuch://run")))
