"""Runs go by the names that the report gives them."""

from __future__ import annotations

import pytest

from gradscope.tensorboard.naming import base_of
from gradscope.tensorboard.naming import names_of


@pytest.mark.parametrize(
    ("run", "name", "base"),
    [
        ("gradscope", ".", "."),
        ("a/gradscope", "a", "a"),
        ("a/b/gradscope/critic", "a/b/critic", "a/b"),
        ("gradscope/critic", "critic", "."),
        (".", ".", "."),
        ("a/b", "a/b", "a/b"),
        ("a/gradscope/b/c", "a/gradscope/b/c", "a/gradscope/b/c"),
    ],
)
def test_the_directory_that_gradscope_adds_is_left_out(run, name, base):
    assert names_of([run]) == {run: name}
    assert base_of(run) == base


def test_of_two_with_one_name_the_second_goes_by_its_path():
    assert names_of(["x/gradscope", "gradscope/x"]) == {"gradscope/x": "x", "x/gradscope": "x/gradscope"}
