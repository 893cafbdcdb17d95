"""Slurm as a few commands that print what a test writes, and the executor plugin that is changed for it."""

import os
import types

import pytest

from dpsapf.cli import slurm
from dpsapf.cli.slurm import Site

REPLACED = {
    "run_jobs": ["self", "jobs"],
    "run_job": ["self", "job"],
    "cancel": ["self"],
    "shutdown": ["self"],
    "get_account_arg": ["self", "job"],
    "check_active_jobs": ["self", "active_jobs"],
    "_report_job_submission_threadsafe": ["self", "job_info"],
    "_report_job_error_threadsafe": ["self", "job_info", "msg"],
}
"""Methods of the plugin's executor that are replaced, and what they are called with."""
SETTINGS = {"init_seconds_before_status_checks": 10, "status_attempts": 2, "status_command": "squeue"}
SETTINGS |= {"keep_successful_logs": True, "requeue": False, "no_requeue": False, "qos": None, "reservation": None}
SETTINGS |= {"pass_command_as_script": False}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Commands sacct and squeue that print what a test writes."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def answer(name, text, code=0):
        (tmp_path / f"{name}.txt").write_text(text)
        (tmp_path / name).write_text(f"#!/bin/sh\ncat {tmp_path}/{name}.txt; exit {code}\n")
        (tmp_path / name).chmod(0o755)

    return answer


@pytest.fixture
def mended(monkeypatch, tmp_path):
    """The plugin's own executor, changed for one test; looks are answered by the test."""
    plugin = pytest.importorskip("snakemake_executor_plugin_slurm")
    for name in REPLACED:
        monkeypatch.setattr(plugin.Executor, name, getattr(plugin.Executor, name))
    monkeypatch.setattr(plugin.Executor, "mended", False, raising=False)
    monkeypatch.setattr(plugin, "query_job_status", plugin.query_job_status)
    slurm.mend(tmp_path, Site())
    return plugin


class Limiter:
    """Lets everybody in."""

    async def __aenter__(self):
        pass

    async def __aexit__(self, *_):
        pass


@pytest.fixture
def executor(mended, tmp_path):
    """Make an executor that tells what became of jobs: (id, how it ended)."""

    def make(ended):
        quiet = types.SimpleNamespace(**{name: lambda *_, **__: None for name in ("debug", "info", "warning", "error")})
        made = object.__new__(mended.Executor)
        workflow = types.SimpleNamespace(executor_settings=types.SimpleNamespace(**SETTINGS), workdir_init=str(tmp_path))
        made.__dict__ |= {"workflow": workflow, "logger": quiet, "run_uuid": "run", "status_rate_limiter": Limiter()}
        made.__dict__ |= {"_preemption_warning": False, "_next_seconds_between_status_checks": 170, "_main_event_loop": None}
        made.__dict__ |= {"_status_query_calls": 0, "_status_query_failures": 0, "_status_query_total_seconds": 0.0}
        made.__dict__ |= {"_status_query_min_seconds": None, "_status_query_max_seconds": 0.0, "_status_query_cycle_rows": []}
        made.__dict__ |= {"slurm_logdir": tmp_path, "_failed_nodes": set(), "_partitions": None, "_fallback_partition": "p"}
        made.report_job_submission = lambda job: ended.append((job.external_jobid, "submitted"))
        made.report_job_error = lambda job, **_: ended.append((job.external_jobid, "failed"))
        made.report_job_success = lambda job: ended.append((job.external_jobid, "done"))
        made.format_job_exec = lambda job: "true"
        return made

    return make
