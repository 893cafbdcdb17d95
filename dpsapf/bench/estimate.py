"""estimate: what a config would cost, before anything is run: jobs, operations, hours of a GPU, disk, money."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from dpsapf.experiment.cost import GROUPED, HEAVY, LEFT_OUT, SLOWER, Job, gpu_seconds, jobs, overlong
from dpsapf.experiment.runs import expand
from dpsapf.experiment.settings import Config, parse_config
from dpsapf.experiment.stages import Estimate
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic
from dpsapf.support.yaml_files import load_yaml

LOG = logging.getLogger(__name__)
LOCAL = ("plan_privacy", "select_matrices", "audit_privacy", "publish_population", "collect_metrics", "collect_external")
"""Rules that run on the submitting host."""


def estimate(options: Estimate) -> None:
    """Print, and maybe write, a row for each study and one for all: what several studies share stands in the first.

    Raises:
        UserError: the speed is neither in the config nor given.
    """
    config = parse_config(load_yaml(options.configfile), str(options.configfile))
    speed = options.tflops or config.resources.tflops
    if speed is None:
        raise UserError("--tflops", None, "say what one GPU does in practice [TFLOP/s], here or in the config: resources.tflops")
    frame = table(config, speed, options.price, measured(options.records) if options.records else {})
    LOG.info("%s\n%s", frame.to_string(index=False), "\n".join(_remarks(config, speed)))
    if options.out:
        with atomic(options.out) as temporary:
            frame.to_csv(temporary, index=False)


def _remarks(config: Config, speed: float) -> list[str]:
    """Explain the table, a line each."""
    fp32 = (
        f"; classifiers and feature networks, which compute in fp32, at {SLOWER:.0%} of that"
        if config.precision == "bf16"
        else ""
    )
    return [
        f"GPU-hours: in {config.precision}, at {speed:g} TFLOP/s of a GPU{fp32}",
        "first row: also what studies share, such as data, models, scores and runs; it stands in the first that needs it",
        "jobs: steps of the workflow; submissions: what a cluster gets of them. Plans, selections, audits and tables run on the "
        "submitting host, and sampling and evaluation of a run are one submission",
        f"left out: {LEFT_OUT}",
        *map(str, overlong(config, speed)),
    ]


def table(config: Config, speed: float, price: float | None, seconds: dict[str, float]) -> pd.DataFrame:
    """Estimate every study, and all together.

    Args:
        config: the whole experiment.
        speed: of a GPU in practice [TFLOP/s].
        price: of an hour of it; None: not told.
        seconds: a job takes, by rule, where that was measured; used instead of the operations.
    """
    known = set()

    def time(job: Job) -> float | None:
        return seconds.get(job.rule, gpu_seconds(config, job, speed))

    rows, everything = [], list(jobs(config))
    named = {name: [run.id for run in config.matching(expand({name: study}))] for name, study in config.studies.items()}
    for name, found in (named | ({"(external)": list(config.made_elsewhere)} if config.made_elsewhere else {})).items():
        ids = set(found) - known
        known |= ids
        rows.append(_row(name, len(ids), [job for job in everything if job.run.id in ids], time, price))
    return pd.DataFrame([*rows, _row("all", len(known), everything, time, price)])


def _row(name: str, runs: int, jobs: list[Job], time: Callable[[Job], float | None], price: float | None) -> dict:
    count, heavy = Counter(job.rule for job in jobs), [job for job in jobs if job.rule in HEAVY]
    taken = [time(job) for job in heavy]
    hours, unknown = sum(seconds or 0.0 for seconds in taken) / 3600, taken.count(None)
    sampled = {job.run.id for job in jobs if job.rule == GROUPED[0]}
    joined = sum(job.rule == GROUPED[1] and job.run.id in sampled for job in jobs)
    return {
        "study": name,
        "runs": runs,
        "jobs": len(jobs),
        "submissions": len(jobs) - joined - sum(count[rule] for rule in LOCAL),
        "TFLOP": round(sum(job.tflop or 0.0 for job in heavy)),
        "GPU-hours": round(hours, 1),
        "jobs of unknown size": unknown,
        "disk (GB)": round(sum(job.gigabytes for job in jobs), 1),
        **({"money": round(price * hours, 2)} if price is not None else {}),
    }


def measured(results: Path) -> dict[str, float]:
    """Read how long jobs took, the median by rule, from the benchmarks of a results folder [seconds]."""
    found = {}
    for rule in HEAVY:
        files = sorted((results / "benchmarks" / rule).glob("*.tsv"))
        if files:
            found[rule] = float(pd.concat([pd.read_csv(file, sep="\t") for file in files])["s"].median())
    return found
