"""The table of faults and what reads it; ``python -m tests.faults`` tries them all."""

import os
import subprocess
import sys

import pytest

from tests.faults import __main__ as faults
from tests.faults.fault import REQUIREMENTS, Fault
from tests.faults.table import FAULTS, FEW, RIGHT, UNSEEN
from tests.mutation.run import PACKAGE, ROOT

ALL = (*FAULTS, *UNSEEN)
NAMES = [fault.name for fault in ALL]
STOPPED = dict.fromkeys(faults.COLUMNS, "")


@pytest.mark.parametrize("fault", ALL, ids=NAMES)
def test_a_fault_applies_exactly_once_and_is_code(fault):
    texts = faults.patched(fault, ROOT / PACKAGE)
    assert texts
    for path, text in texts.items():
        compile(text, path, "exec")
        assert text != path.read_text()


@pytest.mark.parametrize("old", ["nowhere to be found", "import"])
def test_a_text_that_is_not_there_once_is_told(old):
    with pytest.raises(ValueError, match="privacy/noise.py has"):
        faults.patched(Fault("f", "r", (("privacy/noise.py", old, "x"),)), ROOT / PACKAGE)


def test_each_fault_has_a_name_a_requirement_and_tests_that_exist():
    assert len(set(NAMES)) == len(NAMES) >= 40
    assert {fault.breaks for fault in FAULTS} == {fault.breaks for fault in UNSEEN} == set(REQUIREMENTS)
    named = {test for fault in (*ALL, RIGHT) for test in (*fault.tests, *fault.attacks) if "/" in test}
    files = {test.partition("::")[0] for test in (*named, *faults.CONTRACTS, faults.WHOLE_RUN, faults.ATTACK)}
    assert all((ROOT / file).exists() for file in files)
    assert set(FEW) <= set(NAMES) and all(FEW.values())


def trying(monkeypatch, tmp_path, name, *columns):
    """Run the command for a fault that some columns stop, without trying it."""
    tried = []

    def once(fault):
        tried.append(fault.name)
        return STOPPED | dict.fromkeys(columns, "refused")

    tmp_path.mkdir(exist_ok=True)
    monkeypatch.setattr(faults, "tried", once)
    monkeypatch.setattr(faults.run, "import_heavy", lambda: None)
    return faults.main(["--only", name, "--results", str(tmp_path / "rows.json")]), tried


@pytest.mark.parametrize(("columns", "code"), [((), 1), (("audit",), 1), (("audit", "tests"), 0)])
def test_a_fault_that_is_stopped_less_than_twice_fails(monkeypatch, tmp_path, capsys, columns, code):
    monkeypatch.setattr(faults, "FEW", {})
    assert trying(monkeypatch, tmp_path, NAMES[0], *columns) == (code, [NAMES[0]])
    assert f"| {len(columns)} |" in capsys.readouterr().out
    assert trying(monkeypatch, tmp_path, NAMES[0]) == (code, []), "what is known is not tried again"


def test_a_reason_excuses_and_may_not_outlive_its_fault(monkeypatch, tmp_path):
    monkeypatch.setattr(faults, "FEW", {NAMES[0]: "reason"})
    assert trying(monkeypatch, tmp_path / "a", NAMES[0], "tests")[0] == 0
    assert trying(monkeypatch, tmp_path / "b", NAMES[0], "tests", "audit")[0] == 1


def test_right_code_that_is_stopped_fails(monkeypatch, tmp_path):
    assert trying(monkeypatch, tmp_path / "a", RIGHT.name)[0] == 0
    assert trying(monkeypatch, tmp_path / "b", RIGHT.name, "audit")[0] == 1


TOY = {
    "dpsapf/__init__.py": "VALUE = 2",
    "tests/__init__.py": "",
    "tests/tiny.py": "EXPECTED = 1",
    "tests/test_toy.py": """
import dpsapf
from tests.tiny import EXPECTED

def test_right():
    assert dpsapf.VALUE > EXPECTED

def test_value():
    assert dpsapf.VALUE == EXPECTED, f"is {dpsapf.VALUE}"
""",
}
RUNNER = """
import sys
from pathlib import Path
from tests.faults.__main__ import first_failure
print(*first_failure(Path(sys.argv[1]), ["tests/test_toy.py"]), sep=": ")
"""


def test_package_and_tests_are_those_of_the_copy(tmp_path):
    """In a process of its own: the fork must not have imported the package."""
    for name, text in TOY.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([sys.executable, "-c", RUNNER, tmp_path], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "tests/test_toy.py::test_value: is 2\n", done.stderr


def test_the_copy_has_the_fault_and_the_tree_stays():
    fault = FAULTS[0]
    file, old, new = fault.edits[0]
    with faults.faulty_tree(fault) as tree:
        assert new in (tree / PACKAGE / file).read_text() and (tree / faults.WHOLE_RUN).is_file()
    assert old in (ROOT / PACKAGE / file).read_text() and not tree.exists()
