"""The queue of Slurm, seen from a start of Snakemake: whether it answers, and what earlier starts left in it."""

import logging
import os
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from dpsapf.cli.alone import user
from dpsapf.support.errors import UserError
from dpsapf.support.files import write_text

LOG = logging.getLogger("snakemake.logging")
FILE = "slurm-starts.txt"
"""In a results folder: its starts whose jobs may be in the queue, a line each."""
EVERY = 10.0  # seconds between two looks, at most
ANSWER = 60.0  # seconds that Slurm may take to answer


def asked(*command: str) -> str | None:
    """Return what a command of Slurm prints; None if it fails, or takes too long."""
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout if told.returncode == 0 else None


def wait_for_slurm(minutes: float, ends: threading.Event | None = None) -> bool:
    """Wait until Slurm answers, and say in the log that and why; return whether it does.

    Args:
        minutes: to wait at most.
        ends: ends the waiting, too.
    """
    end, ends = time.monotonic() + 60 * minutes, ends or threading.Event()
    told = False
    while asked("squeue", "--noheader", "--name=none") is None:
        if not told:
            limit = f"for {minutes:g} minutes at most (slurm/site.yaml: away_min)"
            LOG.warning(f"Slurm does not answer: waiting for it, {limit}; squeue says why")
        told = True
        if time.monotonic() >= end or ends.wait(EVERY):
            return False
    if told:
        LOG.warning("Slurm answers again")
    return True


@dataclass(frozen=True)
class Start:
    """A start of Snakemake whose jobs may be left in Slurm.

    Attributes:
        run: the name that its jobs have.
        user: who started it; notes of older versions do not say so.
    """

    run: str
    user: str = ""

    @property
    def jobs(self) -> list[tuple[str, str]]:
        """Return the id and the user of each job that is still in the queue.

        Raises:
            UserError: Slurm does not say so.
        """
        told = asked("squeue", "--noheader", f"--name={self.run}", "--format=%i %u")
        if told is None:
            remedy = "does not answer, and jobs of an earlier start may be there: the same command again when it does"
            raise UserError("squeue", self.run, remedy)
        return [(job, user) for job, user in (line.split() for line in told.splitlines())]

    @property
    def hidden(self) -> bool:
        """Say whether this cluster hides the jobs of its user from this one."""
        if self.user in ("", user()) or os.getuid() == 0:
            return False
        told = (asked("scontrol", "show", "config") or "").splitlines()
        return any(line.startswith("PrivateData") and "jobs" in line for line in told)


def end_leftovers(results: Path, away_min: float, patience: float = 120.0) -> None:
    """End what earlier starts left in Slurm, and wait until it is gone; names of jobs that do not end stay noted.

    Args:
        results: their folder; nobody else works on it now.
        away_min: how long to wait while Slurm does not answer [minutes].
        patience: how long jobs may take to end [seconds].

    Raises:
        UserError: jobs of another user are left, or Slurm does not answer; nothing was changed.
    """
    file = results / FILE
    starts = [Start(*line.split()) for line in file.read_text().splitlines()] if file.exists() else []
    if not starts or not shutil.which("squeue"):
        return
    wait_for_slurm(away_min)
    for start in starts:
        _check_own(results, start)
    end = time.monotonic() + patience
    for start in starts:
        asked("scancel", f"--name={start.run}")
        while time.monotonic() < end and start.jobs:
            time.sleep(1)
    write_text(file, "".join(f"{start.run} {start.user}\n" for start in starts if start.jobs))


def _check_own(results: Path, start: Start) -> None:
    """Check that all jobs of a start are this user's.

    Raises:
        UserError: they are not, or cannot be seen; says whose they are and how to end them.
    """
    theirs = {job: owner for job, owner in start.jobs if owner != user()}
    if theirs:
        owner, jobs = min(theirs.values()), ", ".join(theirs)
        remedy = (
            f"user {owner} still makes them with job {jobs}: wait for its end, or let {owner} say: scancel --name={start.run}"
        )
        raise UserError("results", str(results), remedy)
    if start.hidden:
        remedy = f"user {start.user} started them last, and Slurm hides that user's jobs from you: let {start.user} say: "
        raise UserError("results", str(results), f"{remedy}scancel --name={start.run}; rm {results / FILE}")


def note(results: Path, run: str) -> None:
    """Note a start, so that the next one can end what it leaves."""
    file = results / FILE
    write_text(file, (file.read_text() if file.exists() else "") + f"{run} {user()}\n")
