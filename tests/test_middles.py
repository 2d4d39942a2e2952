from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from gradscope import middles


@pytest.mark.parametrize("values", [[3.0], [4.0, 1.0], [5, 1, 2], [2.0, -np.inf, 7.0, np.inf], [1.0, np.nan, 2.0]])
def test_the_median_is_numpy_s(values):
    np.testing.assert_equal(middles.median(values), float(np.median(values)))


def test_of_no_values_there_is_no_median():
    assert np.isnan(middles.median([]))


def test_the_medians_of_rows_are_numpy_s():
    table = np.random.default_rng(0).normal(size=(5, 8))
    table[3, 2] = np.nan
    np.testing.assert_allclose(middles.medians(table), np.median(table, axis=1))


@pytest.mark.parametrize("share", [0, 37, 90, 100])
def test_a_percentile_lies_between_two_values_by_proportion(share):
    values = np.random.default_rng(1).normal(size=9)
    assert middles.percentile(values, share) == pytest.approx(np.percentile(values, share))


def test_no_rule_and_no_report_brings_in_masked_arrays():
    code = """
import sys, torch, tempfile, gradscope
from tests.models import mlp, regress
model = mlp(4, 8, 2)
scope = gradscope.attach(model, tempfile.mkdtemp(), every=1)
regress(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=60)
scope.report()
scope.close()
print("numpy.ma" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
