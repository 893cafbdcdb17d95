import asyncio
import importlib.metadata
import inspect
import os
import tomllib
import types
from pathlib import Path

import pytest

from dpsapf.cli import slurm
from dpsapf.cli.slurm import ACCOUNTING, QUEUE, Site, Watch
from dpsapf.support.errors import UserError, UserErrors
from tests.cli.conftest import REPLACED

ROOT = Path(__file__).parents[2]


def states(watch, *jobs, now=0.0):
    return asyncio.run(watch.states(set(jobs), lambda: now))


@pytest.mark.parametrize("command", [ACCOUNTING, QUEUE])
def test_states_are_told_in_the_executors_words(cluster, command):
    cluster(command[0], "1|CANCELLED by 0\n2|COMPLETED\n3|CANCELLED+\n4|RUNNING\n5|\n99|FAILED\n")
    found = states(Watch("run", command), "1", "2", "3", "4", "5")
    assert found == {"1": "CANCELLED", "2": "COMPLETED", "3": "CANCELLED", "4": "RUNNING", "5": "UNKNOWN"}


@pytest.mark.parametrize("text", ["", "1|PREEMPTED\n", "1|NODE_FAIL\n"])
def test_a_job_in_doubt_counts_as_failed_after_a_while(cluster, text):
    cluster("squeue", text)
    watch = Watch("run", QUEUE)
    assert states(watch, "1", now=100.0) == {"1": "PENDING"}
    assert states(watch, "1", now=100.0 + slurm.GRACE - 1) == {"1": "PENDING"}
    assert states(watch, "1", now=100.0 + slurm.GRACE) == {"1": "CANCELLED"}


def test_a_job_that_comes_back_into_the_queue_is_waited_for(cluster):
    watch = Watch("run", QUEUE)
    cluster("squeue", "1|PREEMPTED\n")
    states(watch, "1", now=0.0)
    cluster("squeue", "1|PENDING\n")
    assert states(watch, "1", now=60.0) == {"1": "PENDING"}
    cluster("squeue", "1|PREEMPTED\n")
    assert states(watch, "1", now=70.0) == {"1": "PENDING"}, "counted from the second time on"


def test_without_an_answer_nothing_is_concluded(cluster):
    cluster("squeue", "", 1)
    watch = Watch("run", QUEUE)
    assert states(watch, "1", now=0.0) == states(watch, "1", now=1e6) == {} and watch.doubted == {}


def test_an_answer_that_never_comes_is_none(tmp_path, monkeypatch):
    (tmp_path / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "ANSWER", 0.2)
    assert states(Watch("run", QUEUE), "1") == {}


@pytest.mark.parametrize(("code", "command"), [(0, ACCOUNTING), (1, QUEUE)])
def test_the_command_that_answers_is_chosen_and_told_once(cluster, caplog, code, command):
    caplog.set_level("INFO", "snakemake.logging")
    cluster("sacct", "1|RUNNING\n", code)
    cluster("squeue", "1|RUNNING\n")
    watch = Watch("run")
    for _ in range(2):
        assert states(watch, "1") == {"1": "RUNNING"}
    assert watch.command == command and caplog.text.count(f"States of jobs are asked of {command[0]}") == 1


def test_without_sacct_squeue_is_asked(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert slurm.chosen() == QUEUE


def test_the_executor_hears_of_cancelled_jobs_and_looks_again_soon(executor, cluster):
    cluster("squeue", "1|CANCELLED by 0\n2|COMPLETED\n3|RUNNING\n")
    cluster("sacct", "", 1)
    ended = []
    made = executor(ended)
    made.watch = Watch("run")
    jobs = [types.SimpleNamespace(external_jobid=job, aux={}) for job in ("1", "2", "3")]

    async def looked():
        return [job.external_jobid async for job in made.check_active_jobs(jobs)]

    assert asyncio.run(looked()) == ["3"] and sorted(ended) == [("1", "failed"), ("2", "done")]
    cluster("squeue", "3|RUNNING\n")
    jobs = jobs[2:]
    made.next_seconds_between_status_checks = 170
    assert asyncio.run(looked()) == ["3"] and made.next_seconds_between_status_checks == slurm.EVERY


def test_no_account_is_guessed(executor):
    job = types.SimpleNamespace(resources={})
    assert list(executor([]).get_account_arg(job)) == [""]


@pytest.mark.parametrize(
    ("site", "gpus", "expected"),
    [
        (Site(), 0, {}),
        (Site(), 2, {"gpu": 2}),
        (Site(account="a", partition="p", constraint="c"), 0, {"slurm_account": "a", "slurm_partition": "p", "constraint": "c"}),
        (Site(partition="p", gpu_partition="g", gpu_constraint="x"), 1, {"slurm_partition": "g", "constraint": "x", "gpu": 1}),
        (Site(partition="p", gpu_type="h100"), 1, {"slurm_partition": "p", "gpu": 1, "gpu_model": "h100"}),
        (Site(gpus_as="gres", gpu_type="h100"), 2, {"gres": "gpu:h100:2"}),
        (Site(gpus_as="gres"), 1, {"gres": "gpu:1"}),
    ],
)
def test_a_site_says_where_jobs_go(site, gpus, expected):
    assert site.resources(gpus) == expected


def test_the_sites_file_is_checked(tmp_path):
    assert Site.load(tmp_path / "none.yaml") == Site()
    (tmp_path / "site.yaml").write_text("acount: x\ngpus_as: gress\n")
    with pytest.raises(UserErrors) as told:
        Site.load(tmp_path / "site.yaml")
    assert "acount" in str(told.value) and "account" in str(told.value) and "gpus_as" in str(told.value)
    assert isinstance(told.value, UserError)


def test_the_file_that_is_shipped_decides_nothing():
    assert Site.load(ROOT / "slurm" / "site.yaml") == Site()


def test_what_is_replaced_is_there_and_is_called_as_it_is_replaced():
    plugin = pytest.importorskip("snakemake_executor_plugin_slurm")
    for name, parameters in REPLACED.items():
        assert list(inspect.signature(getattr(plugin.Executor, name)).parameters) == parameters, name
    looks = inspect.getsource(plugin.Executor.check_active_jobs)
    assert "await query_job_status(" in looks and "executor_settings.status_command" in inspect.getsource(plugin)
    assert "self.run_job," in inspect.getsource(plugin.Executor._submit_job), "looked up when a job is submitted"
    for name in ("next_seconds_between_status_checks", "run_uuid"):
        assert f"self.{name}" in inspect.getsource(plugin.Executor)


def test_all_that_is_replaced_is_listed(mended):
    """What a mended executor has of its own is what the list says."""
    own = {name for name, value in vars(mended.Executor).items() if getattr(value, "__module__", "") == slurm.__name__}
    assert own == set(REPLACED)


def test_another_version_of_the_plugin_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.9.1")
    with pytest.raises(UserError, match=r"2.9.1.*tried with 2.8 only: pip install 'snakemake-executor-plugin-slurm==2.8.\*'"):
        slurm.mend(tmp_path, Site())


def test_the_version_that_was_tried_is_the_one_that_is_asked_for_and_locked():
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"{slurm.PLUGIN}=={slurm.TRIED}.*" in asked
    assert f"\n{slurm.PLUGIN}=={slurm.TRIED}." in (ROOT / "envs" / "requirements.txt").read_text()
