"""What becomes of a job whose submission Slurm does not answer, by the plugin's own code."""

import threading
import time
import types

import pytest

from dpsapf.cli import slurm_queue
from dpsapf.cli.alone import user
from dpsapf.cli.slurm import AWAY, Watch

DOWN = "Batch job submission failed: Unable to contact slurm controller (connect failure)"
SBATCH = """#!/bin/sh
cd {folder}
echo $* >> calls
[ -s refusals ] && tail -n 1 refusals >&2 && sed -i '$d' refusals && exit 1
echo 7
"""


class Asks(dict):
    """What a job asks for, as Snakemake gives it."""

    def __getattr__(self, name):
        return self.get(name)


@pytest.fixture
def submit(executor, cluster, tmp_path, monkeypatch):
    """Submit a job to an sbatch that refuses a few times; returns what became of it, and how often sbatch was called."""
    monkeypatch.setattr(slurm_queue, "EVERY", 0.01)
    job = types.SimpleNamespace(name="finetune", jobid=1, wildcards=["run"], threads=1, is_group=lambda: False)
    job.rule, job.resources = types.SimpleNamespace(name="finetune"), Asks(runtime=5, mem_mb=100)

    def submitted(*refusals, ends=False):
        for name, text in {
            "sbatch": SBATCH.format(folder=tmp_path),
            "scancel": f"#!/bin/sh\necho $* >> {tmp_path}/cancelled\n",
        }.items():
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        (tmp_path / "refusals").write_text("".join(f"sbatch: error: {line}\n" for line in reversed(refusals)))
        made = executor(became := [])
        made.watch = Watch("run")
        if ends:
            made.watch.ends.set()
        made.run_job(job)
        return became, len((tmp_path / "calls").read_text().splitlines()), made

    return submitted


@pytest.mark.parametrize("words", AWAY)
def test_a_job_is_submitted_again_when_slurm_answers(submit, cluster, words):
    cluster("squeue", "")
    assert submit(f"Batch job submission failed: {words}", DOWN)[:2] == ([("7", "submitted")], 3)


def test_a_refusal_is_an_error_at_once(submit, cluster):
    cluster("squeue", "")
    assert submit("Batch job submission failed: Invalid partition name specified")[:2] == ([(None, "failed")], 1)


def test_no_job_waits_longer_than_the_site_says_and_only_once(submit, cluster, monkeypatch):
    monkeypatch.setattr("dpsapf.cli.slurm.wait_for_slurm", lambda minutes, ends: minutes != 120)
    became, calls, made = submit(DOWN)
    assert (became, calls) == ([(None, "failed")], 1) and made.watch.ends.is_set()


def test_nothing_is_submitted_before_slurm_answers(submit, cluster, tmp_path):
    cluster("squeue", "", 1)
    threading.Timer(0.3, lambda: cluster("squeue", "")).start()
    before = time.monotonic()
    assert submit()[:2] == ([("7", "submitted")], 1)
    assert time.monotonic() - before >= 0.3


def test_no_job_is_waited_for_when_the_start_ends(submit, cluster):
    cluster("squeue", "", 1)
    assert submit(DOWN, ends=True)[:2] == ([(None, "failed")], 1)


def test_a_job_that_slurm_took_without_saying_so_does_not_run_beside_its_repetition(submit, cluster, tmp_path):
    cluster("squeue", f"6 {user()}\n")
    assert submit("Batch job submission failed: Socket timed out on send/recv operation")[:2] == ([("7", "submitted")], 2)
    assert (tmp_path / "cancelled").read_text() == "6\n"


def test_jobs_that_are_known_are_left_alone(submit, cluster, tmp_path):
    cluster("squeue", f"7 {user()}\n")
    made = submit()[2]
    made.watch.cancel_unknown()
    assert not (tmp_path / "cancelled").exists()
