import json
import threading

import pytest

from dpsapf.release.records import Counted, Registered
from dpsapf.release.register import held
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from tests.published_run import DP_SGD, SALIENCY

LINE = Registered(
    run="a",
    dataset="shapes",
    unit="image",
    delta=1e-5,
    hyperparameters="public",
    images="1" * 64,
    weights=None,
    own=("s", "w"),
    counted=(Counted(key="s", release=SALIENCY), Counted(key="w", release=DP_SGD)),
    previous=None,
)
OTHER = replace(LINE, run="b", own=("s", "v"), counted=(LINE.counted[0], Counted(key="v", release=DP_SGD)))


@pytest.fixture
def path(tmp_path):
    """A register of two runs that share their scores."""
    path = tmp_path / "releases.jsonl"
    for line in (LINE, OTHER):
        with held(path) as register:
            register.add(line)
    return path


def test_lines_are_read_as_they_were_written_and_shared_releases_count_once(path):
    with held(path) as register:
        assert [line.run for line in register.lines] == ["a", "b"]
        assert set(register.released("image")) == {("s", SALIENCY), ("w", DP_SGD), ("v", DP_SGD)}
        assert [line.run for line in register.of_others(LINE)] == ["b"]
        assert register.of_others(replace(LINE, own=("x",)))[0].run == "a", "trained again, it is another run"


def test_lines_are_only_appended_and_an_equal_one_is_not(path):
    before = path.read_bytes()
    with held(path) as register:
        register.add(LINE)
    assert path.read_bytes() == before
    with held(path) as register:
        register.add(replace(LINE, weights="2" * 64))
    assert path.read_bytes().startswith(before) and len(path.read_bytes().splitlines()) == 3


def damaged(path, number, change):
    lines = path.read_text().splitlines()
    lines[number] = change(lines[number])
    path.write_text("".join(f"{line}\n" for line in lines if line is not None))


DAMAGE = {
    "no JSON": (lambda path: damaged(path, 0, lambda line: line[:-9]), "line 1 = .*: is damaged"),
    "a number changed": (
        lambda path: damaged(path, 0, lambda line: line.replace("0.7", "7.0")),
        "line 2: previous = .* was changed",
    ),
    "a line removed": (lambda path: damaged(path, 0, lambda _: None), "line 1: previous = .* was changed"),
    "a line twice": (lambda path: damaged(path, 1, lambda line: f"{line}\n{line}"), "line 3: previous = .* was changed"),
    "an unknown key": (lambda path: damaged(path, 1, lambda line: line.replace('"run"', '"ran"')), "line 2: ran"),
    "an empty line": (lambda path: damaged(path, 0, lambda line: f"{line}\n"), "line 2 = '': is damaged"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-20]), "last line = .*: was cut off"),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe\n"), "line 1 = .*: is damaged"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=list(DAMAGE))
def test_damage_is_named_and_nothing_is_appended(path, damage, message):
    damage(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=message), held(path) as register:
        register.add(replace(LINE, run="c"))
    assert path.read_bytes() == before


def test_another_unit_is_refused(path):
    with held(path) as register, pytest.raises(UserError, match="line 1: unit = 'image': this run protects one user"):
        register.released("user")


def test_a_register_that_nothing_was_written_to_is_gone(tmp_path):
    with pytest.raises(RuntimeError), held(tmp_path / "r.jsonl") as register:
        assert register.lines == [] and register.released("image") == {}
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("first", [LINE, None], ids=["published", "refused"])
def test_a_second_release_waits_for_the_first_and_counts_it(tmp_path, first):
    path, inside, seen = tmp_path / "r.jsonl", threading.Event(), []

    def second():
        with held(path) as register:
            seen.append([line.run for line in register.lines])
            register.add(OTHER)

    with held(path) as register:
        thread = threading.Thread(target=lambda: (inside.set(), second()))
        thread.start()
        inside.wait()
        thread.join(0.2)
        assert thread.is_alive() and seen == []
        if first:
            register.add(first)
    thread.join(10)
    assert seen == [["a"] if first else []]
    assert [json.loads(row)["run"] for row in path.read_text().splitlines()] == (["a", "b"] if first else ["b"])
