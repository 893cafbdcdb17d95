"""An audited run as its stages would have left it: files that name one another by digest, and true measures."""

import dataclasses
import functools

import pytest
import torch

from dpsapf.experiment.records import DatasetRecord, Measured, Plan, Release, Selection, Spend
from dpsapf.experiment.runs import normalise
from dpsapf.experiment.stages import AuditPrivacy
from dpsapf.privacy.accounting import epsilon, finite
from dpsapf.privacy.audit import audit_privacy
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import Draws
from dpsapf.privacy.values import Private
from dpsapf.support.checked import replace
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record, write_record
from tests.tiny import tiny_record
from tests.true_files import COUNT, MATRICES, SETTINGS, SIDE, select, write_public, write_scores, write_trained, write_votes

NUMBERS = {"saliency": MATRICES, "dp-sgd": 900, "pe-histogram": COUNT}
RELEASED = {"saliency": "scores.csv", "dp-sgd": "weights.safetensors", "pe-histogram": "population.safetensors"}


def metered(release: Release, images: int, numbers: int, seed: int = 0) -> Meter:
    """Do what a release's stage does with the meter, on sums of zeros."""
    meter, draws = Meter(images), Draws(release.noise or "seed", seed, release.name)
    for step in range(release.steps):
        meter.batch(release.sampling_rate, draws.secret("batch", step))
        if release.mechanism == "none":
            meter.exact(Private([torch.zeros(numbers)]))
            continue
        meter.contribution(release.sensitivity)
        sums = Private([torch.zeros(numbers)])
        meter.gaussian(sums, release.noise_multiplier, release.sensitivity, draws.noise("noise", step))
    return meter


@functools.cache
def composed(releases, delta):
    return finite({name: epsilon(name, releases, delta) for name in ("pld", "rdp")})


def replanned(plan):
    """Put into a plan what its releases compose to."""
    if plan.target_epsilon is None:
        return replace(plan, planned_epsilon={})
    return replace(plan, planned_epsilon=composed((*plan.prior, *plan.releases), plan.delta))


