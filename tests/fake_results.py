"""A results folder as the workflow leaves it, with invented numbers: for tests of aggregation and figures."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from safetensors.numpy import save

from dpsapf.experiment.layout import Layout
from dpsapf.experiment.methods import METHODS, method
from dpsapf.experiment.records import (
    DatasetRecord,
    Fidelity,
    Ledger,
    Measured,
    Plan,
    Release,
    Spend,
    Timing,
    Utility,
    WeightsHeader,
)
from dpsapf.experiment.runs import RunSpec, Study, expand
from dpsapf.experiment.stages import Aggregate, CollectMetrics
from dpsapf.finetune.weights import HEADER
from dpsapf.support.checked import replace
from dpsapf.support.files import sha256
from dpsapf.support.records import as_json, write_record
from tests.prepared_dataset import write_dataset

ROOT = Path(__file__).parents[1]
PROTOCOL = "test-v1"
PROTOCOL_DIGEST = "0123456789abcdef"
RATES = (0.02, 0.04, 0.07, 0.12, 0.2)
CONFIG_RATE = 0.02  # the invented config's learning rate, which a run without one of its own has
DATASETS = {
    "mnist5k": tuple("0123456789"),
    "digits": tuple("0123456789"),
    "oct-mini": ("choroidal neovascularisation", "diabetic macular oedema", "drusen", "normal"),
    "histo-mini": ("normal lymph node", "tumour"),
}
BLOCKS = ("down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1", "mid_block")  # as diffusers lists them


def demo_runs(datasets=tuple(DATASETS), seeds=(0,)):
    """The runs of the demo's studies."""
    first = datasets[:1]
    studies = [
        Study(dataset=datasets, method=("dp-sapf", "dp-lora", "no-finetune"), seed=seeds),
        Study(dataset=first, method=("dp-sapf",), level=("layer",), seed=seeds),
        Study(dataset=first, method=("dp-full",), seed=seeds),
        Study(dataset=first, method=("dp-sapf",), ratio=(0.1, 0.5, 0.9), seed=seeds),
        Study(dataset=first, method=("dp-sapf", "dp-lora"), epsilon=(1,), seed=seeds),
    ]
    return expand({f"study{number}": study for number, study in enumerate(studies)})


def variant_runs(datasets=("mnist5k",), seeds=(0, 1)):
    """Every method once per dataset and seed."""
    return expand({"variants": Study(dataset=datasets, method=tuple(METHODS), level=("matrix",), seed=seeds)})


def stability_runs(datasets=("mnist5k", "digits"), epsilons=(1, 10), ratios=(0.1, 0.3, 0.5, 0.7), rates=RATES, seeds=(0, 1, 2)):
    """The runs of config/stability.yaml, with null for the config's own learning rate."""
    axes = {"dataset": datasets, "epsilon": epsilons, "seed": seeds}
    axes["learning_rate"] = [None if rate == CONFIG_RATE else rate for rate in rates]
    chosen = axes | {"ratio": ratios}
    studies = {
        "whole": Study(method=("dp-lora", "no-finetune"), **axes),
        "salient": Study(method=("dp-sapf",), rule=("top", "least"), **chosen),
        "random": Study(method=("random",), **chosen),
    }
    return expand(studies)


def collapsing(run):
    """Invented scores of `stability_runs`: better than the floor below an edge, collapsed above it; seeded noise.

    The edge is at `true_edge`, times a factor of the seed's own.
    """
    noise = np.random.default_rng(sum(map(ord, run.id))).normal(0, 1, 2)
    floor, chance, gain = {"mnist5k": (3.3, 0.1, 0.6), "histo-mini": (97.0, 0.5, 2.2)}.get(run.dataset, (20.0, 0.25, 1.0))
    better = {"mnist5k": 0.66, "histo-mini": 0.57}.get(run.dataset, 0.6)
    if run.method == "no-finetune":
        return {"fid": floor * np.exp(0.03 * noise[0]), "accuracy": better + 0.01 * noise[1]}
    of_seed = np.random.default_rng(run.seed).normal(0, 0.12)
    beyond = np.log((run.learning_rate or CONFIG_RATE) / true_edge(run)) - of_seed
    change = -gain * (1 - np.exp(4 * beyond)) if beyond < 0 else 3 * (1 - np.exp(-2 * beyond))
    share = 1 / (1 + np.exp(5 * beyond))
    accuracy = chance + (better + 0.08 - chance) * share + 0.012 * noise[1]
    return {"fid": floor * np.exp(change + 0.06 * noise[0]), "accuracy": accuracy}


