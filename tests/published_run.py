"""A results folder with audited runs as their stages leave it: small, with noise of the operating system and true measures."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dpsapf.experiment.layout import Layout
from dpsapf.experiment.methods import method
from dpsapf.experiment.records import DatasetRecord, ModelRecord, Plan, Release, Spend, Timing
from dpsapf.experiment.run_files import audit_files
from dpsapf.experiment.runs import RunSpec, normalise
from dpsapf.experiment.stages import AuditPrivacy
from dpsapf.privacy import spends
from dpsapf.privacy.audit import audit_privacy
from dpsapf.privacy.compose import named_prior
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import Draws
from dpsapf.privacy.spends_found import take_in
from dpsapf.privacy.values import Private
from dpsapf.support.checked import replace
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record, write_record
from tests import true_files

SEED = 730219  # of the runs: found by a grep if it is anywhere
N = 3500
DATASET_ID = "5d" * 32
SALIENCY = Release(name="saliency", noise_multiplier=10.0, sensitivity=1.0, sampling_rate=1.0, steps=1, noise="system")
DP_SGD = Release(name="dp-sgd", noise_multiplier=0.7, sensitivity=1.0, sampling_rate=0.1, steps=4, noise="system")
VOTES = Release(name="pe-histogram", noise_multiplier=1.1, sensitivity=1.0, sampling_rate=1.0, steps=3, noise="system")


def spec(name="dp-sapf", **changes):
    """A run of the folder."""
    axes = {"level": "matrix", "ratio": 0.3, "score": "share", "mechanism": "gaussian", "sigma_s": 10.0, "rule": "top"}
    axes |= {"candidates": "attention", "adapter": "lora", "epsilon": 10.0, "seed": SEED}
    return normalise(RunSpec(dataset="shapes", public_model="public-mini", method=name, **(axes | changes)))


def releases_of(run, noise="system"):
    """What a run of the folder releases."""
    row = method(run.method)
    exact = {"mechanism": "none", "noise_multiplier": None, "noise": None}
    chosen = replace(SALIENCY, **exact) if run.proxy else SALIENCY
    made = [chosen] * run.selects + [DP_SGD] * row.trains + [VOTES] * (row.evolves is not None)
    if not row.private:
        return tuple(replace(release, **exact) for release in made)
    return tuple(replace(release, noise=noise if release.noise else None) for release in made)


def write_public(layout):
    """Write the records of the dataset and the model."""
    dataset = DatasetRecord(
        name="shapes",
        loader="image-folder",
        source="/secret/place/of/images",
        licence="theirs",
        procedural=False,
        classes=("ring", "../cross | plus"),
        prompts=("an image of a ring", "an image of a cross"),
        resolution=8,
        channels=3,
        train=N,
        validation=17,
        test=23,
        train_per_class=(1739, 1761),
        id=DATASET_ID,
        provenance={},
    )
    model = ModelRecord(
        name="public-mini",
        family="stable-diffusion",
        path=str(layout.root / "secret/place/of/models"),
        vae_path=str(layout.root / "secret/place/of/models/vae"),
        resolution=32,
        licence="MIT",
        sha256="ab" * 32,
        denoiser_parameters=1,
        candidates=56,
        provenance={},
    )
    write_record(layout.dataset("shapes", "dataset.json"), dataset)
    write_record(layout.model("public-mini", "model.json"), model)
    true_files.write_public(Path(model.path), Path(layout.model("public-mini", "candidates.csv")))


def write_run(root, run=None, noise="system", prior=(), unit="image", releases=None):
    """Write everything that a run leaves, up to its images; the audit is the real one. Returns the run's folder."""
    layout, run = Layout(root), run or spec()
    write_public(layout)
    before = named_prior(prior, DATASET_ID, unit)
    plan = Plan(
        run=run,
        unit=unit,
        population=N,
        target_epsilon=run.target_epsilon,
        delta=3.5e-5,
        relation=f"zero out one {unit}",
        public=("N, the number of units", "hyperparameters, chosen elsewhere", "the public model"),
        clipping="automatic",
        clipping_norm=1.0,
        noise=noise,
        prior=tuple(before.values()),
        prior_keys=tuple(key for key, _ in before),
        releases=releases_of(run, noise) if releases is None else releases,
        planned_epsilon={},
        selection_epsilon=None,
        dp_sgd_noise_alone=None,
        dataset_id=DATASET_ID,
        provenance={},
    )
    write_record(layout.run(run.id, "plan.json"), plan)
    for release in plan.releases:
        if release.name != "saliency":
            _write_own(layout, plan, release)
        elif not root.joinpath("cache/scores", run.scores_id, "spend.json").exists():
            _write_scores(layout, plan, release)
    folder = root / "runs" / run.id
    told = {"count": true_files.COUNT} if method(run.method).evolves else true_files.SETTINGS
    audit_privacy(AuditPrivacy(**audit_files(layout, run), **told, out=folder / "ledger.json"))
    write_samples(folder, run)
    return folder


PIXELS = np.random.default_rng(5).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)


def put_on_record(root, pixels=PIXELS):
    """Put on record what stages do: the images, and what was released of them."""
    dataset = read_record(root / "cache/datasets/shapes/dataset.json", DatasetRecord)
    spends.know(dataset, lambda: [pixels])
    take_in(root, dataset)


def metered(release, numbers):
    """Do what a release's stage does with the meter, on sums of zeros."""
    meter, draws = Meter(N), Draws(release.noise or "seed", SEED, release.name)
    for step in range(release.steps):
        meter.batch(release.sampling_rate, draws.secret(step))
        if release.mechanism == "none":
            meter.exact(Private([torch.zeros(1)]), release.sensitivity)
            continue
        meter.contribution(release.sensitivity)
        sums = Private([torch.zeros(numbers)])
        meter.gaussian(sums, release.noise_multiplier, release.sensitivity, draws.noise("noise", step))
    return meter


