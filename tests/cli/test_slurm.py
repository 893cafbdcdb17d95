import asyncio
import os
import types

import pytest

from dpsapf.cli import slurm
from dpsapf.cli.slurm import ACCOUNTING, QUEUE, Site, Watch
from dpsapf.support.errors import UserError, UserErrors


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Commands sacct and squeue that print what a test writes."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def answer(name, text, code=0):
        (tmp_path / f"{name}.txt").write_text(text)
        (tmp_path / name).write_text(f"#!/bin/sh\ncat {tmp_path}/{name}.txt; exit {code}\n")
        (tmp_path / name).chmod(0o755)

    return answer


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


@pytest.fixture
def mended(monkeypatch, tmp_path):
    """The plugin's own executor, changed for one test; looks are answered by the test."""
    plugin = pytest.importorskip("snakemake_executor_plugin_slurm")
    for name in ("run_jobs", "check_active_jobs", "get_account_arg"):
        monkeypatch.setattr(plugin.Executor, name, getattr(plugin.Executor, name))
    monkeypatch.setattr(plugin.Executor, "mended", False, raising=False)
    monkeypatch.setattr(plugin, "query_job_status", plugin.query_job_status)
    slurm.mend(tmp_path)
    return plugin


class Limiter:
    """Lets everybody in."""

    async def __aenter__(self):
        pass

    async def __aexit__(self, *_):
        pass


def executor(plugin, ended):
    logger = types.SimpleNamespace(**{name: lambda *_, **__: None for name in ("debug", "info", "warning", "error")})
    settings = types.SimpleNamespace(
        init_seconds_before_status_checks=10, status_attempts=2, status_command="squeue", keep_successful_logs=True, requeue=False
    )
    made = object.__new__(plugin.Executor)
    made.__dict__ |= {"workflow": types.SimpleNamespace(executor_settings=settings), "logger": logger, "run_uuid": "run"}
    made.__dict__ |= {"status_rate_limiter": Limiter(), "_preemption_warning": False, "_next_seconds_between_status_checks": 170}
    made.__dict__ |= {"_status_query_calls": 0, "_status_query_failures": 0, "_status_query_total_seconds": 0.0}
    made.__dict__ |= {"_status_query_min_seconds": None, "_status_query_max_seconds": 0.0, "_status_query_cycle_rows": []}
    made.report_job_error = lambda job, **_: ended.append((job.external_jobid, "failed"))
    made.report_job_success = lambda job: ended.append((job.external_jobid, "done"))
    return made


def test_the_executor_hears_of_cancelled_jobs_and_looks_again_soon(mended, cluster):
    cluster("squeue", "1|CANCELLED by 0\n2|COMPLETED\n3|RUNNING\n")
    cluster("sacct", "", 1)
    ended = []
    made = executor(mended, ended)
    made.watch = Watch("run")
    jobs = [types.SimpleNamespace(external_jobid=job, aux={}) for job in ("1", "2", "3")]

    async def looked():
        return [job.external_jobid async for job in made.check_active_jobs(jobs)]

    assert asyncio.run(looked()) == ["3"] and sorted(ended) == [("1", "failed"), ("2", "done")]
    cluster("squeue", "3|RUNNING\n")
    jobs = jobs[2:]
    made.next_seconds_between_status_checks = 170
    assert asyncio.run(looked()) == ["3"] and made.next_seconds_between_status_checks == slurm.EVERY


def test_no_account_is_guessed(mended):
    job = types.SimpleNamespace(resources={})
    assert list(executor(mended, []).get_account_arg(job)) == [""]


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
    assert Site.load(slurm.Path(__file__).parents[2] / "slurm" / "site.yaml") == Site()


def test_jobs_of_an_earlier_start_are_ended_before_new_ones_are_submitted(mended, tmp_path, cluster, monkeypatch):
    (tmp_path / "slurm-starts.txt").write_text("old\n")
    (tmp_path / "scancel").write_text(f"#!/bin/sh\necho $* >> {tmp_path}/cancelled; : > {tmp_path}/squeue.txt\n")
    (tmp_path / "scancel").chmod(0o755)
    cluster("squeue", "7 work old\n")
    made, submitted = executor(mended, []), []
    monkeypatch.setattr(type(made), "_submit_job", lambda self, job: submitted.append((tmp_path / "cancelled").read_text()))
    made._main_event_loop, made.array_jobs = None, set()
    job = types.SimpleNamespace(is_group=lambda: True, name="images")
    made.run_jobs([job])
    made.run_jobs([job])
    assert len(submitted) == 2 and submitted[0] == submitted[1] == f"--name=old --user={slurm.getpass.getuser()}\n"
    assert (tmp_path / "slurm-starts.txt").read_text() == "run\n"


def test_a_start_whose_jobs_do_not_end_is_not_forgotten(tmp_path, cluster):
    file = tmp_path / "starts.txt"
    file.write_text("stuck\n")
    (tmp_path / "scancel").write_text("#!/bin/sh\n")
    (tmp_path / "scancel").chmod(0o755)
    cluster("squeue", "7 work stuck\n")
    slurm.end_leftovers(file, "own", patience=0.0)
    assert file.read_text().split() == ["stuck", "own"]
    cluster("squeue", "")
    slurm.end_leftovers(file, "next", patience=0.0)
    assert file.read_text().split() == ["next"]
