"""That every mutant can still be made; `make mutants` makes them."""

import ast
from collections import Counter

import pytest

from tests.mutation.mutate import COPIED, MUTANTS, ROOT

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


def source(mutant):
    return (ROOT / "dpsapf" / mutant.file).read_text()


def test_there_are_mutants_with_a_name_each():
    assert len(MUTANTS) > 50
    assert [name for name, count in Counter(mutant.name for mutant in MUTANTS).items() if count > 1] == []
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_mutant_changes_one_place_of_a_file_that_exists(name):
    mutant = BY_NAME[name]
    assert (ROOT / "dpsapf" / mutant.file).is_file()
    assert source(mutant).count(mutant.old) == 1
    assert mutant.new != mutant.old


@pytest.mark.parametrize("name", BY_NAME)
def test_a_mutant_is_code_that_runs_and_differs(name):
    """A syntax error would fail every test, and so would be killed without being tested."""
    mutant = BY_NAME[name]
    changed = ast.parse(source(mutant).replace(mutant.old, mutant.new))
    assert ast.dump(changed) != ast.dump(ast.parse(source(mutant)))


@pytest.mark.parametrize("name", BY_NAME)
def test_a_mutants_tests_exist_and_are_copied(name):
    tests = BY_NAME[name].tests
    assert tests and all((ROOT / test).is_file() for test in tests)
    assert {test.split("/")[0] for test in tests} <= set(COPIED)
    assert all(test.rsplit("/", 1)[1].startswith("test_") for test in tests)


def test_every_module_of_the_privacy_room_has_a_mutant():
    modules = {path.name for path in (ROOT / "dpsapf" / "privacy").glob("*.py")} - {"__init__.py"}
    assert modules == {mutant.file.removeprefix("privacy/") for mutant in MUTANTS if mutant.file.startswith("privacy/")}


def test_what_is_copied_exists():
    assert [name for name in COPIED if not (ROOT / name).exists()] == []
