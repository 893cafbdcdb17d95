"""What Snakemake's Slurm executor leaves out, added here in the open. Tried with snakemake-executor-plugin-slurm 2.8.0.

- It asks ``sacct``, and waits for ever where accounting is off. Here ``squeue`` is asked there; which of the two, is said once.
- It compares states by equality, and so never notices ``CANCELLED by 0``; nor a job that Slurm has forgotten; nor one that was
  preempted and not put back into the queue.
- Of a node that fails it asks the name, gets ``None assigned`` for a job that is back in the queue, and gives that to every
  later ``sbatch --exclude``, all of which fail. Here such a job is waited for; Slurm itself uses no node that is down.
- It looks ever more seldom, up to every three minutes. Here a look follows at most `EVERY` seconds after the last.
- Killed, it leaves its jobs behind, which would write beside those of the next start. Here the next start ends them first.
- It guesses an account by a command that prints an error at each start. Here it is slurm/site.yaml's, or Slurm's default.
"""

import asyncio
import getpass
import importlib
import logging
import subprocess
import time
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from dpsapf.support.checked import Checked, parse
from dpsapf.support.files import write_text
from dpsapf.support.yaml_files import load_yaml

EVERY = 10.0  # seconds between two looks, at most
GRACE = 30.0  # seconds for which a job may be in doubt before it counts as failed
ANSWER = 60.0  # seconds that Slurm may take to answer
DOUBTED = {"GONE", "PREEMPTED", "NODE_FAIL"}  # Slurm may put such a job back into its queue
ENDED_BY = dict.fromkeys(DOUBTED, "CANCELLED") | {"REVOKED": "CANCELLED", "SPECIAL_EXIT": "FAILED"}
ACCOUNTING = ("sacct", "-X", "--parsable2", "--noheader", "--format=JobIDRaw,State", "--starttime=now-2days")
QUEUE = ("squeue", "--noheader", "--states=all", "--format=%i|%T")


@dataclass
class Watch:
    """What is known of the jobs of one run of the workflow.

    Attributes:
        run: the name that all of them have.
        command: which asks for their states; chosen at the first look.
        doubted: since when a job is unknown, preempted or on a node that failed, by its id [seconds].
    """

    run: str
    command: tuple[str, ...] = ()
    doubted: dict[str, float] = field(default_factory=dict)

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
    logging.getLogger("snakemake.logging").info(f"States of jobs are asked of {command[0]}{f': {why}' if why else ''}")
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


def end_leftovers(file: Path, run: str, patience: float = 120.0) -> None:
    """Cancel what an earlier start left in Slurm, wait until it is gone, and note this start's name for the next one.

    The names of jobs that do not end stay noted, too.

    Args:
        file: names of earlier starts on the same results, a line each; nobody else works on these results now.
        run: name of this start's jobs.
        patience: how long jobs may take to end [seconds].
    """
    end, names = time.monotonic() + patience, file.read_text().split() if file.exists() else []
    for name in names:
        subprocess.run(["scancel", f"--name={name}", f"--user={getpass.getuser()}"], check=False)
        while time.monotonic() < end and _left(name):
            time.sleep(1)
    write_text(file, "\n".join([*filter(_left, names), run]) + "\n")


def _left(name: str) -> str:
    queue = ["squeue", "--noheader", f"--name={name}", f"--user={getpass.getuser()}"]
    return subprocess.run(queue, capture_output=True, text=True, check=False).stdout.strip()


def mend(results: Path) -> None:
    """Change the executor plugin.

    Args:
        results: folder of the config's results, on which this Snakemake alone works once jobs are submitted.
    """
    plugin = importlib.import_module("snakemake_executor_plugin_slurm")
    executor = plugin.Executor
    if getattr(executor, "mended", False):
        return
    executor.mended = True
    begins, checks, accounts = executor.run_jobs, executor.check_active_jobs, executor.get_account_arg

    def run_jobs(self: typing.Any, jobs: list) -> None:  # noqa: ANN401 - the plugin's own classes
        if getattr(self, "watch", None) is None:
            self.watch = Watch(self.run_uuid)
            end_leftovers(results / "slurm-starts.txt", self.run_uuid)
        begins(self, jobs)

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

    def get_account_arg(self: typing.Any, job: typing.Any) -> Iterator[str]:  # noqa: ANN401
        return accounts(self, job) if job.resources.get("slurm_account") else iter([""])

    executor.run_jobs, executor.check_active_jobs, executor.get_account_arg = run_jobs, check_active_jobs, get_account_arg
