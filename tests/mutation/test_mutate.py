"""The mutation tool against toys whose mutants are known, and a sample of the project's own; `make mutants` runs all."""

import ast
import json
import os
import subprocess
import sys
import textwrap

import pytest

from tests.mutation import mutate, run
from tests.mutation.operators import mutants
from tests.mutation.semantic import SEMANTIC, SemanticMutant

EVERY = mutate.made()
TOY = '''
"""A module."""

import math
import typing

if typing.TYPE_CHECKING:
    from pathlib import Path

Kind = typing.Literal["a", "b"]
LIMIT: float = 2.0  # a comment


@dataclass(frozen=True)
class Circle:
    """A docstring."""

    radius: "float"

    def area(self, exact: bool = True) -> "float":
        """A docstring."""
        if self.radius < 0:
            raise UserError("radius", self.radius, f"must be at least {0}")
        LOG.info("area of %s", self.radius + 1)
        return record(math.pi * self.radius**2, provenance=provenance())
'''
TOY_MUTANTS = [
    "10:16 module constant: 2.0 -> 4.0",
    "19:34 Circle.area constant: True -> False",
    "21:9 Circle.area condition: if self.radius < 0 -> if True",
    "21:9 Circle.area condition: if self.radius < 0 -> if False",
    "21:12 Circle.area comparison: self.radius < 0 -> self.radius <= 0",
    "21:26 Circle.area constant: 0 -> 1",
    "24:23 Circle.area arithmetic: math.pi * self.radius ** 2 -> math.pi / self.radius ** 2",
    "24:33 Circle.area arithmetic: self.radius ** 2 -> self.radius * 2",
    "24:46 Circle.area constant: 2 -> 3",
]


def faults(source):
    return [ast.unparse(mutant.tree(source)) for mutant in mutants(source, "toy.py")]


def test_a_module_gives_exactly_these_mutants():
    """Docstrings, annotations, imports, decorators, aliases, messages, logs and provenance are left alone."""
    source = TOY.lstrip("\n")
    found = mutants(source, "toy.py")
    shown = [f"{m.position[0]}:{m.position[1]} {m.place or 'module'} {m.operator}: {m.old} -> {m.new}" for m in found]
    assert shown == TOY_MUTANTS
    assert found[0].id == "toy.py:module | LIMIT: float = 2.0 | constant: 2.0 -> 4.0"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a + b", ["a - b"]),
        ("a - b", ["a + b"]),
        ("a * b", ["a / b"]),
        ("a / b", ["a * b"]),
        ("a // b", ["a * b"]),
        ("a ** b", ["a * b"]),
        ("a & b", ["a | b"]),
        ("a @ b", []),
        ("-a", ["a"]),
        ("not a", ["a"]),
        ("a < b <= c", ["a <= b <= c", "a < b < c"]),
        ("a > b", ["a >= b"]),
        ("a >= b", ["a > b"]),
        ("a == b", ["a != b"]),
        ("a != b", ["a == b"]),
        ("a in b", ["a not in b"]),
        ("a not in b", ["a in b"]),
        ("a is b", ["a is not b"]),
        ("a is not b", ["a is b"]),
        ("a and b and c", ["a or b or c"]),
        ("a or b", ["a and b"]),
        ("x = True", ["x = False"]),
        ("x = 3", ["x = 4"]),
        ("x = 0.25", ["x = 0.5"]),
        ("x = 0.0", ["x = 1.0"]),
        ("x = None", []),
        ("x = 'text'", []),
        ("x = f'{1} text'", []),
        ("a == 'b'", ["a != 'b'", "a == 'mutant'"]),
        ("a in ('b', c)", ["a not in ('b', c)", "a in ('mutant', c)"]),
        ("x = f('a')", ["x = f('mutant')"]),
        ("x = f(key='a')", ["x = f()", "x = f(key='mutant')"]),
        ("x = f(a, b, *c)", ["x = f(b, a, *c)"]),
        ("x = f(a, a)", []),
        ("x = f(**a)", []),
        ("x = max(a, b)", ["x = min(a, b)"]),
        ("x = torch.zeros_like(a)", ["x = torch.ones_like(a)"]),
        ("x = a.b.sum(c)", ["x = a.b.amax(c)"]),
        ("x = sum(a)", []),
        ("x = isinstance(a, b)", []),
        ("x = a.b.sqrt()", ["x = a.b"]),
        ("x = a.b.clamp_min(c)", ["x = a.b"]),
        ("x = a.sqrt()", []),  # a may be a module
        ("x = torch_generator(a, 'b')", ["x = torch_generator('b')", "x = torch_generator(a)"]),
        ("x = draws.noise('b', a)", ["x = draws.noise(a)", "x = draws.noise('b')"]),
        ("x = gumbel_noise(a, b)", ["x = gumbel_noise(b, a)"]),
        ("x = a if b else c", ["x = c if b else a"]),
        ("x = [a for a in b if c]", ["x = [a for a in b]"]),
        ("x = [*a, b, *c]", ["x = [b, *c]", "x = [*a, b]"]),
        ("f()", ["pass"]),
        ("a.b.clear()", ["pass"]),
        ("LOG.info('a', b + c)", []),
        ("x += a", ["pass"]),
        ("del x", ["pass"]),
        ("raise UserError('a', b + c, 'd')", ["pass"]),
        ("if a:\n    raise", ["if True:\n    raise", "if False:\n    raise"]),
        ("f: 'Callable[[int], 3]' = a", []),
    ],
)
def test_an_operator_makes_exactly_these(source, expected):
    assert sorted(faults(source)) == sorted(expected)


