"""What is kept is kept within bounds, and made once."""

from __future__ import annotations

import threading

import pytest

from gradscope.tensorboard.shelf import Shelf


def test_what_was_not_asked_for_longest_goes_first():
    shelf = Shelf(10, len)
    for key in "ab":
        shelf.get(key, lambda key=key: 4 * key)
    shelf.get("a", list)
    shelf.get("c", lambda: "cccc")
    assert (shelf.held("a"), shelf.held("b"), shelf.held("c")) == ("aaaa", None, "cccc")


def test_the_newest_is_kept_however_large_it_is():
    shelf = Shelf(10, len)
    shelf.get("a", lambda: "aaaa")
    shelf.get("b", lambda: 100 * "b")
    assert (shelf.held("a"), shelf.held("b")) == (None, 100 * "b")


def test_another_version_takes_the_place_of_the_one_before():
    shelf = Shelf(10, len)
    for version in range(50):
        assert shelf.get("a", lambda version=version: f"{version:08}", version=version) == f"{version:08}"
    shelf.get("b", lambda: "b")
    assert shelf.held("a") == "00000049"


def test_a_failure_is_not_kept():
    shelf = Shelf(10, len)
    with pytest.raises(ZeroDivisionError):
        shelf.get("a", lambda: 1 // 0)
    assert shelf.get("a", lambda: "a") == "a"


def test_two_who_ask_at_once_have_it_made_once():
    shelf, made, begun, go = Shelf(10, len), [], threading.Event(), threading.Event()

    def make():
        begun.set()
        go.wait(30)
        made.append("a")
        return "a"

    threads = [threading.Thread(target=shelf.get, args=("a", make)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    go.set()
    for thread in threads:
        thread.join(30)
    assert made == ["a"]
