"""What a job asks a cluster for: memory, time, GPUs and where, from the config, the dataset, the model and slurm/site.yaml."""

import logging
import math
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dpsapf.cli.slurm import Site
from dpsapf.experiment.cost import FEATURES, GROUPED, SHARED, Job, Sizes, jobs, minutes_asked, overlong
from dpsapf.experiment.settings import Config
from dpsapf.support.errors import UserError

LOG = logging.getLogger("snakemake.logging")
PROCESS = 6000  # MB of a process with torch, its CUDA context and libraries
DISTANCES = 4e9  # bytes of distances between features and of their products, at most
Number = Callable[..., int]


def gpus_here() -> int:
    """Count the GPUs that this machine lets a process use, by its driver and CUDA_VISIBLE_DEVICES; 1 where no driver answers."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return max(1, len([name for name in visible.split(",") if name.strip()]))
    try:
        told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        told = ""
    return max(1, sum(line.startswith("GPU ") for line in told.splitlines()))


@dataclass
class Needs:
    """What the rules of a config ask for.

    Attributes:
        config: the whole experiment.
        site: the cluster's names.
        local: whether jobs run on this machine; then each job on a GPU takes one, and the cluster's names do not count.
        jobs: of the config, by rule and subject.
    """

    config: Config
    site: Site
    local: bool = False
    jobs: Mapping[tuple[str, str], Job] = field(init=False)

    def __post_init__(self) -> None:
        """List the jobs, whose subject is the value of their rule's wildcards."""
        self.site = Site() if self.local else self.site
        self.jobs = {(job.rule, job.subject): job for job in jobs(self.config)}

    @property
    def gpus(self) -> int:
        """Return the GPUs of a job that shares its work."""
        asked = self.config.resources.gpus
        return max(1, asked) if self.local and self.config.compute.device == "cuda" else asked

    def check_gpus(self, limit: int) -> None:
        """Check that a job's processes get a GPU each.

        Args:
            limit: GPUs that may be used here at a time.

        Raises:
            UserError: a job has more processes.
        """
        if self.gpus > limit:
            remedy = f"each process needs a GPU of its own, and this machine has {limit}: ask for at most that many"
            raise UserError("resources.gpus", self.gpus, f"{remedy}, or use a cluster (--profile slurm)")

    def resources(self, rule: str) -> dict[str, int | str | Number]:
        """Return the resources of a rule whose jobs run torch, in Snakemake's words; time and memory grow with each attempt."""
        gpus = self._gpus(rule)
        return {
            "mem_mb": lambda wildcards, attempt: self._memory(rule, "--".join(wildcards), attempt),
            "runtime": lambda wildcards, attempt: self._minutes(rule, "--".join(wildcards), attempt),
            **self.site.resources(gpus),
        }

    def light(self, memory_mb: int, minutes: int) -> dict[str, int | str]:
        """Return the resources of a rule without torch."""
        return {"mem_mb": memory_mb, "runtime": minutes, **self.site.resources(0)}

    def tell_overlong(self) -> None:
        """Say in the log which jobs a cluster's limit of time ends before they are done, and what follows."""
        for found in overlong(self.config, self.config.resources.tflops):
            LOG.log(logging.INFO if found.ends else logging.WARNING, str(found))

    def _gpus(self, rule: str) -> int:
        return self.gpus if rule in SHARED else min(1, self.gpus)

    def _minutes(self, rule: str, subject: str, attempt: int) -> int:
        """Estimate the time of a job; all that is allowed, where its work is not known."""
        asked, job = self.config.resources, self.jobs.get((rule, subject))
        first = job and minutes_asked(self.config, job, asked.tflops)
        limit = self._limit(rule, subject)
        return limit if first is None else min(limit, math.ceil(attempt * first))

    def _limit(self, rule: str, subject: str) -> int:
        """Return the longest time of a job, or this rule's part where it shares a cluster's job with another [minutes]."""
        asked, pair = self.config.resources, [self.jobs.get((other, subject)) for other in GROUPED]
        if rule not in GROUPED or None in pair:
            return asked.runtime_min
        first = {job.rule: minutes_asked(self.config, job, asked.tflops) for job in pair}
        share = 1 / len(pair) if None in first.values() else first[rule] / sum(first.values())
        return max(1, math.floor(share * asked.runtime_min))

    def _memory(self, rule: str, subject: str, attempt: int) -> int:
        """Estimate a GPU job's memory on its node: the process, the weights twice while they are read, what is held of images.

        Without a GPU, activations are in that memory, too, and it is all that is allowed.
        """
        asked, job = self.config.resources, self.jobs.get((rule, subject))
        if not asked.gpus or job is None:
            return asked.memory_mb
        sizes = Sizes.of(self.config, job.run)
        weights = 2 * 4 * sizes.work.parameters / 1e6 if sizes.work else asked.memory_mb
        held = _held(rule, self.config, sizes) / 1e6
        return min(asked.memory_mb, math.ceil(attempt * (PROCESS + weights + held)))


def _held(rule: str, config: Config, sizes: Sizes) -> float:
    """Return the bytes of images and features that a job holds at once."""
    real, synthetic = ((count or 0) * FEATURES * 8 for count in (sizes.images, config.sampling.count))
    pixels = config.sampling.count * sizes.dataset.resolution**2 * 3
    held = {"evaluate": DISTANCES + 3 * synthetic + pixels, "reference_features": DISTANCES, "evolve": 2 * real + pixels}
    return held.get(rule, 0)
