"""A real small run with real noise: killed twice while it is made, then finished, and made again for every reason."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dpsapf.experiment.registries import load_yaml
from dpsapf.support.files import sha256

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CHECKOUT = ("Snakefile", "workflow", "config", "slurm", "profiles", "envs", "dpsapf", "paper_figures")
FOREVER = 2_000_000_000  # seconds since 1970


class Owner:
    """A checkout, a working folder with results, and the record of spends."""

    def __init__(self, work, checkout, spends):
        self.work, self.checkout, self.spends = work, checkout, spends

    @property
    def results(self):
        return self.work / "results" / "ci"

    @property
    def run(self):
        (run,) = (path for path in (self.results / "runs").iterdir() if "dp-sapf" in path.name)
        return run

    @property
    def scores(self):
        (scores,) = (self.results / "cache" / "scores").iterdir()
        return scores

    def words(self, *extra):
        command = [sys.executable, "-m", "snakemake", "-s", str(self.checkout / "Snakefile"), "--directory", str(self.work)]
        return [*command, "--cores", "1", "--configfile", str(self.work / "config.yaml"), *extra]

    @property
    def environment(self):
        own = {"PYTHONPATH": str(self.checkout), "OMP_NUM_THREADS": "1", "DPSAPF_SPENDS": str(self.spends)}
        return os.environ | own

    def start(self, *extra):
        words = self.words(*extra)
        return subprocess.run(words, cwd=self.work, env=self.environment, capture_output=True, text=True, check=False)

    def finish(self, *extra):
        result = self.start(*extra)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stderr

    def kill_when(self, comes):
        """Kill Snakemake and its stages as soon as a path is there."""
        process = subprocess.Popen(
            self.words("--rerun-incomplete"),
            cwd=self.work,
            env=self.environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not list(self.results.glob(comes)):
            time.sleep(0.005)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.start("--unlock")

    def elsewhere(self, folder):
        """Copy the working folder as cp -r does, without times and without Snakemake's notes."""
        shutil.copytree(self.work, folder, ignore=shutil.ignore_patterns(".snakemake"), copy_function=shutil.copy)
        return Owner(folder, self.checkout, self.spends)

    @property
    def released(self):
        """Digests of what was released, and of what says so."""
        files = [self.run / name for name in ("plan.json", "selection.csv", "weights.safetensors", "private.json", "spend.json")]
        return {path.name: sha256(path) for path in [*files, self.run / "ledger.json", self.scores / "scores.csv"]}

    @property
    def spent(self):
        """Digests that are on record as spent."""
        record = self.spends / "spends.jsonl"
        lines = [json.loads(line)["told"] for line in record.read_bytes().splitlines()] if record.exists() else []
        return [line["key"] for line in lines if line["kind"] == "spent"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run, finished after it was killed while its scores and its weights were kept."""
    work, spends = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("owner") / "spends"
    config = load_yaml(ROOT / "config" / "ci.yaml")
    config |= {f"{name}_file": str(ROOT / "config" / f"{name}.yaml") for name in ("datasets", "public_models", "protocols")}
    config["studies"]["main"]["method"] = ["dp-sapf"]
    config["privacy"]["noise"] = "system"
    (work / "config.yaml").write_text(yaml.safe_dump(config))
    owner = Owner(work, ROOT, spends)
    owner.kill_when("cache/scores/*/private.released/*/kept.json")
    owner.kill_when("runs/*dp-sapf*/private.released/*/kept.json")
    owner.finish("--rerun-incomplete")
    return owner


@pytest.fixture
def owner(finished, tmp_path):
    """The finished run, in a copy of its own, with what Snakemake knows of it; the record of spends is one."""
    shutil.copytree(finished.work, tmp_path / "work", symlinks=True, copy_function=shutil.copy2)
    return Owner(tmp_path / "work", ROOT, finished.spends)


def test_killed_while_it_is_kept_it_is_released_once(finished):
    assert sorted(finished.spent) == sorted([finished.released["scores.csv"], finished.released["weights.safetensors"]])


def update(owner, tmp_path):
    """Another version of the code: a line that every stage imports, and a folder that no commit is known of."""
    checkout = tmp_path / "checkout"
    for name in CHECKOUT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, checkout / name) if checkout.exists() else (checkout.mkdir(), copy(ROOT / name, checkout / name))
    with (checkout / "dpsapf" / "support" / "files.py").open("a") as file:
        file.write("\nUPDATED = True\n")
    return Owner(owner.work, checkout, owner.spends)


def touch(owner, tmp_path):
    for path in (
        *owner.results.glob("cache/latents/*/latents.safetensors"),
        owner.scores / "scores.csv",
        owner.run / "plan.json",
    ):
        path.touch()
    return owner


def future(owner, tmp_path):
    for path in (
        *owner.results.glob("cache/latents/*/latents.safetensors"),
        owner.scores / "scores.csv",
        owner.run / "plan.json",
    ):
        os.utime(path, (FOREVER, FOREVER))
    for path in (owner.scores / "scores.csv", owner.run / "weights.safetensors", owner.run / "ledger.json"):
        path.unlink()  # what is missing is made again if what needs it is
    return owner


def copy(owner, tmp_path):
    return owner.elsewhere(tmp_path / "clone")


def delete(owner, tmp_path):
    for folder in (owner.run, owner.scores):
        for path in folder.iterdir():
            if path.is_file():
                path.unlink()
    return owner


def delete_weights(owner, tmp_path):
    for name in ("weights.safetensors", "ledger.json"):
        (owner.run / name).unlink()
    return owner


def cut(owner, tmp_path):
    os.truncate(owner.run / "private.json", 7)
    (owner.run / "ledger.json").unlink()
    result = owner.start()
    assert result.returncode != 0 and "run the same command again, which puts it back" in result.stderr
    (owner.run / "private.json").unlink()
    return owner


@pytest.mark.parametrize("happens", [update, touch, future, copy, delete, delete_weights, cut])
def test_whatever_happens_nothing_is_released_again_and_the_ledger_is_the_same(owner, tmp_path, happens):
    released, spent = owner.released, owner.spent
    after = happens(owner, tmp_path)
    after.finish("--rerun-incomplete")
    assert after.released == released and after.spent == spent
    assert "Nothing to be done" in after.finish()


def test_touched_inputs_make_nothing_again(owner):
    """Large ones, too: they count by what is in them."""
    touch(owner, None)
    assert "Nothing to be done" in owner.finish()


def test_another_plan_under_the_same_name_is_refused_and_changes_nothing(owner):
    released, spent = owner.released, owner.spent
    config = yaml.safe_load((owner.work / "config.yaml").read_text())
    config["privacy"] |= {"steps": 4, "clipping_norm": 0.5}
    (owner.work / "config.yaml").write_text(yaml.safe_dump(config))
    result = owner.start()
    assert result.returncode != 0 and owner.spent == spent
    for told in ("dp-sgd: steps = 4", "clipping_norm = 0.5", "was released with 3", "spend-again"):
        assert told in result.stderr
    assert owner.released == released


def test_a_run_whose_folder_is_gone_is_refused_and_not_made_again(owner):
    (spent, run) = owner.spent, owner.run
    shutil.rmtree(run)
    result = owner.start("--rerun-incomplete")
    assert result.returncode != 0 and owner.spent == spent
    assert run.name in result.stderr and "spend-again" in result.stderr
