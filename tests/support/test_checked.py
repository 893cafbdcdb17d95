import math
import typing

import pytest
from pydantic import Field, ValidationError

from dpsapf.support.checked import Checked, dotted, mistakes, parse, replace
from dpsapf.support.errors import UserErrors


class Inner(Checked):
    size: int = Field(1, description="a size [pixels]", ge=1, le=8)
    mode: typing.Literal["seed", "system"] = "seed"
    side: typing.Literal[1, 3] = 1


class Outer(Checked):
    rate: float = Field(description="a rate", gt=0)
    inner: Inner | None = None
    several: tuple[Inner, ...] = ()
    named: dict[str, Inner] = Field(default_factory=dict)


def lines(data):
    with pytest.raises(UserErrors) as caught:
        parse(Outer, data, "file.yaml")
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({}, "file.yaml: rate = None: is required: a rate"),
        ({"rate": 0}, "file.yaml: rate = 0: must be greater than 0"),
        ({"rate": "1"}, "file.yaml: rate = '1': must be a valid number"),
        ({"rate": True}, "file.yaml: rate = True: must be a valid number"),
        (
            {"rate": "1e-3"},
            "file.yaml: rate = '1e-3': must be a valid number; YAML reads an exponent without a point as text: "
            "write 1.0e-3 for 1e-3",
        ),
        ({"rate": math.nan}, "file.yaml: rate = nan: must be a finite number"),
        ({"rate": math.inf}, "file.yaml: rate = inf: must be a finite number"),
        (
            {"rate": 1, "ratee": 2},
            "file.yaml: ratee = 2: unknown key: must be one of rate, inner, several, named; did you mean rate?",
        ),
        (
            {"rate": 1, "inner": {"sise": 2}},
            "file.yaml: inner.sise = 2: unknown key: must be one of size, mode, side; did you mean size?",
        ),
        (
            {"rate": 1, "several": [{}, {"modes": {}}]},
            "file.yaml: several.1.modes = '...': unknown key: must be one of size, mode, side; did you mean mode?",
        ),
        (
            {"rate": 1, "named": {"x": {"sizes": 1}}},
            "file.yaml: named.x.sizes = 1: unknown key: must be one of size, mode, side; did you mean size?",
        ),
        (
            {"rate": 1, "inner": {"mode": "sytem"}},
            "file.yaml: inner.mode = 'sytem': must be one of seed, system; did you mean system?",
        ),
        ({"rate": 1, "inner": {"side": 2}}, "file.yaml: inner.side = 2: must be one of 1, 3"),
        ({"rate": 1, "inner": {"size": 1.5}}, "file.yaml: inner.size = 1.5: must be a valid integer"),
        ({"rate": 1, "inner": 3}, "file.yaml: inner = 3: must be an object"),
        ([1], "file.yaml: (top level) = [1]: must be an object"),
    ],
)
def test_a_mistake_is_one_line_with_file_key_value_and_remedy(data, line):
    assert lines(data) == [line]


def test_all_mistakes_come_at_once():
    assert len(lines({"rate": -1, "inner": {"size": 9, "mode": 1}, "x": 1})) == 4


def test_a_model_is_frozen_and_its_copies_are_checked():
    model = Outer(rate=1)
    with pytest.raises(ValidationError):
        model.rate = 2
    assert replace(model, rate=2.0).rate == 2 and model.rate == 1
    with pytest.raises(ValidationError):
        replace(model, rate=-1)


def test_words_of_a_command_line_become_numbers_and_keep_their_own_names():
    assert Outer.model_validate({"rate": "2"}).rate == 2
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"rate": "two"})
    (error,) = mistakes(Outer, caught.value, lambda loc: "--" + dotted(loc))
    assert str(error).startswith("--rate = 'two': must be a valid number")
