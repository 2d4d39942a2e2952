"""Values of any kind become what JSON can hold."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from gradscope.report.plain import plain


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (math.nan, None),
        (np.float32(-math.inf), "-inf"),
        (np.array([[1.0, math.inf], [math.nan, -0.5]]), [[1.0, "inf"], [None, -0.5]]),
        ((np.int64(3), np.bool_(True), None, "a"), [3, True, None, "a"]),
        (frozenset((7,)), [7]),
        (3j, "3j"),
    ],
)
def test_what_json_can_hold(value, found):
    assert plain(value, dict) == plain(value, list) == found


@pytest.mark.parametrize(("mapping", "found"), [(dict, {"1": {"a": "inf"}}), (list, [["1", [["a", "inf"]]]])])
def test_a_mapping_becomes_what_is_asked_for_at_every_depth(mapping, found):
    assert json.loads(json.dumps(plain({1: {"a": math.inf}}, mapping))) == found
