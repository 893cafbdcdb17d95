"""YAML of a user: no key is lost, and what is wrong is told with its line."""

import random
import re
from pathlib import Path

import pytest
import yaml

from dpsapf.experiment.registries import load_yaml
from dpsapf.support.errors import UserError

ROOT = Path(__file__).parents[2]
READERS = re.compile(r"yaml\.\w*load\w*\(|yaml\.\w*Loader|from yaml import")


@pytest.fixture
def told(tmp_path):
    """What loading a text says, without the path; or the data."""

    def load(text):
        (tmp_path / "it.yaml").write_text(text)
        try:
            return load_yaml(tmp_path / "it.yaml")
        except UserError as error:
            return str(error).replace(str(tmp_path / "it.yaml"), "it")

    return load


@pytest.mark.parametrize(
    ("text", "line", "key", "first"),
    [
        ("privacy: {steps: 15, steps: 30}", 1, "privacy.steps", 1),
        ("studies:\n  main: {seed: [0]}\n  other: {}\n  main:\n    seed: [1]\n", 4, "studies.main", 2),
        ("a:\n- b: 1\n  c:\n    d: 1\n    'd': 2\n", 5, "a.0.c.d", 4),
        ("1: a\n1.0: b\n", 2, "1.0", 1),
        ("1: a\nyes: b\n", 2, "yes", 1),
        ("yes: a\ntrue: b\n", 2, "true", 1),
        ('{"name": "a",\n"name": "b"}', 2, "name", 1),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(told, text, line, key, first):
    assert told(text) == f"it: line {line} = '{key}': stands in line {first} already: leave one of the two out"


def test_keys_that_only_look_alike_are_two(told):
    assert told("1: a\n'1': b\n") == {1: "a", "1": "b"}


def test_all_keys_that_stand_twice_are_told_at_once(told):
    assert len(told("a: 1\nb: {c: 1, c: 2, c: 3}\na: 2\n").splitlines()) == 3


def test_wherever_a_key_is_repeated_in_a_shipped_file_it_is_found(told):
    """Guard: at each key of every config and registry, one after the other."""
    generator = random.Random(0)
    for path in [*sorted((ROOT / "config").glob("*.yaml")), ROOT / "slurm" / "site.yaml"]:
        lines = path.read_text().splitlines()
        keys = [number for number, line in enumerate(lines) if re.match(r" *[\w.-]+:( |$)", line)]
        assert isinstance(told("\n".join(lines)), dict), path
        for number in generator.sample(keys, min(len(keys), 12)):
            key = re.match(r" *[\w.-]+:", lines[number])[0]
            repeated = told("\n".join([*lines[:number], f"{key} {{}}", *lines[number:]]))
            assert f"it: line {number + 2} = " in repeated, (path, key)
            assert f"{key.strip(' :')}': stands in line {number + 1} already" in repeated


def test_merge_keys_and_aliases_go_on_working(told):
    text = "base: &b {a: 1, c: 1}\nmore: &m {d: 4}\nx:\n  <<: *b\n  a: 2\ny:\n  <<: [*b, *m]\nz: *b\nw:\n  <<: *b\n  <<: *m\n"
    assert told(text) == yaml.safe_load(text)
    assert told(text)["x"] == {"a": 2, "c": 1}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [1,\nc: 2\n", 4),
        ("a:\n  b: 1\n\tc: 2\n", 3),
        ("a: 1\nb: *none\n", 2),
        ("a: 1\nb: !!python/name:os.system\n", 2),
        ("a: 1\nb: \x01\n", 2),
        ("a: 1\n? [b]\n: 2\n", 2),
    ],
)
def test_what_is_not_yaml_names_its_line(told, text, line):
    said = told(text)
    assert said.startswith(f"it: line {line} = 'not YAML': ") and "\n" not in said


def test_a_date_that_there_is_not_is_told_in_one_line(told):
    assert told("a: 2026-13-01\n").startswith("it = 'not YAML': a value in it is none that there is: ")


def test_nothing_else_reads_yaml():
    """Contract: one loader, so that no place forgets a key that stands twice."""
    places = [*(ROOT / "dpsapf").rglob("*.py"), *(ROOT / "paper_figures").rglob("*.py"), *(ROOT / "docs").glob("*.py")]
    places += [*(ROOT / "workflow").rglob("*.smk"), ROOT / "Snakefile", *(ROOT / "envs").glob("*.py")]
    assert [path.name for path in places if READERS.search(path.read_text())] == ["yaml_files.py"]
