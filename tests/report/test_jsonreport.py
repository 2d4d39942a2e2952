from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from gradscope.report import jsonreport
from tests.report import examples

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text(encoding="utf-8"))


def rendered(*runs):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(jsonreport.render(runs), parse_constant=refuse)


def with_evidence(**evidence):
    run = replace(examples.BROKEN, findings=(replace(examples.RATE, evidence=evidence),))
    return rendered(run)["runs"][0]["findings"][0]["evidence"]


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", examples.ALL)
def test_reports_are_as_the_schema_says(name):
    jsonschema.Draft202012Validator(SCHEMA).validate(rendered(*examples.ALL[name]))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document.update(schema="gradscope.report/2"),
        lambda document: document.update(more=1),
        lambda document: document["runs"][0].pop("overhead"),
        lambda document: document["runs"][0].update(overhead=None),
        lambda document: document["runs"][0].update(verdict="info"),
        lambda document: document["runs"][0].update(diagnosis="Not a rule"),
        lambda document: document["runs"][0].update(damage=[]),
        lambda document: document["runs"][0]["findings"][0].pop("remedy"),
        lambda document: document["runs"][0]["findings"][0].update(confidence=1.5),
        lambda document: document["runs"][0]["findings"][0].update(first_step=2.5),
        lambda document: document["runs"][0]["findings"][0].update(kind="aside"),
        lambda document: document["runs"][0]["findings"][0]["evidence"].update(nested={"a": 1}),
        lambda document: document["runs"][0]["skipped"].update({"lr-too-low": ""}),
    ],
)
def test_the_schema_is_strict(spoil):
    document = rendered(examples.BROKEN)
    spoiled = copy.deepcopy(document)
    spoil(spoiled)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    assert validator.is_valid(document)
    assert not validator.is_valid(spoiled)


def test_evidence_is_what_json_can_hold():
    evidence = with_evidence(
        nan=math.nan,
        up=math.inf,
        down=np.float32("-inf"),
        number=np.float32(0.5),
        count=np.int64(3),
        flag=np.bool_(True),
        row=np.array([1.0, math.nan]),
        nested=((1, math.inf), "a"),
        nothing=None,
        pair={"a": math.nan},
        path=Path("x"),
    )
    assert evidence == {
        "nan": None,
        "up": "inf",
        "down": "-inf",
        "number": 0.5,
        "count": 3,
        "flag": True,
        "row": [1.0, None],
        "nested": [[1, "inf"], "a"],
        "nothing": None,
        "pair": [["a", None]],
        "path": "x",
    }
    assert isinstance(evidence["flag"], bool)


def test_overhead_is_always_a_number():
    assert rendered(examples.SYMPTOM)["runs"][0]["overhead"] == 0.0
    assert rendered(examples.HEALTHY)["runs"][0]["overhead"] == 0.0131


def test_names_stand_as_the_model_has_them():
    assert rendered(examples.HOSTILE)["runs"][0]["findings"][0]["modules"] == [examples.HOSTILE_NAME]


def test_a_lone_surrogate_can_be_written():
    run = replace(examples.HEALTHY, run="\udcff")
    assert jsonreport.render((run,)).encode("utf-8")