def test_equal_faults_of_a_line_are_numbered_and_ids_do_not_move_with_lines():
    source = "x = f(1, 1)\ny = 1\n"
    assert [mutant.id.rpartition(" -> ")[2] for mutant in mutants(source, "toy.py")] == ["2", "2 #2", "2"]
    moved = mutants(f"import math\n\n{source}", "toy.py")
    assert [mutant.id for mutant in moved] == [mutant.id for mutant in mutants(source, "toy.py")]


def test_a_fault_knows_the_lines_of_its_statement():
    source = "def f(a=1):\n    if (\n        a\n        < 2\n    ):\n        return g(\n            3\n        )\n"
    found = {mutant.old: mutant for mutant in mutants(source, "toy.py")}
    assert [found[old].statement for old in ("1", "2", "3")] == [(1, 1), (2, 5), (6, 8)]
    assert [found[old].inside for old in ("1", "2", "3")] == [False, True, True]


THING = '''
def clip(x):
    """Bring x into [0, 1]."""
    return min(x, 1.0) if x > 0 else 0.0


def count(n):
    """Count to n."""
    total = 0
    while n > 0:
        n -= 1
        total += 1
    return total


def unused(n):
    """Nobody tests it."""
    return n + n
'''
TEST_THING = """
import pytest
from room.thing import clip, count

@pytest.fixture(scope="module")
def half():
    return clip(0.5)

def test_clip():
    assert [clip(x) for x in (-1, 0.1, 2.0)] == [0.0, 0.1, 1.0]

def test_half(half):
    assert half == 0.5

def test_count():
    assert count(3) == 3
"""
RUNNER = """
import json, sys
from pathlib import Path
from tests.mutation import run
from tests.mutation.operators import mutants
root = Path.cwd()
path, tests = root / "room" / "thing.py", ("tests/test_thing.py",)
run.os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
reach = run.reached(path, tests, root)
found = mutants(path.read_text(), "room/thing.py")
outcomes = {}
def job(mutant):
    order = run.ordered(reach, mutant.statement)
    return run.Job(mutant.id.partition(" | ")[2], path, mutant.tree(path.read_text()), tests, order, 5.0, root=root)
def report(job):
    outcomes[job.name] = run.outcome(job), job.result.get("by"), job.result["code"]
run.run(map(job, found), 2, report)
print(json.dumps({"reach": {name: row["lines"] for name, row in reach.items()}, "outcomes": outcomes}))
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The runner on a small package, in a process that has not imported it."""
    root = tmp_path_factory.mktemp("toy")
    for name, text in (("room/thing.py", THING), ("tests/test_thing.py", TEST_THING)):
        (root / name).parent.mkdir()
        (root / name).write_text(text)
    environment = os.environ | {"PYTHONPATH": f"{mutate.ROOT}{os.pathsep}{root}"}
    words = [sys.executable, "-c", textwrap.dedent(RUNNER)]
    ended = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.slow
def test_a_toys_faults_are_killed_and_its_equivalents_survive(toy):
    survivors = {name for name, (outcome, *_) in toy["outcomes"].items() if outcome == "SURVIVED"}
    assert {name.partition(" | ")[2] for name in survivors} == {"comparison: x > 0 -> x >= 0", "arithmetic: n + n -> n - n"}
    assert len(toy["outcomes"]) == 14


@pytest.mark.slow
def test_a_mutant_is_killed_by_the_test_that_reaches_it(toy):
    by = {name.partition(" | ")[2]: test for name, (_, test, _) in toy["outcomes"].items()}
    assert by["statement dropped: total += 1 -> "] == "tests/test_thing.py::test_count"
    assert "clip" in by["constant: 1.0 -> 2.0"] or "half" in by["constant: 1.0 -> 2.0"]


@pytest.mark.slow
def test_a_hang_counts_as_killed(toy):
    (hang,) = [row for name, row in toy["outcomes"].items() if "statement dropped: n -= 1" in name]
    assert hang[:2] == ["killed", None] and hang[2] < 0  # a signal


