"""Measure the noise of evaluation: how far accuracies spread over seeds while everything private is fixed.

First draw the images: ``snakemake --cores all --configfile config/evaluation-noise.yaml``. Then, for instance,
``python docs/evaluation_noise.py --protocols demo-v1 demo-v2 --samples 500 1000 --out noise.csv``. It evaluates the first
images of each class; every evaluation under demo-v1 takes about 10 seconds.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dpsapf.datasets.prepared import read_part
from dpsapf.evaluation.utility import accuracies
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.records import DatasetRecord
from dpsapf.experiment.registries import PROBE, ProtocolEntry, entry
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.settings import parse_config
from dpsapf.support.checked import replace
from dpsapf.support.records import read_record
from dpsapf.support.yaml_files import load_yaml

SETTING = ["dataset", "protocol", "samples", "classifiers", "repeats", "steps"]


def main(arguments: list[str] | None = None) -> int:
    """Evaluate every run of a config under some protocols and write one row per setting."""
    parser = argparse.ArgumentParser(prog="python docs/evaluation_noise.py", description="spread of accuracies over seeds")
    parser.add_argument("--config", type=Path, default=Path("config/evaluation-noise.yaml"), help="config whose images are drawn")
    parser.add_argument("--protocols", nargs="+", default=["demo-v1", "demo-v2"], help="protocols to evaluate under")
    parser.add_argument("--samples", nargs="+", type=int, default=[500], help="synthetic images to evaluate")
    parser.add_argument("--out", type=Path, required=True, help="table to write (.csv)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = parse_config(load_yaml(options.config), str(options.config))
    layout, rows = Layout(Path("results") / config.name), []
    for name in options.protocols:
        protocol = entry(config.protocols_file, name, ProtocolEntry)
        for count in options.samples:
            for run in config.runs:
                rows += [{"protocol": name} | row for row in evaluated(run, layout, protocol, count)]
    summary(pd.DataFrame(rows)).to_csv(options.out, index=False)
    return 0


def evaluated(run: RunSpec, layout: Layout, protocol: ProtocolEntry, count: int) -> list[dict]:
    """Evaluate a run's images with the probe and with the trained classifiers, as far as the protocol has them."""
    part = read_part(Path(layout.dataset(run.dataset, "dataset.safetensors")), "test")
    test = part, part.labels
    with np.load(layout.run(run.id, "samples.npz")) as archive:
        train = first(archive["images"], archive["labels"], count)
    classes = len(read_record(layout.dataset(run.dataset, "dataset.json"), DatasetRecord).classes)
    rows = []
    for names in ((PROBE,), tuple(name for name in protocol.classifiers if name != PROBE)):
        if set(names) & set(protocol.classifiers):
            start = time.process_time()
            scores = accuracies(train, test, classes, replace(protocol, classifiers=names), run.seed, "cpu")
            rows.append(row(run, protocol, names, list(scores.values()), time.process_time() - start) | {"samples": count})
    return rows


def row(run: RunSpec, protocol: ProtocolEntry, names: tuple[str, ...], scores: list[float], seconds: float) -> dict:
    """Describe one evaluation; the probe has neither repeats nor steps."""
    trained = names != (PROBE,)
    return {
        "dataset": run.dataset,
        "classifiers": "+".join(names),
        "repeats": protocol.classifier_repeats if trained else 1,
        "steps": protocol.classifier_steps if trained else 0,
        "accuracy": 100 * np.mean(scores),
        "seconds": seconds,
    }


def first(images: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first images of each class, ``count`` in all, in the order of the archive."""
    rank = np.array([np.sum(labels[:index] == label) for index, label in enumerate(labels)])
    chosen = np.sort(np.lexsort((labels, rank))[:count])
    return images[chosen], labels[chosen]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Summarise evaluations: seeds, mean and standard deviation [points], CPU seconds of one evaluation."""
    groups = rows.groupby(SETTING, sort=False)
    table = groups.agg(
        n=("accuracy", "size"), mean=("accuracy", "mean"), sd=("accuracy", "std"), seconds=("seconds", "mean")
    ).reset_index()
    return table.round({"mean": 2, "sd": 2, "seconds": 1})


if __name__ == "__main__":
    sys.exit(main())