def _spend(plan, release, at, subject, made_from, digest, numbers):
    meter = metered(release, numbers)
    write_record(at("private.json"), meter.measured(41.125))
    spend = Spend(
        subject=subject,
        release=meter.release(release),
        unit=plan.unit,
        population=N,
        dataset_id=DATASET_ID,
        made_from=made_from,
        digest=digest,
        numbers=numbers,
        trainable_parameters=numbers if release.name == "dp-sgd" else 0,
        private=sha256(at("private.json")),
        provenance={},
    )
    write_record(at("spend.json"), spend)


def _made_from(layout):
    return {"latents": "1a" * 32, "model": sha256(layout.model("public-mini", "model.json"))}


def _write_scores(layout, plan, release):
    def at(file):
        return layout.root / layout.scores(plan.run.scores_id, file)

    at("x").parent.mkdir(parents=True)
    true_files.write_scores(at("scores.csv"), None)
    made_from = _made_from(layout) | {"candidate_table": sha256(layout.model("public-mini", "candidates.csv"))}
    _spend(plan, release, at, plan.run.scores_id, made_from, sha256(at("scores.csv")), true_files.MATRICES)


def _write_own(layout, plan, release):
    run = plan.run

    def at(file):
        return layout.root / layout.run(run.id, file)

    planned = {"plan": sha256(at("plan.json"))}
    if release.name == "pe-histogram":
        numbers = true_files.write_votes(at("population.safetensors"), release.steps)
        made_from = planned | {"model": _made_from(layout)["model"], "archive": DATASET_ID}
        return _spend(plan, release, at, run.id, made_from, sha256(at("population.safetensors")), numbers)
    scores = layout.scores(run.scores_id, "scores.csv")
    table = layout.model("public-mini", "candidates.csv")
    true_files.select(plan, at("plan.json"), table, scores, at("selection.csv"), at("selection.json"))
    numbers = true_files.write_trained(plan, at("selection.csv"), at("weights.safetensors"))
    log = {"step": range(4), "units": [351, 347, 366, 339], "loss": [0.48291733, 0.47182931, 0.46918273, 0.45192837]}
    pd.DataFrame(log).to_csv(at("private_log.csv"), index=False)
    made_from = _made_from(layout) | planned | {"selection": sha256(at("selection.csv"))}
    return _spend(plan, release, at, run.id, made_from, sha256(at("weights.safetensors")), numbers)


def write_samples(folder, run, count=6):
    """Write images, the options that they were drawn with, and the record that names both."""
    images = np.random.default_rng(run.seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "samples.npz", images=images, labels=np.sort(np.arange(count, dtype=np.int64) % 2))
    options = {"count": count, "steps": 25, "sampler": "ddim", "guidance_scale": 2.5}
    options |= {"archive": str(folder / "samples.npz"), "micro_batch": 977}
    stage = "evolve" if method(run.method).evolves else "sample"
    (folder / f"{stage}.options.json").write_text(json.dumps({"command": stage, "options": options, "provenance": {}}))
    digests = {"ledger": sha256(folder / "ledger.json"), "samples": sha256(folder / "samples.npz")}
    write_record(folder / "timing.json", Timing(**digests, seconds=63.375, peak_memory_mb=4321.5))


def leaks(folder, secrets):
    """Search a folder, names and contents, for secrets; short ones count as whole words of text only.

    Returns:
        Pairs of file and secret.
    """
    import re

    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        raw = path.read_bytes() if path.is_file() else b""
        text = path.suffix in (".md", ".json", "") and path.is_file()
        for secret in secrets:
            if len(secret) >= 6:
                hit = secret.encode() in raw or secret in name
            else:
                hit = text and re.search(rf"(?<![\w.]){re.escape(secret)}(?![\w.])", raw.decode())
            found += [(name, secret)] if hit else []
    return found


def secrets_of(root, folder):
    """Everything about a run that must not be published, as texts; but whole numbers up to 100: sizes and counts are, too."""
    import getpass
    import platform
    import socket

    secrets = {str(SEED), str(root), getpass.getuser(), socket.gethostname(), platform.platform(), "secret/place", folder.name}
    secrets |= {DATASET_ID, "1a" * 32, "41.125", "63.375", "1234.5", "4321.5", "977", "1739", "1761"}
    values = []
    for path in [folder / "private.json", *root.glob("cache/scores/*/private.json")]:
        measured = json.loads(path.read_text()) if path.exists() else {}
        measured.pop("secret", None)  # names the noise mode, which is published
        measured.pop("sizes", None)  # of the tensors, which the weights show
        for counts in ("cells", "looked_at"):  # a few digits each, which a text may have by chance
            measured.pop(counts, None)
        values += [each for value in measured.values() for each in (value if isinstance(value, list) else [value])]
    if (folder / "private_log.csv").exists():
        log = pd.read_csv(folder / "private_log.csv")
        values += [value for column in log for value in log[column].tolist()]
    secrets |= {str(value) for value in values if not (isinstance(value, int) and value <= 100) and value not in (1.0, N)}
    for name in ("plan.json", "ledger.json", "spend.json", "private.json", "selection.csv", "timing.json"):
        secrets |= {sha256(folder / name)} if (folder / name).exists() else set()
    ledger = json.loads((folder / "ledger.json").read_text())
    return secrets | set(ledger["digests"].values())
