"""A run of every stage in a results folder of its own, made twice on different private images, and what differs."""

import dataclasses
import os
import re
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

from dpsapf.evolution import evolve as evolution
from dpsapf.evolution.publish import publish_population
from dpsapf.experiment.columns import CANDIDATES, COLUMNS, FRAGILITY_SHRUNK, MATRIX, SCALE
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.records import Plan
from dpsapf.experiment.run_files import audit_files
from dpsapf.experiment.stages import (
    AuditPrivacy,
    Evolve,
    Finetune,
    PlanPrivacy,
    PublishPopulation,
    Sample,
    ScoreSaliency,
    SelectMatrices,
)
from dpsapf.finetune import train
from dpsapf.privacy.audit import audit_privacy
from dpsapf.privacy.mechanisms import Ranking
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import grid
from dpsapf.public_models.candidates import matrix_table
from dpsapf.public_models.families.stable_diffusion import BLOCKS
from dpsapf.saliency import score
from dpsapf.saliency.plan import plan_privacy
from dpsapf.saliency.select import select_matrices
from dpsapf.sampling import sample as sampling
from dpsapf.support.checked import replace
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record, write_record
from tests.evolution.conftest import PROTOCOLS
from tests.prepared_dataset import write_dataset
from tests.tiny import digest_of, tiny_latents, tiny_record, tiny_unet, write_latents

IMAGES, CLASSES, USERS = 12, 2, 4
SHOWN = "shown"  # a dataset that is public: the same on both sides
PRIVACY = {"steps": 3, "expected_batch_size": 6, "delta": 0.01, "noise": "system"}
TRAINED = {"learning_rate_lora": 0.01, "learning_rate_full": 0.001}
WEIGHED_RATE = 0.01  # that a selection by what noise breaks is made for
UPDATES = {"lora_rank": 2, "lora_alpha": 4.0}
MEASURED_TIMES = re.compile(rb'"(seconds|peak_memory_mb)": [^,\n]+')  # the only values of timing.json that may differ


# ---- What the meter releases, forced. The one place that knows how it hands released numbers over.


@contextmanager
def forced_releases():
    """Let the meter count what is done, and replace what it releases by numbers that know nothing of the images."""
    numbers = torch.Generator().manual_seed(0)
    gaussian, gumbel, laplace = Meter.gaussian, Meter.gumbel, Meter.laplace

    def forced_gaussian(self, sums, noise_multiplier, sensitivity, *rest):
        released = gaussian(self, sums, noise_multiplier, sensitivity, *rest)
        spacing = grid(sensitivity, sum(value.numel() for value in released.values))
        scale = noise_multiplier * sensitivity / spacing
        draws = (torch.randn(value.shape, generator=numbers, dtype=value.dtype) for value in released.values)
        return dataclasses.replace(released, values=tuple((scale * draw).round() * spacing for draw in draws))

    def forced_gumbel(self, *arguments):
        return [Decimal(draw) for draw in torch.randn(len(gumbel(self, *arguments)), generator=numbers).tolist()]

    def forced_laplace(self, *arguments):
        laplace(self, *arguments)
        return Decimal(10) ** 9  # the test of propose-test-release is passed

    with ExitStack() as stack:
        for name, forced in (("gaussian", forced_gaussian), ("gumbel", forced_gumbel), ("laplace", forced_laplace)):
            stack.enter_context(patch.object(Meter, name, forced))
        yield


@contextmanager
def forced_winners():
    """Let units have fixed scores: the winners are what propose-test-release gives away, after its noisy test."""
    fixed = lambda self, scores: np.arange(self.unit_of.max() + 1.0)[::-1]  # noqa: E731
    with patch.object(Ranking, "unit_scores", fixed):
        yield