def true_edge(run):
    """The learning rate at which an invented run's FID is the floor's."""
    edge = 0.035 if run.epsilon == 1 else 0.06
    shift = {"top": 1.0, "least": 1.5}.get(run.rule, 1.2)
    return edge if run.ratio is None else edge * shift * run.ratio**-0.6


def candidate_table(layers_per_block=3):
    """A candidate table as prepare-public-model writes it: both attentions of each transformer block."""
    rows = []
    for block in BLOCKS:
        for index in range(1 if block == "mid_block" else layers_per_block):
            for attention in ("attn1", "attn2"):
                layer = f"{block}.attentions.{index}.transformer_blocks.0.{attention}"
                names = ("to_q", "to_k", "to_v", "to_out.0")
                rows += [
                    {
                        "matrix": f"{layer}.{name}",
                        "layer": layer,
                        "block": block,
                        "projection": name,
                        "candidates": "attention",
                        "parameters": 1024,
                        "lora_parameters_per_rank": 64,
                    }
                    for name in names
                ]
    return pd.DataFrame(rows)


def with_the_rest(candidates):
    """Add a matrix that only candidate set ``all-params`` has."""
    rest = dict.fromkeys(("matrix", "layer", "block", "projection"), "conv_in")
    rest |= {"candidates": "all-params", "parameters": 512, "lora_parameters_per_rank": 48}
    return pd.concat([candidates, pd.DataFrame([rest])], ignore_index=True)


def sigma_of(run):
    return 2.5 if run.sigma_s == "auto" else run.sigma_s


def selection_of(run, candidates):
    """A selection: of the largest invented scores for methods that select, everything otherwise."""
    table = with_the_rest(candidates) if run.released_from == "all-params" else candidates.copy()
    table["noisy_score"], table["selected"] = None, True
    if method(run.method).selects:
        scores = np.random.default_rng(run.seed + 5).exponential(100, len(table)) ** 1.5
        table["noisy_score"] = scores + np.random.default_rng(run.seed).normal(0, sigma_of(run) or 0.0, len(table))
        key = "matrix" if run.level == "matrix" else "layer"
        ranks = table.groupby(key, sort=False)["noisy_score"].sum().rank(ascending=False)
        chosen = ranks.index[ranks <= round(run.ratio * len(ranks))]
        table["selected"] = table[key].isin(chosen)
    return table


def scores_of(run):
    """Invented accuracy and FID: they depend on the run alone."""
    jitter = np.random.default_rng(sum(map(ord, run.id))).normal(0, 0.006)
    gain = {"dp-sapf": 0.09, "dp-lora": 0.05, "dp-full": 0.02, "no-finetune": 0.0}.get(run.method, 0.03)
    gain *= 0.4 if run.epsilon == 1 else 1.0
    gain -= 0.1 * abs((run.ratio or 0.3) - 0.3)
    base = {"mnist5k": 0.6, "digits": 0.7, "oct-mini": 0.5, "histo-mini": 0.76}.get(run.dataset, 0.6)
    return base + gain + jitter, 40 - 120 * (gain + jitter)


