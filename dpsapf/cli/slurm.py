"""What Snakemake's Slurm executor leaves out, added here in the open, for the version that `TRIED` says and no other.

- It gives a job up when Slurm does not answer while the job is submitted. Here it waits, for as long as slurm/site.yaml says.
- It asks ``sacct``, and waits for ever where accounting is off. Here ``squeue`` is asked there; which of the two, is said once.
- It compares states by equality, and so never notices ``CANCELLED by 0``; nor a job that Slurm has forgotten; nor one that was
  preempted and not put back into the queue.
- Of a node that fails it asks the name, gets ``None assigned`` for a job that is back in the queue, and gives that to every
  later ``sbatch --exclude``, all of which fail. Here such a job is waited for; Slurm itself uses no node that is down.
- It looks ever more seldom, up to every three minutes. Here a look follows at most `EVERY` seconds after the last.
- Killed, it leaves its jobs behind, which would write beside those of the next start. Here the next start ends them first;
  those of another user it cannot end, and refuses.
- It guesses an account by a command that prints an error at each start. Here it is slurm/site.yaml's, or Slurm's default.
"""

import asyncio
import importlib
import importlib.metadata
import logging
import subprocess
import threading
import time
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from dpsapf.cli.slurm_queue import ANSWER, EVERY, LOG, Start, asked, note, wait_for_slurm
from dpsapf.support.checked import Checked, parse
from dpsapf.support.errors import UserError
from dpsapf.support.yaml_files import load_yaml

PLUGIN, TRIED = "snakemake-executor-plugin-slurm", "2.8"
GRACE = 30.0  # seconds for which a job may be in doubt before it counts as failed
DOUBTED = {"GONE", "PREEMPTED", "NODE_FAIL"}  # Slurm may put such a job back into its queue
ENDED_BY = dict.fromkeys(DOUBTED, "CANCELLED") | {"REVOKED": "CANCELLED", "SPECIAL_EXIT": "FAILED"}
ACCOUNTING = ("sacct", "-X", "--parsable2", "--noheader", "--format=JobIDRaw,State", "--starttime=now-2days")
QUEUE = ("squeue", "--noheader", "--states=all", "--format=%i|%T")
AWAY = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Zero Bytes were transmitted",
    "Communication connection failure",
    "Communication shutdown failure",
    "Message send failure",
    "Message receive failure",
    "controller in standby mode",
    "Connection refused",
    "Connection timed out",
    "establish a configuration source",
    "does not answer",
)
"""What sbatch, sinfo and others print when no controller answers; anything else is a refusal."""


@dataclass
class Watch:
    """What is known of the jobs of one run of the workflow.

    Attributes:
        run: the name that all of them have.
        command: which asks for their states; chosen at the first look.
        doubted: since when a job is unknown, preempted or on a node that failed, by its id [seconds].
        submitted: ids that Slurm has given.
        ends: set when no more jobs are wanted.
    """

    run: str
    command: tuple[str, ...] = ()
    doubted: dict[str, float] = field(default_factory=dict)
    submitted: set[str] = field(default_factory=set)
    ends: threading.Event = field(default_factory=threading.Event)

    async def states(self, jobs: set[str], clock: Callable[[], float] = time.monotonic) -> dict[str, str]:
        """Return the state of each job that is known, in the executor's words; {} if Slurm does not answer now.

        Args:
            jobs: ids of those that have not ended yet.
            clock: tells the time [seconds].
        """
        self.command = self.command or chosen()
        answer = await _answer(*self.command, f"--name={self.run}")
        if answer is None:
            return {}
        found = parsed(answer)
        return {job: self._settled(job, found.get(job, "GONE"), clock()) for job in jobs}

    def cancel_unknown(self) -> None:
        """Cancel jobs of this run whose ids Slurm did not give: their submission lost its answer, and is repeated."""
        unknown = [job for job, _ in Start(self.run).jobs if job not in self.submitted]
        if unknown:
            LOG.warning(f"Slurm took job {', '.join(unknown)} without saying so: cancelled, and submitted again")
            asked("scancel", *unknown)

    def _settled(self, job: str, state: str, now: float) -> str:
        """Wait a while before a job counts as ended that Slurm does not know, or may put back into its queue."""
        if state not in DOUBTED:
            self.doubted.pop(job, None)
            return ENDED_BY.get(state, state)
        since = self.doubted.setdefault(job, now)
        return ENDED_BY[state] if now - since >= GRACE else "PENDING"


