import json
import subprocess
import sys
from pathlib import Path

import pytest

from dpsapf.cli.commands import COMMANDS
from dpsapf.cli.main import main

ROOT = Path(__file__).parents[2]
CANDIDATES = "matrix,layer,block,candidates\nb.attn1.to_q,b.attn1,b,attention\nb.attn1.to_v,b.attn1,b,attention\n"


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def prepare(folder, *extra, name="digits"):
    files = [
        "--archive",
        folder / "dataset.safetensors",
        "--record",
        folder / "dataset.json",
        "--preview",
        folder / "preview.png",
    ]
    return main(["prepare-dataset", "--name", name, *map(str, files), "--quiet", *extra])


def plan(folder, *extra):
    (folder / "candidates.csv").write_text(CANDIDATES)
    words = [
        "plan-privacy",
        "--candidate-table",
        folder / "candidates.csv",
        "--dataset",
        folder / "dataset.json",
        "--public-model",
        "public-mini",
        "--out",
        folder / "plan.json",
    ]
    return main([*map(str, words), "--steps", "5", "--expected-batch-size", "100", *extra])


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_of_every_command(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--dry-run" in text and "--log" in text


def test_help_has_units_and_defaults(capsys):
    assert main(["sample", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "sampler steps [steps] [default: 25]" in text


def test_importing_the_command_line_is_light():
    code = (
        "import sys, dpsapf.cli.main, dpsapf.cli.rules, dpsapf.saliency.plan, dpsapf.saliency.select, dpsapf.datasets.prepare, "
        "dpsapf.aggregation.collect, dpsapf.aggregation.aggregate, paper_figures.draw; assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_dry_run_says_what_it_would_do_and_does_nothing(tmp_path, capsys):
    assert prepare(tmp_path, "--dry-run") == 0
    text = capsys.readouterr().out
    assert f"writes  {tmp_path}/dataset.safetensors" in text and "name = digits" in text
    assert list(tmp_path.iterdir()) == []


def test_a_stage_saves_its_options_and_log_beside_its_output(tmp_path):
    assert prepare(tmp_path, "--log", str(tmp_path / "logs" / "x.log")) == 0
    saved = json.loads((tmp_path / "prepare-dataset.options.json").read_text())
    assert saved["options"]["name"] == "digits" and saved["provenance"]["python"]
    assert (tmp_path / "logs" / "x.log").exists()


def test_plan_from_the_command_line(tmp_path):
    prepare(tmp_path)
    assert plan(tmp_path, "--method", "dp-lora", "--epsilon", "3") == 0
    assert json.loads((tmp_path / "plan.json").read_text())["planned_epsilon"]["pld"] <= 3


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--method", "dp-lora", "--epsilon", "-1"], "--epsilon = '-1': must be greater than 0"),
        (["--method", "dp-lora"], "epsilon = None: method dp-lora needs it"),
        (
            ["--method", "dp-sapf", "--epsilon", "1", "--level", "matrix", "--ratio", "2", "--sigma-s", "5"],
            "--ratio = '2': must be at most 1",
        ),
        (["--method", "dp-sapf", "--epsilon", "0.1", "--level", "matrix", "--ratio", "0.3", "--sigma-s", "5"], "cannot be met"),
        (["--method", "dp-lora", "--epsilon", "1", "--delta", "0.5"], "--delta = '0.5': must be at most 0.1"),
    ],
)
def test_bad_options_end_in_one_line_and_leave_nothing(tmp_path, capsys, extra, message):
    prepare(tmp_path)
    assert plan(tmp_path, *extra) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "plan.json").exists()


def test_a_missing_input_names_the_option(tmp_path, capsys):
    assert plan(tmp_path, "--method", "dp-lora", "--epsilon", "1") == 2
    assert "--dataset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--method", "dp-lora", "--epsilonn", "1"], "Did you mean --epsilon?"),
        (["--method", "dp-lara"], "--method = 'dp-lara': must be one of dp-sapf, "),
        (["--method"], "--method requires an argument"),
    ],
)
def test_an_unknown_option_or_method_is_refused(tmp_path, capsys, extra, message):
    prepare(tmp_path)
    assert plan(tmp_path, *extra) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("dpsapf plan-privacy: ")


def test_an_unknown_command_is_refused(capsys):
    assert main(["fintune"]) == 2
    assert 'Did you mean "finetune"?' in capsys.readouterr().err


def test_all_mistakes_of_a_command_line_come_at_once(tmp_path, capsys):
    prepare(tmp_path)
    assert plan(tmp_path, "--method", "dp-lora", "--epsilon", "nan", "--saliency.votes", "0", "--seed", "x") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" = ")[0] for line in lines] == [
        f"dpsapf plan-privacy: {option}" for option in ("--epsilon", "--seed", "--saliency.votes")
    ]


def test_a_corrupt_record_names_the_file(tmp_path, capsys):
    (tmp_path / "dataset.json").write_text("{")
    assert plan(tmp_path, "--method", "dp-lora", "--epsilon", "1") == 2
    assert "dataset.json = 'not JSON': give the record that a stage wrote" in capsys.readouterr().err
    (tmp_path / "dataset.json").write_text('{"name": "x", "nam": 1}')
    assert plan(tmp_path, "--method", "dp-lora", "--epsilon", "1") == 2


def test_only_folders_of_results_need_no_name(tmp_path, capsys):
    for words in (["merge", "a", "b", "--out", "c"], ["check", "a"], ["check", "--results", "a"]):
        assert main([*words, "--dry-run"]) == 2
        assert "--results = 'a': does not exist" in capsys.readouterr().err
    assert main(["draw-figures", "a", "b"]) == 2
    assert "does not exist" not in capsys.readouterr().err
