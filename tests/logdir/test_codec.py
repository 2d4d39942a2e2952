from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from gradscope.logdir.codec import CodecError
from gradscope.logdir.codec import dumps
from gradscope.logdir.codec import loads
from gradscope.records import Broadcast
from gradscope.records import LossInfo
from gradscope.records import ModuleInfo
from gradscope.records import OptimizerInfo
from gradscope.records import ParameterInfo
from gradscope.records import RunInfo
from gradscope.records import Schema
from gradscope.records import Site
from gradscope.records import Wiring

FULL = RunInfo(
    name="a",
    model="Net",
    modules=(ModuleInfo("b.0", "BatchNorm2d", "norm", ("b.0.weight",), "relu", True),),
    parameters=(ParameterInfo("b.0.weight", "b.0", (3, 4), "float32", True, False, ("tied.weight",)),),
    optimizers=(OptimizerInfo("Adam", 1e-3, ("b.0.weight",), 2, {"beta1": 0.9, "eps": 1e-8}),),
    wiring=Wiring(
        losses=(LossInfo("mse", "MseLossBackward0", "mean", (4, 1), (4,), None, "softmax", 0.25),),
        broadcasts=(Broadcast("SubBackward0", (4, 1), (4,), (4, 4)),),
        reached=("b.0.weight",),
        cuts=(("a", "b"),),
    ),
    versions={"torch": "2.13"},
    select=("lr-too-high",),
    notes=("ü \u2028 ☃",),
)


def test_every_kind_of_field_comes_back():
    assert loads(RunInfo, dumps(FULL)) == FULL


@settings(derandomize=True, deadline=None)
@given(st.builds(Site, path=st.text(), call=st.integers(0, 99)), st.lists(st.text()))
def test_any_site_name_comes_back(site, names):
    schema = Schema(modules=(site, *(Site(name) for name in names)))
    assert loads(Schema, dumps(schema)) == schema


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_numbers_that_are_not_finite_survive_as_strict_json(number):
    text = dumps(replace(FULL, started=number))

    def forbid(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(text, parse_constant=forbid)
    found = loads(RunInfo, text).started
    assert found == number or (math.isnan(found) and math.isnan(number))


def test_unknown_keys_are_ignored_and_missing_ones_take_their_default():
    module = '{"path": "p", "type": "T", "role": "r", "novel": 0}'
    text = f'{{"name": "a", "model": "M", "novel": {{"x": [1]}}, "modules": [{module}]}}'
    assert loads(RunInfo, text) == RunInfo("a", "M", modules=(ModuleInfo("p", "T", "r"),))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', '{"name": "a"}', '{"name": 1, "model": "M"}', "[" * 100_000])
def test_what_is_no_run_info_is_refused(text):
    with pytest.raises(CodecError):
        loads(RunInfo, text)


@pytest.mark.parametrize(
    "field",
    [
        '"modules": {}',
        '"modules": [7]',
        '"modules": [{"path": "p"}]',
        '"started": "soon"',
        '"started": true',
        '"started": 1' + 400 * "0",
        '"every": true',
        '"every": 1.5',
        '"versions": []',
        '"wiring": {"cuts": [["a", "b", "c"]]}',
    ],
)
def test_a_field_of_another_type_is_refused(field):
    with pytest.raises(CodecError):
        loads(RunInfo, f'{{"name": "a", "model": "M", {field}}}')


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.binary())
def test_no_bytes_raise_anything_else(data):
    with pytest.raises(CodecError):
        loads(RunInfo, data)