@dataclasses.dataclass
class Run:
    """A run's folder; change its records or files, then `audit`."""

    folder: object
    plan: Plan
    dataset: DatasetRecord

    def path(self, name):
        return self.folder / name

    def make(self, seed=0):
        """Write every file and record of the plan's releases."""
        self.plan = replanned(self.plan)
        write_record(self.path("plan.json"), self.plan)
        self.path("latents.safetensors").write_text("latents")
        write_public(self.path("model"), self.path("candidates.csv"))
        write_record(self.path("model.json"), replace(tiny_record(), path=str(self.path("model"))))
        write_record(self.path("dataset.json"), self.dataset)
        for release in self.plan.releases:
            self.write(release.name, seed)
            self.spend(release, seed)
        return self

    def write(self, name, seed=0):
        """Write what a release is."""
        if name == "saliency":
            write_scores(self.path("scores.csv"), seed)
        elif name == "dp-sgd":
            if not self.path("selection.csv").exists():
                self.select()
            write_trained(self.plan, self.path("selection.csv"), self.path("weights.safetensors"), seed)
        else:
            write_votes(self.path("population.safetensors"), self.plan.releases[0].steps, seed)

    def select(self):
        """Write selection.csv and selection.json."""
        names = ("plan.json", "candidates.csv", "scores.csv", "selection.csv", "selection.json")
        select(self.plan, *map(self.path, names))
        record = read_record(self.path("selection.json"), Selection)
        write_record(self.path("selection.json"), replace(record, provenance={}))

    def spend(self, release, seed=0):
        """Measure a release and write its two records."""
        saliency, numbers = release.name == "saliency", NUMBERS[release.name]
        plan = {"plan": sha256(self.path("plan.json"))}
        meter = metered(release, self.plan.population, numbers, seed)
        write_record(self.path(f"{release.name}.private.json"), meter.measured(1.0))
        latents = {"latents": sha256(self.path("latents.safetensors")), "model": sha256(self.path("model.json"))}
        made_from = {
            "saliency": lambda: latents | {"candidate_table": sha256(self.path("candidates.csv"))},
            "dp-sgd": lambda: latents | plan | {"selection": sha256(self.path("selection.csv"))},
            "pe-histogram": lambda: plan | {"model": "a" * 64, "archive": "b" * 64},
        }
        spend = Spend(
            subject=self.plan.run.scores_id if saliency else self.plan.run.id,
            release=meter.release(release),
            unit=self.plan.unit,
            population=self.plan.population,
            dataset_id=self.plan.dataset_id,
            made_from=made_from[release.name](),
            digest=sha256(self.path(RELEASED[release.name])),
            numbers=numbers,
            trainable_parameters=numbers if release.name == "dp-sgd" else 0,
            private=sha256(self.path(f"{release.name}.private.json")),
            provenance={},
        )
        write_record(self.path(f"{release.name}.json"), spend)

    def spent(self, name):
        """Return a spend record."""
        return read_record(self.path(f"{name}.json"), Spend)

    def selection(self):
        """Return the selection's record."""
        return read_record(self.path("selection.json"), Selection)

    def change(self, name, **changes):
        """Change a spend record."""
        write_record(self.path(f"{name}.json"), replace(self.spent(name), **changes))

    def change_release(self, name, **changes):
        """Change what a spend record says of the release."""
        self.change(name, release=replace(self.spent(name).release, **changes))

    def change_measures(self, name, **changes):
        """Change what was measured, and the digest that the spend record has of it."""
        path = self.path(f"{name}.private.json")
        write_record(path, replace(read_record(path, Measured), **changes))
        self.change(name, private=sha256(path))

    def change_plan(self, **changes):
        """Change the plan, and the digest that the spend record of DP-SGD has of it."""
        self.plan = replace(replanned(replace(self.plan, **changes)), **changes)
        write_record(self.path("plan.json"), self.plan)
        if self.path("dp-sgd.json").exists():
            made_from = self.spent("dp-sgd").made_from
            self.change("dp-sgd", made_from=made_from | {"plan": sha256(self.path("plan.json"))})

    def options(self, **changes):
        """Options of the audit."""
        names = [release.name for release in self.plan.releases]
        options = {
            "plan": self.path("plan.json"),
            "spends": tuple(self.path(f"{name}.json") for name in names),
            "privates": tuple(self.path(f"{name}.private.json") for name in names),
            "scores": self.path("scores.csv") if "saliency" in names else None,
            "out": self.path("ledger.json"),
        }
        if "dp-sgd" in names:
            options |= {name: self.path(f"{name}.{end}") for name, end in (("selection", "csv"), ("weights", "safetensors"))}
            options |= {"selection_record": self.path("selection.json"), "candidate_table": self.path("candidates.csv")}
            options |= {"model": self.path("model.json"), **SETTINGS}
        if "pe-histogram" in names:
            options |= {"population": self.path("population.safetensors"), "dataset": self.path("dataset.json"), "count": COUNT}
        return AuditPrivacy(**(options | changes))

    def audit(self, **changes):
        """Audit the folder."""
        audit_privacy(self.options(**changes))


@pytest.fixture
def small_dataset(dataset_record):
    """The record of a dataset of small grey images."""
    return replace(dataset_record, resolution=SIDE)


@pytest.fixture
def audited(tmp_path, plan, small_dataset):
    """A run that passes the audit."""
    return Run(tmp_path, plan, small_dataset).make()


@pytest.fixture
def evolved(tmp_path, plan, small_dataset):
    """A run of Private Evolution that passes the audit."""
    folder = tmp_path / "evolved"
    folder.mkdir()
    votes = Release(name="pe-histogram", noise_multiplier=1.1, sensitivity=1.0, sampling_rate=1.0, steps=3, noise="seed")
    run = normalise(replace(plan.run, method="pe"))
    votes_alone = replace(plan, run=run, releases=(votes,), dp_sgd_noise_alone=None, selection_epsilon=None)
    return Run(folder, votes_alone, small_dataset).make()