# ---- A run of all stages, in the layout of a results folder.


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two runs."""

    root: Path
    seed: int
    model: Path

    @property
    def layout(self):
        return Layout(self.root)

    def at(self, path):
        return Path(path)

    def public(self):
        """What both sides know: the model, its matrices, and what noise breaks in them."""
        record = replace(tiny_record(), path=str(self.model))
        write_record(self.layout.model("tiny", "model.json"), record)
        table = matrix_table(tiny_unet(), BLOCKS)
        table.to_csv(self.layout.model("tiny", "candidates.csv"), index=False)
        names = table.loc[table[CANDIDATES] == "attention", MATRIX]
        fragility = pd.DataFrame({MATRIX: names, FRAGILITY_SHRUNK: 0.5 + names.index, COLUMNS: 8, SCALE: 2.0})
        path = Path(self.layout.fragility("private", "tiny", "attention"))
        path.parent.mkdir(parents=True)
        fragility.to_csv(path, index=False)

    def private(self, dataset_record, name="private", seed=None):
        """Other images, other classes of each, other users; as many of each."""
        draws = np.random.default_rng(self.seed if seed is None else seed)
        labels = draws.permutation(np.arange(IMAGES) % CLASSES)
        users = draws.permutation(np.arange(IMAGES) % USERS)
        pixels = draws.integers(0, 256, (IMAGES, 28, 28, 1), dtype=np.uint8)
        path = Path(self.layout.dataset(name, "dataset.safetensors"))
        path.parent.mkdir(parents=True)
        identity = sha256(write_dataset(path, {"train": (pixels, labels)}, users, draws.bytes(32)))
        counts = {"train": IMAGES, "train_per_class": (6, 6), "users": USERS, "resolution": 8, "id": identity}
        write_record(path.with_name("dataset.json"), replace(dataset_record, name=name, **counts))
        return labels, users, identity

    def encoded(self, labels, users, identity, name="private", seed=None):
        latents = tiny_latents(IMAGES, self.seed if seed is None else seed)
        mixed = dataclasses.replace(
            latents,
            labels=torch.from_numpy(labels),
            users=torch.from_numpy(users),
            prompt_embeddings=tiny_latents(IMAGES).prompt_embeddings,
        )
        folder = Path(self.layout.latents(name, "tiny", "x")).parent
        folder.mkdir(parents=True)
        write_latents(folder, mixed, identity, digest_of(replace(tiny_record(), path=str(self.model))))

    def inputs(self, *names, dataset="private"):
        of = {
            "dataset": self.layout.dataset(dataset, "dataset.json"),
            "archive": self.layout.dataset(dataset, "dataset.safetensors"),
            "proxy_dataset": self.layout.dataset(SHOWN, "dataset.json"),
            "proxy_archive": self.layout.dataset(SHOWN, "dataset.safetensors"),
            "model": self.layout.model("tiny", "model.json"),
            "candidate_table": self.layout.model("tiny", "candidates.csv"),
            "latents": self.layout.latents(dataset, "tiny", "latents.safetensors"),
            "prompts": self.layout.latents(dataset, "tiny", "prompts.safetensors"),
        }
        return {name: of[name] for name in names}

    def run_file(self, plan, *names):
        files = {
            "scores": self.layout.scores(plan.run.scores_id, "scores.csv"),
            "fragility": self.layout.fragility("private", "tiny", "attention"),
            **{name: self.layout.run(plan.run.id, f"{name}.json") for name in ("plan", "spend", "private", "ledger", "timing")},
            "selection": self.layout.run(plan.run.id, "selection.csv"),
            "record": self.layout.run(plan.run.id, "selection.json"),
            "weights": self.layout.run(plan.run.id, "weights.safetensors"),
            "training_log": self.layout.run(plan.run.id, "private_log.csv"),
            "population": self.layout.run(plan.run.id, "population.safetensors"),
            "archive": self.layout.run(plan.run.id, "samples.npz"),
            "contact_sheet": self.layout.run(plan.run.id, "contact_sheet.png"),
        }
        return {name: files[name] for name in names}

    def planned(self, changes):
        out, names = self.root / "plan.json", ["dataset", "archive", "candidate_table"]
        names += ["proxy_dataset", "proxy_archive"] * (changes.get("proxy") == SHOWN)
        plan_privacy(PlanPrivacy(public_model="tiny", out=out, **self.inputs(*names), **changes))
        plan = read_record(out, Plan)
        target = Path(self.layout.run(plan.run.id, "plan.json"))
        target.parent.mkdir(parents=True)
        out.rename(target)
        return plan


def scored(side, plan, settings):
    run = plan.run
    axes = {"candidates": run.released_from} | {name: getattr(run, name) for name in ("score", "mechanism", "sigma_s")}
    if run.mechanism not in ("gaussian", None):
        axes |= {"level": run.level, "ratio": run.ratio}
    folder = Path(side.layout.scores(run.scores_id, "x")).parent
    score.score_saliency(
        ScoreSaliency(
            **side.inputs("dataset", "model", "candidate_table", "latents", "prompts", dataset=run.scored_dataset),
            **axes,
            **{"unit": plan.unit, "noise": plan.noise if run.selects else "seed"},  # public scores: the same on both sides
            **{"delta": PRIVACY["delta"], "micro_batch": 5, "expected_batch_size": 8},
            **settings,
            **{name: folder / file for name, file in (("scores", "scores.csv"), ("spend", "spend.json"))},
            private=folder / "private.json",
        )
    )


def trained(side, plan, settings):
    walked = side.run_file(plan, "fragility")
    chosen = side.run_file(plan, "scores") if plan.run.scored_dataset else {}
    updates = {**UPDATES, **{name: value for name, value in settings.items() if name in SelectMatrices.model_fields}}
    select_matrices(
        SelectMatrices(
            **side.inputs("candidate_table"),
            **side.run_file(plan, "plan", "record"),
            **chosen,
            **walked,
            **updates,
            learning_rate=WEIGHED_RATE,
            out=side.run_file(plan, "selection")["selection"],
        )
    )
    outputs = side.run_file(plan, "plan", "selection", "weights", "training_log", "spend", "private")
    train.finetune(
        Finetune(
            **side.inputs("model", "latents", "prompts"), **outputs, **walked, **TRAINED, **UPDATES | settings, micro_batch=4
        )
    )


def audited(side, plan, settings):
    options = {name: value for name, value in settings.items() if name in AuditPrivacy.model_fields}
    ledger = side.run_file(plan, "ledger")["ledger"]
    audit_privacy(AuditPrivacy(**audit_files(side.layout, plan.run), **options, out=ledger))


def sampled(side, plan):
    outputs = side.run_file(plan, "archive", "contact_sheet", "timing", "ledger", "selection", "weights")
    drawn = {"count": 4, "steps": 1, "guidance_scale": 1.0, "micro_batch": 4}
    sampling.sample(Sample(**side.inputs("dataset", "model", "prompts"), **outputs, **drawn))


def fine_tuned(side, changes, settings, audit=True, images=False):
    """All stages of a run that trains."""
    plan = side.planned({"method": "dp-lora", "epsilon": 10.0, **PRIVACY, "saliency": {"expected_batch_size": 8}, **changes})
    if plan.run.scored_dataset:
        scored(side, plan, {})
    trained(side, plan, settings)
    if audit:
        audited(side, plan, {**UPDATES, **settings, "learning_rate": WEIGHED_RATE})
    if images:
        sampled(side, plan)


# ---- The comparison.


def is_private(path):
    return any(part.startswith(("private.", "private_")) for part in path.parts) or not {"runs", "scores"} & set(path.parts)


def released(root):
    """Files that are not private, by name; a digest of a file of the run is replaced by that file's name."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    names = {sha256(path).encode(): path.relative_to(root).as_posix().encode() for path in files}
    found = {}
    for path in files:
        name = path.relative_to(root)
        if is_private(name):
            continue
        content = path.read_bytes()
        for digest, file in names.items():
            content = content.replace(digest, b"digest of " + file)
        found[name.as_posix()] = MEASURED_TIMES.sub(rb'"\1": 0', content) if path.suffix == ".json" else content
    return found