def chosen() -> tuple[str, ...]:
    """Return the command that tells the states of jobs here: sacct where it answers, else squeue."""
    try:
        asked = subprocess.run([*ACCOUNTING, "--name=none"], capture_output=True, text=True, check=False, timeout=ANSWER)
        works, why = asked.returncode == 0, asked.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        works, why = False, str(error)
    command = ACCOUNTING if works else QUEUE
    LOG.info(f"States of jobs are asked of {command[0]}{f': {why}' if why else ''}")
    return command


def parsed(answer: str) -> dict[str, str]:
    """Map ids to the first word of their states, of lines like ``12|CANCELLED by 0``."""
    rows = (line.split("|", 1) for line in answer.splitlines() if "|" in line)
    return {job.strip(): (state.split() or ["UNKNOWN"])[0].rstrip("+") for job, state in rows}


async def _answer(*command: str) -> str | None:
    try:
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        told, _ = await asyncio.wait_for(process.communicate(), ANSWER)
    except (OSError, TimeoutError):
        return None
    return told.decode() if process.returncode == 0 else None


class Site(Checked):
    """The names of a cluster: slurm/site.yaml."""

    account: str | None = Field(None, description="who pays; null: Slurm's default")
    partition: str | None = Field(None, description="of jobs without a GPU; null: Slurm's default")
    gpu_partition: str | None = Field(None, description="of jobs with GPUs; null: partition")
    constraint: str | None = Field(None, description="of all jobs, such as a feature of nodes")
    gpu_constraint: str | None = Field(None, description="of jobs with GPUs; null: constraint")
    gpu_type: str | None = Field(None, description="such as h100; null: any", pattern=r"^[A-Za-z0-9_.]+$")
    gpus_as: typing.Literal["gpus", "gres"] = Field("gpus", description="gpus: --gpus=h100:1; gres: --gres=gpu:h100:1")
    away_min: float = Field(120, description="how long a start waits while Slurm does not answer [minutes]", ge=0)

    @classmethod
    def load(cls, path: Path) -> "Site":
        """Read the file; without one, Slurm decides everything.

        Raises:
            UserErrors: a line for every mistake.
        """
        return parse(cls, load_yaml(path), str(path)) if path.exists() else cls()

    def resources(self, gpus: int) -> dict[str, str | int]:
        """Return the resources, in the executor's names, that put a job of so many GPUs into the right place."""
        place = {"slurm_account": self.account, "slurm_partition": self.partition, "constraint": self.constraint}
        if gpus:
            place["slurm_partition"] = self.gpu_partition or self.partition
            place["constraint"] = self.gpu_constraint or self.constraint
            place |= self._gpus(gpus)
        return {name: value for name, value in place.items() if value is not None}

    def _gpus(self, gpus: int) -> dict[str, str | int | None]:
        if self.gpus_as == "gres":
            return {"gres": ":".join(["gpu", *([self.gpu_type] if self.gpu_type else []), str(gpus)])}
        return {"gpu": gpus, "gpu_model": self.gpu_type}


def check_version() -> None:
    """Check that the executor plugin is one that was tried with what is changed here.

    Raises:
        UserError: it is another.
    """
    found = importlib.metadata.version(PLUGIN)
    if found.split(".")[:2] != TRIED.split("."):
        remedy = f"parts of it are replaced here, which was tried with {TRIED} only: pip install '{PLUGIN}=={TRIED}.*'"
        raise UserError(PLUGIN, found, remedy)


