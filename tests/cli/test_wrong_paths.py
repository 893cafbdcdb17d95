"""Command lines that name the wrong thing, for every command: one line for each mistake, with the option and the remedy."""

import logging
import re
import typing
from pathlib import Path

import pytest

from dpsapf.cli.commands import COMMANDS
from dpsapf.cli.main import main
from dpsapf.experiment.fields import READS, WRITES
from dpsapf.experiment.records import Ledger, Plan
from dpsapf.support.errors import UserError
from dpsapf.support.records import read_record, write_record

NUMBERS = {int: "2", float: "0.01"}
ROOT = Path(__file__).parents[2]


def path_fields(command):
    return {name: field for name, field in command.options.model_fields.items() if field.json_schema_extra in (READS, WRITES)}


def words_of(command, folder):
    """A command line that would pass: each required option, files that are there for inputs."""
    words = [command.name]
    for name, field in command.options.model_fields.items():
        if not field.is_required():
            continue
        if name in path_fields(command):
            value = folder / f"{name}.json"
            if field.json_schema_extra == READS:
                value.mkdir(exist_ok=True) if field.title == "folder" else value.touch()
        else:
            value = NUMBERS.get(field.annotation) or next(iter(typing.get_args(field.annotation)), "x")
        words += ["--" + name.replace("_", "-"), str(value)]
    return words


OPTIONS = [(command, name) for command in COMMANDS.values() for name in path_fields(command)]


@pytest.mark.parametrize(("command", "name"), OPTIONS, ids=lambda item: getattr(item, "name", item))
def test_the_wrong_kind_is_told_by_its_option(command, name, tmp_path, capsys):
    """A folder where a file is due, a file where a folder is due: of each option of each command."""
    words, field, option = words_of(command, tmp_path), command.options.model_fields[name], "--" + name.replace("_", "-")
    wrong = tmp_path / "wrong"
    if field.title == "file or folder":
        pytest.skip("takes both")
    wrong.touch() if field.title == "folder" else wrong.mkdir()
    if option in words:
        words[words.index(option) + 1] = str(wrong)
    else:
        words += [option, str(wrong)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"dpsapf {command.name}: {option} = '{wrong}': is a {'file' if field.title == 'folder' else 'folder'}, and a" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
def test_every_option_that_is_missing_is_told_at_once(command, capsys):
    needed = [name for name, field in command.options.model_fields.items() if field.is_required()]
    assert main([command.name]) == 2
    lines = capsys.readouterr().err.splitlines()
    told = [line.split(": ")[1].split(" = ")[0] for line in lines]
    assert told == ["--" + name.replace("_", "-") for name in needed]
    assert all(" = None: is required: " in line for line in lines)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
def test_outside_the_checkout_a_default_file_has_a_remedy_that_works(command, tmp_path, monkeypatch, capsys):
    names = [name for name, field in path_fields(command).items() if isinstance(field.default, Path)]
    monkeypatch.chdir(tmp_path)
    if names:
        assert main(words_of(command, tmp_path)) == 2
        said = capsys.readouterr().err
        for name in names:
            assert f"--{name} = " in said and "does not exist here: give its path, or run the command in the folder" in said


def test_a_plan_in_the_place_of_a_ledger_is_named(tmp_path, plan):
    write_record(tmp_path / "plan.json", plan)
    with pytest.raises(UserError) as caught:
        read_record(tmp_path / "plan.json", Ledger)
    assert str(caught.value) == f"{tmp_path}/plan.json = 'plan': a ledger is due: give that"


def test_a_record_with_a_mistake_is_still_told_key_by_key(tmp_path, plan):
    write_record(tmp_path / "plan.json", plan)
    text = (tmp_path / "plan.json").read_text().replace('"delta"', '"dleta"')
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match="dleta = .*: unknown key"):
        read_record(tmp_path / "plan.json", Plan)


def test_the_log_of_a_job_that_succeeds_says_what_was_read_and_written_and_how_long_it_took(tmp_path, plan, monkeypatch):
    """Whatever the stage itself says: the command does, for all of them."""
    monkeypatch.chdir(ROOT)
    words = ["fetch-public-model", "--name", "public-mini", "--out", str(tmp_path / "fetched.txt")]
    assert main([*words, "--log", str(tmp_path / "log")]) == 0
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert re.fullmatch(rf"fetch-public-model: read config/public_models.yaml; wrote {tmp_path}/fetched.txt; \d+\.\d s", last)
    assert main([*words, "--quiet", "--log", str(tmp_path / "quiet")]) == 0
    assert (tmp_path / "quiet").read_text() == ""
    logging.getLogger().handlers.clear()


def test_a_log_that_cannot_be_written_is_told_by_its_option(tmp_path, capsys):
    (tmp_path / "file").touch()
    for log, remedy in (
        (tmp_path, "is a folder, and a file is due"),
        (tmp_path / "file" / "x.log", "file is a file: name a path in"),
    ):
        assert main([*words_of(COMMANDS["check"], tmp_path), "--log", str(log)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"--log = '{log}': " in line and remedy in line


WRITERS = [command for command in COMMANDS.values() if any(f.json_schema_extra == WRITES for f in path_fields(command).values())]


@pytest.mark.parametrize("command", WRITERS, ids=lambda command: command.name)
def test_an_output_below_a_file_or_at_another_ones_path_is_told(command, tmp_path, capsys):
    (tmp_path / "file").touch()
    name = next(name for name, field in path_fields(command).items() if field.json_schema_extra == WRITES)
    option = "--" + name.replace("_", "-")
    for path, remedy in ((tmp_path / "file" / "x", "is a file: name a path in a folder"), (None, "give it one of its own")):
        words = words_of(command, tmp_path)
        other = next((word for word in words if word.startswith(str(tmp_path)) and Path(word).is_file()), None)
        if (path or other) is None:
            continue
        place = words.index(option) + 1 if option in words else None
        words = [*words[:place], str(path or other), *words[place + 1 :]] if place else [*words, option, str(path or other)]
        assert main(words) == 2
        assert any(f"{option} = '{path or other}': " in line and remedy in line for line in capsys.readouterr().err.splitlines())
