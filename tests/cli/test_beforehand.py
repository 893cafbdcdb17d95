"""A dry run makes every check of what is known before the first job, and tells all mistakes at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpsapf.cli.beforehand import CHECKS, Start, asked, check_beforehand
from dpsapf.experiment.settings import parse_config
from dpsapf.support.errors import UserErrors
from dpsapf.support.yaml_files import load_yaml
from tests.beforehand import MISTAKES, Work

ROOT = Path(__file__).parents[2]
NO_GPU = {"PATH": "", "CUDA_VISIBLE_DEVICES": ""}  # whatever this machine has


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in NO_GPU.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    return Work(tmp_path)


def read(work):
    work.write()
    return parse_config(load_yaml("config.yaml"))


def test_every_check_has_a_mistake_that_it_finds():
    assert list(MISTAKES) == [check.__name__ for check in CHECKS]


def test_a_sound_config_passes_every_check(work):
    check_beforehand(read(work), work.layout, local=True)
    work.prepared("digits")
    check_beforehand(read(work), work.layout, local=True)


@pytest.mark.parametrize(("check", "mistake"), [(name, mistake) for name, rows in MISTAKES.items() for mistake in rows])
def test_each_mistake_is_found_by_its_check(work, check, mistake):
    expected, config = mistake(work), read(work)
    found = [str(error) for each in CHECKS if each.__name__ == check for error in each(Start.of(config, work.layout, local=True))]
    assert any(expected in line for line in found), found
    with pytest.raises(UserErrors) as caught:
        check_beforehand(config, work.layout, local=True)
    lines = str(caught.value).splitlines()
    assert any(expected in line for line in lines) and len(lines) == len(set(lines))


def test_a_cluster_has_its_own_devices(work):
    work.config["compute"]["device"] = "cuda"
    check_beforehand(read(work), work.layout, local=False)


def test_what_is_made_already_is_not_asked_for_again(work):
    """Raw images may be deleted once they are prepared, a model's folder likewise; tables are drawn without a GPU."""
    work.config["compute"]["device"] = "cuda"
    work.main["method"] = ["no-finetune"]
    work.datasets["digits"] |= {"loader": "image-folder", "source": "gone.zip"}
    work.public_models["public-mini"]["path"] = "gone"
    config = read(work)
    with pytest.raises(UserErrors) as caught:
        check_beforehand(config, work.layout, local=True)
    assert len(caught.value.errors) == 3
    work.prepared("digits")
    for file in (work.layout.model("public-mini", "model.json"), work.layout.run(config.runs[0].id, "metrics.json")):
        (work.folder / file).parent.mkdir(parents=True, exist_ok=True)
        (work.folder / file).touch()
    check_beforehand(config, work.layout, local=True)


def test_runs_that_nobody_asks_for_are_not_checked(work):
    """Of two datasets one is not there; the files of the other's runs can be made all the same."""
    work.uses(source="gone")
    config = read(work)
    (mine,) = (name for name in work.datasets if name.startswith("mine"))
    ours = [run for run in config.runs if run.dataset != mine]
    with pytest.raises(UserErrors, match=mine):
        check_beforehand(config, work.layout, local=True)
    named = [work.layout.run(run.id, "samples.npz") for run in ours]
    assert asked(config, work.layout, ["-n", *named]) == (ours, False)
    check_beforehand(config, work.layout, ["-n", *named], local=True)
    assert asked(config, work.layout, ["-n", named[0].replace("samples.npz", "metrics.json")]) == (ours[:1], True)


def test_what_is_not_evaluated_needs_no_protocol(work):
    """As docs/release.md says: a few images, and none held out."""
    work.config["sampling"]["count"] = 10
    work.datasets["digits"] |= {"test": 0}
    work.protocols[work.config["evaluation"]["protocol"]] |= {"least_images": 11}
    config = read(work)
    samples = [work.layout.run(run.id, "samples.npz") for run in config.runs]
    with pytest.raises(UserErrors) as caught:
        check_beforehand(config, work.layout, local=True)
    assert len(caught.value.errors) == 2
    check_beforehand(config, work.layout, samples, local=True)


def test_calls_that_start_nothing_are_not_refused(work):
    work.config["compute"]["device"] = "cuda"
    work.write()
    for word in ("--unlock", "--list-rules"):
        assert snakemake(work, word).returncode == 0
    assert snakemake(work, "-n").returncode


def test_a_dry_run_makes_every_check_and_tells_all_at_once(tmp_path):
    """Plans are tried where nothing else is wrong with what they are made from, and so in a second dry run."""
    names = set(MISTAKES)
    for number, tried in enumerate((names - {"plans_can_be_made"}, {"plans_can_be_made"})):
        (tmp_path / str(number)).mkdir()
        work = Work(tmp_path / str(number))
        expected = {name: MISTAKES[name][0](work) for name in MISTAKES if name in tried}
        work.write()
        said = dry_run(work)
        assert [name for name, line in expected.items() if line not in said] == []
        assert "Traceback" not in said


def snakemake(work, *words):
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--cores", "1", "--configfile", "config.yaml"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    return subprocess.run([*command, *words], cwd=work.folder, env=environment, capture_output=True, text=True, check=False)


def dry_run(work):
    result = snakemake(work, "-n")
    assert result.returncode
    return result.stdout + result.stderr
