from __future__ import annotations

import warnings

import pytest

from gradscope.failures import GradscopeWarning
from gradscope.failures import warn


def test_a_warning_ends_with_its_slug():
    with pytest.warns(GradscopeWarning, match=r"The disk is full\. \[gradscope:logdir-unwritable\]$"):
        warn("logdir-unwritable", "The disk is full.")


def test_where_warnings_are_errors_ours_is_printed_and_raises_nothing(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn("logdir-unwritable", "The disk is full.")
    assert "The disk is full. [gradscope:logdir-unwritable]" in capsys.readouterr().err
