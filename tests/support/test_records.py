import json

import pytest

from dpsapf.experiment.records import Plan
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError, UserErrors
from dpsapf.support.records import as_json, read_record, write_record


def test_records_survive_the_round_trip(tmp_path, plan):
    write_record(tmp_path / "plan.json", plan)
    assert read_record(tmp_path / "plan.json", Plan) == plan
    assert json.loads((tmp_path / "plan.json").read_text()) == as_json(plan)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"population"', '"populatiom"', "populatiom = 3500: unknown key: must be one of .*; did you mean population?"),
        ('"population": 3500', '"population": "many"', "population = 'many': must be a valid integer"),
        ('"population": 3500', '"population": "3500"', "population = '3500': must be a valid integer"),
        ('"steps": 4', '"steps": 0', "releases.1.steps = 0: must be at least 1"),
        ('"target_epsilon": 10.0', '"target_epsilon": NaN', "target_epsilon = .*finite number"),
    ],
)
def test_unknown_missing_and_wrong_keys_are_refused(tmp_path, plan, old, new, message):
    write_record(tmp_path / "plan.json", plan)
    text = (tmp_path / "plan.json").read_text()
    assert old in text
    (tmp_path / "bad.json").write_text(text.replace(old, new))
    with pytest.raises(UserErrors, match=message) as caught:
        read_record(tmp_path / "bad.json", Plan)
    assert all(str(error).startswith(str(tmp_path / "bad.json")) for error in caught.value.errors)


def test_a_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "bad.json").write_bytes(b"\xff{")
    with pytest.raises(
        UserError, match="bad.json = 'not JSON': give the record that a stage wrote; if it is one and was damaged, delete it"
    ):
        read_record(tmp_path / "bad.json", Plan)


def test_a_record_that_breaks_its_model_cannot_be_made(plan):
    with pytest.raises(ValueError, match="population"):
        replace(plan, population="many")