@pytest.mark.slow
def test_what_a_fixture_reaches_counts_for_every_test_of_the_file(toy):
    lines = {name.partition("::")[2]: lines for name, lines in toy["reach"].items()}
    assert 4 in lines["test_clip"] and 4 in lines["test_half"] and 4 in lines["test_count"]
    assert 11 in lines["test_count"] and 11 not in lines["test_clip"] and 18 not in lines["test_count"]


def test_a_tests_seconds_are_also_those_of_the_processes_that_it_waits_for():
    before = run._seconds()
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    assert run._seconds() - before > 0.05


class TestResults:
    """What a later run takes over."""

    @pytest.fixture
    def mutant(self, monkeypatch):
        texts = {"source": "a", "tests": "t"}
        monkeypatch.setattr(mutate, "_text", lambda file: texts["source"])
        monkeypatch.setattr(mutate, "_tests_digest", lambda file: texts["tests"])
        mutant = SemanticMutant("toy", "privacy/noise.py", "a", "b")
        mutant.__dict__["texts"] = texts
        return mutant

    @pytest.mark.parametrize(
        ("outcome", "change", "known"),
        [
            ("killed", None, True),
            ("killed", "tests", True),
            ("killed", "source", False),
            ("SURVIVED", None, True),
            ("SURVIVED", "tests", False),
            ("SURVIVED", "source", False),
        ],
    )
    def test_a_later_run_goes_on(self, tmp_path, mutant, outcome, change, known):
        job = mutate.Job("toy", tmp_path, None, (), facts=mutate._state(mutant), result={"seconds": 1.0, "by": "test"})
        if change:
            mutant.texts[change] = "changed"  # perhaps while the mutant runs
        mutate.Results(tmp_path / "results.json").add(mutant, outcome, job)
        row = mutate.Results(tmp_path / "results.json").of(mutant)
        assert (row is not None) == known
        assert not known or row["outcome"] == outcome

    def test_nothing_is_kept_without_a_file(self, tmp_path, mutant):
        mutate.Results(None).add(mutant, "killed", mutate.Job("toy", tmp_path, None, (), result={"seconds": 1.0}))
        assert mutate.Results(None).of(mutant) is None


def test_the_projects_mutants_have_a_name_each_and_are_code_that_differs():
    """A syntax error would fail every test, and so would be killed without being tested."""
    assert len({mutant.id for mutant in EVERY}) == len(EVERY) > 1000
    for mutant in EVERY[::20] + list(SEMANTIC):
        source = (mutate.SOURCE / mutant.file).read_text()
        tree = mutant.tree(source)
        compile(tree, mutant.file, "exec")
        assert ast.unparse(tree) != ast.unparse(ast.parse(source))


def test_every_module_of_the_listed_rooms_has_mutants():
    files = {mutant.file for mutant in EVERY}
    assert {file for file in mutate.FILES if not file.endswith("__init__.py")} == files
    assert {mutant.file for mutant in SEMANTIC} <= files


def test_a_modules_tests_exist():
    missing = [test for mutant in EVERY for test in mutate.tests_of(mutant.file) if not (mutate.ROOT / test).is_file()]
    assert missing == []


def test_every_equivalent_mutant_exists_and_says_why():
    reasons = mutate.equivalents()
    assert set(reasons) <= {mutant.id for mutant in EVERY}
    assert all(reasons.values())


def test_mutants_are_chosen_by_words_and_by_a_sample_that_others_do_not_shift():
    assert {mutant.file for mutant in mutate.chosen(EVERY, ["privacy/noise.py", "poisson.py"], None, "0")} == {
        "privacy/noise.py",
        "privacy/poisson.py",
    }
    sample = mutate.chosen(EVERY, [], 8, "0")
    assert len(sample) == 8 and all(mutant.file.startswith(mutate.QUICK) for mutant in sample)
    assert mutate.chosen(EVERY, [], 8, "1") != sample
    fewer = [mutant for mutant in EVERY if mutant in sample or hash(mutant.where) % 2]
    assert mutate.chosen(fewer, [], 8, "0") == sample


def test_a_listing_names_places(capsys):
    assert mutate.main(["--list", "privacy/poisson.py"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5 and all(line.startswith("privacy/poisson.py") for line in lines)


@pytest.mark.slow
def test_a_sample_of_the_projects_mutants_is_killed():
    """Another sample each time: DPSAPF_MUTATION_SEED=$(git rev-parse HEAD)."""
    seed = os.environ.get("DPSAPF_MUTATION_SEED", "0")
    words = [sys.executable, "-m", "tests.mutation.mutate", "--sample", "6", "--seed", seed]
    ended = subprocess.run(words, cwd=mutate.ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