def differing(sides, run: Callable[[Side], None], releases=forced_releases):
    """Run both sides with forced releases; names the files that are not the same, or are not there, in both."""
    for side in sides:
        with releases(), patch.dict(os.environ, DPSAPF_SPENDS=f"{side.root}-spends"):  # each is of an owner of its own
            run(side)
    one, other = (released(side.root) for side in sides)
    assert len(one) > 2
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


# ---- Images that evolve by votes.


def evolved(side, changes):
    """Votes, audit, published images."""
    votes = {"epsilon": 10.0, "evolution": {"iterations": 2}, "noise": "system", "delta": 0.01}
    plan = side.planned({"steps": 1, "expected_batch_size": 1, **votes, **changes})
    drawn = {"count": 6, "steps": 2, "guidance_scale": 2.0, "micro_batch": 4}
    varied = {"generation": 4, "lookahead": 1, "last_degree": 0.5, "protocol": "demo-v1", "registry": PROTOCOLS}
    files = side.run_file(plan, "plan", "spend", "private", "population")
    evolution.evolve(Evolve(**side.inputs("model", "archive", "dataset"), **files, **drawn, **varied))
    audited(side, plan, {"count": 6, "generation": 4})
    published = side.run_file(plan, "ledger", "population", "archive", "contact_sheet", "timing")
    publish_population(PublishPopulation(**side.inputs("dataset"), **published))