def write_run(layout, run, candidates, protocol=PROTOCOL, **changes):
    """Write every record that collect-metrics reads; ``changes`` replace fields of fidelity or utility.

    Returns:
        The options of collect-metrics for the run.
    """
    folder = layout.root / "runs" / run.id
    row = method(run.method)
    accuracy, fid = scores_of(run)
    releases = [
        Release(
            name="saliency",
            noise_multiplier=sigma_of(run),
            sensitivity=1.0,
            sampling_rate=1.0,
            steps=1,
            noise="seed",
        )
    ] * row.selects
    releases += [
        Release(name="dp-sgd", noise_multiplier=0.83, sensitivity=1.0, sampling_rate=0.1, steps=3, noise="seed")
    ] * row.trains
    if row.evolves:
        releases = [Release(name="pe-histogram", noise_multiplier=1.1, sensitivity=1.0, sampling_rate=1.0, steps=3, noise="seed")]
    plan = Plan(
        run=run,
        unit="image",
        population=3500,
        target_epsilon=run.epsilon,
        delta=3.5e-5,
        relation="zero out one image",
        public=("N",),
        clipping="automatic",
        clipping_norm=1.0,
        noise="seed",
        releases=tuple(releases),
        planned_epsilon={"pld": 0.99 * (run.epsilon or 0.0)},
        selection_epsilon=0.4 if row.selects else None,
        dp_sgd_noise_alone=0.8 if row.trains else None,
        dataset_id="d" * 64,
        provenance={},
    )
    spent = dict.fromkeys(("pld", "rdp", "prv"), 0.99 * (run.epsilon or 0.0))
    ledger = Ledger(
        run=run,
        target_epsilon=plan.target_epsilon,
        delta=plan.delta,
        relation=plan.relation,
        unit=plan.unit,
        noise=plan.noise,
        not_for_release="seeded" if releases else None,
        dataset_id=plan.dataset_id,
        prior=(),
        digests={"population": "e" * 64} if row.evolves else {},
        releases=plan.releases,
        spent_epsilon=spent,
        weights_digest=weights_digest(run),
        provenance={},
    )
    fidelity, utility, ceiling = _evaluated(protocol, accuracy, fid, changes)
    records = {
        "plan": plan,
        "ledger": ledger,
        "fidelity": fidelity,
        "utility": utility,
    }
    for name, record in records.items():
        write_record(folder / f"{name}.json", record)
    timing = Timing(ledger=sha256(folder / "ledger.json"), samples="s" * 64, seconds=40.0, peak_memory_mb=900.0)
    write_record(folder / "timing.json", timing)
    write_record(layout.reference(run.dataset, protocol, "ceiling.json"), ceiling)
    if row.trains:
        _write_selection(folder, run, releases[-1], candidates)
    if row.spends:
        _write_spend(folder, run, releases[-1], candidates)
    with_the_rest(candidates).to_csv(layout.root / "candidates.csv", index=False)
    return collect_options(layout, run, protocol)


def _evaluated(protocol, accuracy, fid, changes):
    fidelity = Fidelity(
        protocol=protocol,
        protocol_digest=PROTOCOL_DIGEST,
        reference="digest of the real side",
        fid=fid,
        kid=fid / 1000,
        precision=0.5,
        recall=0.4,
        synthetic_images=800,
        real_images=3500,
        outside_the_guarantee=True,
        provenance={},
    )
    utility = Utility(
        protocol=protocol,
        protocol_digest=PROTOCOL_DIGEST,
        trained_on="synthetic",
        selection="synthetic",
        accuracy=accuracy,
        macro_f1=accuracy - 0.02,
        calibration_error=0.1,
        classifiers={},
        per_classifier={"cnn": accuracy - 0.01, "mlp": accuracy + 0.01},
        train_images=800,
        test_images=1000,
        outside_the_guarantee=True,
        provenance={},
    )
    ceiling = replace(utility, trained_on="real", accuracy=0.93)
    utility = replace(utility, **{key: value for key, value in changes.items() if hasattr(utility, key)})
    fidelity = replace(fidelity, **{key: value for key, value in changes.items() if hasattr(fidelity, key)})
    return fidelity, utility, ceiling


def weights(run, **changes):
    """Bytes of a run's weights: their header, and no tensor."""
    header = WeightsHeader(**{"adapter": run.adapter} | changes)
    return save({}, {HEADER: json.dumps(as_json(header))})


def weights_digest(run):
    return hashlib.sha256(weights(run)).hexdigest() if method(run.method).trains else None


def _write_selection(folder, run, release, candidates):
    selection_of(run, candidates).to_csv(folder / "selection.csv", index=False)
    rate = run.learning_rate or (CONFIG_RATE if run.adapter else CONFIG_RATE / 20)
    log = pd.DataFrame({"step": range(release.steps), "loss": 1.0, "learning_rate": rate * np.linspace(1, 0.5, release.steps)})
    log.to_csv(folder / "private_log.csv", index=False)
    (folder / "weights.safetensors").write_bytes(weights(run))


def _write_spend(folder, run, release, candidates):
    trained = 256 * selection_of(run, candidates)["selected"].sum() if method(run.method).trains else 0
    spend = Spend(
        subject=run.id,
        release=release,
        unit="image",
        population=3500,
        dataset_id="d" * 64,
        made_from={},
        numbers=1,
        digest=weights_digest(run) or "e" * 64,
        trainable_parameters=1_064_000 if run.method == "dp-full" else int(trained),
        private="p" * 64,
        provenance={},
    )
    write_record(folder / "spend.json", spend)
    write_record(folder / "private.json", fake_measures(batches=(350,) * release.steps, seconds=95.0 + run.seed))


