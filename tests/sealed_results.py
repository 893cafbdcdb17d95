"""The results folder of `tests.fake_results` in which all digests, ids and records belong together, as the workflow leaves it."""

from pathlib import Path

import numpy as np

from dpsapf.aggregation.aggregate import aggregate
from dpsapf.aggregation.collect import collect_external, collect_metrics
from dpsapf.datasets.archive import write_archive
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.methods import method
from dpsapf.experiment.records import (
    DatasetRecord,
    External,
    Ledger,
    ModelRecord,
    Plan,
    Selection,
    Spend,
    Timing,
)
from dpsapf.experiment.runs import Study, expand, external_run
from dpsapf.experiment.stages import CollectExternal
from dpsapf.support.checked import replace
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record, write_record
from tests.fake_results import PROTOCOL, aggregate_options, candidate_table, fake_measures, write_images, write_run

CLASSES = ("a", "b")
MAKER = {"versions": {"dpsapf": "0.1.0"}, "git_commit": "abc"}
METHODS = ("dp-sapf", "dp-lora", "pe", "no-finetune")


def runs_of(methods=METHODS, seeds=(0, 1)):
    """Runs of one dataset."""
    return expand({"s": Study(dataset=("mnist5k",), method=methods, seed=seeds)})


def theirs(epsilon=10.0, seed=0, name="theirs"):
    """A run of another group's images."""
    return external_run(name, "mnist5k", "public-mini", epsilon, seed)


def sealed_results(root, runs=None, external=(), protocol=PROTOCOL):
    """Write a results folder without a flaw.

    Args:
        root: the folder.
        runs: of this suite.
        external: of another group.
        protocol: of the evaluation.
    """
    layout, candidates = Layout(root), candidate_table()
    runs = runs_of() if runs is None else runs
    for run in [*runs, *external]:
        if not (root / "cache/datasets" / run.dataset).exists():
            (root / "runs" / run.id).mkdir(parents=True)
            _write_shared(layout, run, candidates)
        options = write_run(layout, run, candidates, protocol) if run in runs else _write_external(layout, run, protocol)
        if run in runs:
            _seal(layout, run)
            collect_metrics(options)
        else:
            collect_external(options)
    aggregate(aggregate_options(layout, [*runs, *external]))
    return root


def _write_shared(layout, run, candidates):
    write_images(layout, run, CLASSES)
    folder = layout.root / "cache/datasets" / run.dataset
    record = read_record(folder / "dataset.json", DatasetRecord)
    write_record(folder / "dataset.json", replace(record, id=sha256(folder / "dataset.safetensors")))
    model = ModelRecord(
        name=run.public_model,
        family="stable-diffusion",
        path="package:public-mini",
        vae_path="package:public-mini",
        resolution=32,
        licence="MIT",
        sha256=None,
        denoiser_parameters=1,
        candidates=len(candidates),
        provenance=MAKER,
    )
    write_record(layout.model(run.public_model, "model.json"), model)
    candidates.to_csv(layout.model(run.public_model, "candidates.csv"), index=False)
    _write_bytes(layout.latents(run.dataset, run.public_model, "latents.safetensors"), "latents")


def _write_bytes(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(text.encode())


def _seal(layout, run):
    """Make a run's records name each other's digests."""
    folder, row = layout.root / "runs" / run.id, method(run.method)
    dataset = read_record(layout.dataset(run.dataset, "dataset.json"), DatasetRecord)
    plan = replace(read_record(folder / "plan.json", Plan), dataset_id=dataset.id, provenance=MAKER)
    write_record(folder / "plan.json", plan)
    _write_samples(folder, run)
    files = {"plan": folder / "plan.json", "latents": layout.latents(run.dataset, run.public_model, "latents.safetensors")}
    files["model"] = layout.model(run.public_model, "model.json")
    digests, weights = {}, None
    if row.selects:
        digests["scores"] = _seal_scores(layout, run, plan, files)
    if row.trains:
        record = Selection(run=run, scores=digests.get("scores"), digest=sha256(folder / "selection.csv"), provenance=MAKER)
        write_record(folder / "selection.json", record)
        _write_bytes(folder / "weights.safetensors", f"weights of {run.id}")
        weights = sha256(folder / "weights.safetensors")
        made_from = {name: sha256(path) for name, path in (files | {"selection": folder / "selection.csv"}).items()}
        digests |= {"latents": made_from["latents"], "selection": made_from["selection"]}
        _seal_spend(folder, dataset.id, made_from, weights)
    if row.evolves:
        _write_bytes(folder / "population.safetensors", f"population of {run.id}")
        digests["population"] = sha256(folder / "population.safetensors")
        made_from = {"plan": sha256(files["plan"]), "archive": dataset.id, "model": sha256(files["model"])}
        _seal_spend(folder, dataset.id, made_from, digests["population"])
    ledger = read_record(folder / "ledger.json", Ledger)
    changes = {"dataset_id": dataset.id, "digests": digests, "weights_digest": weights, "provenance": MAKER}
    write_record(folder / "ledger.json", replace(ledger, **changes))
    timing = read_record(folder / "timing.json", Timing)
    sealed = {"ledger": sha256(folder / "ledger.json"), "samples": sha256(folder / "samples.npz")}
    write_record(folder / "timing.json", replace(timing, **sealed))


def _write_samples(folder, run):
    pixels = np.random.default_rng(sum(map(ord, run.id))).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    write_archive(folder / "samples.npz", {"images": pixels, "labels": np.array([0, 0, 1, 1])})


def _seal_spend(folder, dataset_id, made_from, digest):
    spend = read_record(folder / "spend.json", Spend)
    changes = {"dataset_id": dataset_id, "made_from": made_from, "digest": digest, "provenance": MAKER}
    write_record(folder / "spend.json", replace(spend, **changes, private=sha256(folder / "private.json")))


def _seal_scores(layout, run, plan, files):
    scores, private = (Path(layout.scores(run.scores_id, name)) for name in ("scores.csv", "private.json"))
    _write_bytes(scores, f"scores {run.scores_id}")
    write_record(private, fake_measures(batches=(3500,)))
    spend = Spend(
        subject=run.scores_id,
        release=plan.releases[0],
        unit="image",
        population=3500,
        dataset_id=plan.dataset_id,
        made_from={name: sha256(files[name]) for name in ("model", "latents")},
        digest=sha256(scores),
        numbers=1,
        trainable_parameters=0,
        private=sha256(private),
        provenance=MAKER,
    )
    write_record(scores.with_name("spend.json"), spend)
    return spend.digest


def _write_external(layout, run, protocol):
    """Write what import-images and evaluate leave."""
    folder = layout.root / "runs" / run.id
    write_run(layout, run, candidate_table(), protocol)
    for name in ("plan.json", "ledger.json", "timing.json"):
        (folder / name).unlink()
    _write_samples(folder, run)
    record = External(
        run=run,
        label="Their method (2025)",
        claimed_epsilon=run.epsilon,
        claimed_delta=None,
        images=4,
        source="s" * 64,
        samples=sha256(folder / "samples.npz"),
        dataset_id=read_record(layout.dataset(run.dataset, "dataset.json"), DatasetRecord).id,
        provenance=MAKER,
    )
    write_record(folder / "external.json", record)
    files = {name: folder / f"{name}.json" for name in ("external", "fidelity", "utility")}
    ceiling = layout.root / "cache" / "reference" / f"{run.dataset}--{protocol}" / "ceiling.json"
    return CollectExternal(**files, ceiling=ceiling, out=folder / "metrics.json")