def mend(results: Path, site: Site) -> None:
    """Change the executor plugin.

    Args:
        results: folder of the config's results, on which this Snakemake alone works once jobs are submitted.
        site: the cluster's names and limits.

    Raises:
        UserError: the plugin is of a version that was not tried.
    """
    check_version()
    plugin = importlib.import_module("snakemake_executor_plugin_slurm")
    if getattr(plugin.Executor, "mended", False):
        return
    plugin.Executor.mended = True
    _mend_start(plugin.Executor, results)
    _mend_submission(plugin.Executor, site)
    _mend_looks(plugin)


def _mend_start(executor: type, results: Path) -> None:
    begins, cancels, shuts, accounts = executor.run_jobs, executor.cancel, executor.shutdown, executor.get_account_arg

    def run_jobs(self: typing.Any, jobs: list) -> None:  # noqa: ANN401 - the plugin's own classes
        if getattr(self, "watch", None) is None:
            self.watch = Watch(self.run_uuid)
            note(results, self.run_uuid)
        begins(self, jobs)

    def ended(ends: Callable) -> Callable:
        def end(self: typing.Any) -> None:  # noqa: ANN401
            if getattr(self, "watch", None) is not None:
                self.watch.ends.set()
            ends(self)

        return end

    def get_account_arg(self: typing.Any, job: typing.Any) -> Iterator[str]:  # noqa: ANN401
        return accounts(self, job) if job.resources.get("slurm_account") else iter([""])

    executor.run_jobs, executor.get_account_arg = run_jobs, get_account_arg
    executor.cancel, executor.shutdown = ended(cancels), ended(shuts)


def _mend_submission(executor: type, site: Site) -> None:
    """Submit again what Slurm did not answer to; what it did take without saying so is cancelled first."""
    submits, notes, fails = executor.run_job, executor._report_job_submission_threadsafe, executor._report_job_error_threadsafe
    one = threading.RLock()

    def run_job(self: typing.Any, job: typing.Any) -> None:  # noqa: ANN401
        with one:
            if not self.watch.ends.is_set() and not wait_for_slurm(site.away_min, self.watch.ends):
                self.watch.ends.set()  # so that nothing else waits as long once more
            submits(self, job)

    def noted(self: typing.Any, job_info: typing.Any) -> None:  # noqa: ANN401
        self.watch.submitted.add(job_info.external_jobid)
        notes(self, job_info)

    def failed(self: typing.Any, job_info: typing.Any, msg: str) -> None:  # noqa: ANN401
        watch, away = self.watch, any(words in msg for words in AWAY)
        if away and not watch.ends.is_set() and wait_for_slurm(site.away_min, watch.ends):
            watch.cancel_unknown()
            return run_job(self, job_info.job)
        if away:
            watch.ends.set()
        fails(self, job_info, msg)

    executor.run_job, executor._report_job_submission_threadsafe, executor._report_job_error_threadsafe = run_job, noted, failed


def _mend_looks(plugin: typing.Any) -> None:  # noqa: ANN401
    checks = plugin.Executor.check_active_jobs

    async def check_active_jobs(self: typing.Any, jobs: list) -> AsyncIterator:  # noqa: ANN401
        start, active = time.monotonic(), {job.external_jobid for job in jobs}

        async def query_job_status(command: str, logger: logging.Logger) -> tuple[dict[str, str], float]:
            return await self.watch.states(active), time.monotonic() - start

        plugin.query_job_status = query_job_status
        async for job in checks(self, jobs):
            yield job
        if jobs and self.watch.command:  # it asks sacct for reasons, where that answers
            self.workflow.executor_settings.status_command = self.watch.command[0]
        self.next_seconds_between_status_checks = min(self.next_seconds_between_status_checks, EVERY)

    plugin.Executor.check_active_jobs = check_active_jobs