def fake_measures(**changes):
    """What a meter could have seen of one number that got noise at each step."""
    steps = len(changes["batches"])
    values = {"salt": "s", "participation": (), "strangers": 0, "surplus": 0, "secret": "seed", "largest_contribution": 1.0}
    values |= {
        "not_additive": 0.0,
        "sums": (1.0,) * 2,
        "sum_squares": 1.0,
        "repetition": 1.0,
        "seconds": 1.0,
        "peak_memory_mb": 1400.0,
    }
    values |= {
        "sizes": (1,),
        "squares": (1.0,) * steps,
        "parts": (float(steps),),
        "sums": (1.0,) * 2,
        "looked_at": 1,
        "cells": (steps, *[0] * 15),
    }
    return Measured(**(values | changes))


def collect_options(layout, run, protocol=PROTOCOL):
    """Options of collect-metrics for a run of the fake folder."""
    files = {name: layout.root / "runs" / run.id / f"{name}.json" for name in ("plan", "ledger", "timing", "fidelity", "utility")}
    folder = layout.root / "runs" / run.id
    if method(run.method).spends:
        files |= {"spend": folder / "spend.json", "private": folder / "private.json"}
    if method(run.method).trains:
        files |= {"selection": folder / "selection.csv", "training_log": folder / "private_log.csv"}
        files["weights"] = folder / "weights.safetensors"
    files["ceiling"] = layout.root / "cache" / "reference" / f"{run.dataset}--{protocol}" / "ceiling.json"
    table, out = layout.root / "candidates.csv", layout.root / "runs" / run.id / "metrics.json"
    return CollectMetrics(**files, candidate_table=table, out=out)


def write_images(layout, run, classes, per_class=12, side=32):
    """Write a run's samples.npz and its dataset's archive and record: the label drawn on a coloured ground."""
    images, labels = _drawn(classes, per_class, side, grey=40)
    np.savez(layout.root / "runs" / run.id / "samples.npz", images=images, labels=labels)
    folder = layout.root / "cache" / "datasets" / run.dataset
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = _drawn(classes, per_class, side, grey=0)
    write_dataset(folder / "dataset.safetensors", {"train": (images, labels)})
    record = DatasetRecord(
        name=run.dataset,
        loader="x",
        source="x",
        licence="x",
        procedural=False,
        classes=classes,
        prompts=classes,
        resolution=side,
        channels=3,
        train=len(images),
        validation=1,
        test=1,
        train_per_class=(per_class,) * len(classes),
        id="d" * 64,
        provenance={},
    )
    write_record(folder / "dataset.json", record)


def _drawn(classes, per_class, side, grey):
    labels = np.arange(len(classes) * per_class) % len(classes)
    images = []
    for number, label in enumerate(labels):
        image = Image.new("RGB", (side, side), (grey, number % 256, grey))
        ImageDraw.Draw(image).text((side // 3, side // 4), str(label), "white")
        images.append(np.asarray(image))
    return np.stack(images), labels.astype(np.int64)


def aggregate_options(layout, runs):
    """Options of aggregate for runs of the fake folder."""
    metrics = tuple(layout.root / "runs" / run.id / "metrics.json" for run in runs)
    tables = {name: layout.root / "tables" / f"{name}.csv" for name in ("runs", "summary", "selections")}
    return Aggregate(metrics=metrics, **tables)


def write_results(root, runs, images=True, changes=lambda run: {}):
    """Write the records, metrics and tables of runs, and images for the contact sheet; ``changes``: as of `write_run`."""
    from dpsapf.aggregation.aggregate import aggregate
    from dpsapf.aggregation.collect import collect_metrics

    layout, candidates = Layout(root), candidate_table()
    for run in runs:
        collect_metrics(write_run(layout, run, candidates, **changes(run)))
        if images:
            write_images(layout, run, DATASETS.get(run.dataset, ("a", "b")))
    aggregate(aggregate_options(layout, runs))
    return root


__all__ = ["DATASETS", "PROTOCOL", "RunSpec", "aggregate_options", "candidate_table", "demo_runs", "write_results", "write_run"]
