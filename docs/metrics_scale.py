"""Time and memory of every fidelity metric, on slices of what CelebA needs: 60,000 against 162,770 vectors of 2,048 features.

``python docs/metrics_scale.py --folder /tmp/metrics --out results/reference/metrics-scale.csv`` draws features of two sizes into
files, and runs each metric on them in a process of its own, which reads them from the files. What a metric takes for all
images lies on the line through both sizes: seconds over the number of operations that grows with the images, memory over the
number of images. Rows with a library's name are what was there before.

Seconds are the process' own on its cores, so that what else the machine does hardly counts; ``wall_seconds`` are those of the
clock. Run it with one thread: threads that wait for each other count, too.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cleanfid.fid import frechet_distance
from measure import ROOT, commit

from dpsapf.evaluation import likelihood
from dpsapf.evaluation.gaussians import Features, frechet, frechet_infinity, moments
from dpsapf.evaluation.inception_score import inception_score
from dpsapf.evaluation.kernels import kernel_distance
from dpsapf.evaluation.neighbours import manifold_scores, radii
from dpsapf.evaluation.resampling import frechet_interval
from dpsapf.support.arrays import open_arrays, writing
from dpsapf.support.measure import peak_memory_mb

DIMENSIONS, LATENT = 2048, 256
FULL = 60_000, 162_770  # synthetic and real images
SLICES = (3_000, 8_138), (6_000, 16_277)
FEW = 2_000  # real images whose moments stand for all of them where a metric gets them
NEIGHBOURS, CLASSES, CHUNK = 5, 1_008, 1_000
EPOCHS = 2  # of FLD's 50 that are timed; each computes the distances again, as it is with all images

Run = Callable[[], object]


def distance(real: Features, synthetic: Features) -> Run:
    """FID when the real moments are there."""
    known = moments(real[:FEW])
    return lambda: frechet(known, moments(synthetic))


def limit(real: Features, synthetic: Features) -> Run:
    """FID for infinitely many images."""
    return partial(frechet_infinity, moments(real[:FEW]), synthetic, 0)


def interval(real: Features, synthetic: Features) -> Run:
    """FID's interval."""
    return partial(frechet_interval, moments(real[:FEW]), synthetic, 0, 10)


def subsets(real: Features, synthetic: Features) -> Run:
    """KID."""
    return partial(kernel_distance, real, synthetic, 10, 1000, 0)


def score(real: Features, synthetic: Features) -> Run:
    """Inception Score; of predictions there are as many as images."""
    values = synthetic[:][:, :CLASSES] + np.float32(1)
    return partial(inception_score, values / values.sum(1, keepdims=True), 10)


def manifolds(real: Features, synthetic: Features) -> Run:
    """Precision, recall, density and coverage; the radii are those of some images."""
    own, other = (np.full(len(some), np.median(radii(some[:CHUNK], NEIGHBOURS, "cpu")), np.float32) for some in (real, synthetic))
    return partial(manifold_scores, real, synthetic, own, other, own, NEIGHBOURS, "cpu")


def divergence(real: Features, synthetic: Features) -> Run:
    """FLD when what it subtracts is there."""
    likelihood.EPOCHS, likelihood.KEPT = EPOCHS, 0
    return partial(likelihood.feature_likelihood, real, real[:CHUNK], synthetic, "cpu", 0, 0.0)


def by_sqrtm(real: Features, synthetic: Features) -> Run:
    """FID as clean-fid has it, when the real moments are there."""
    mean, covariance = (moments(real[:FEW]).mean, moments(real[:FEW]).covariance)
    return lambda: frechet_distance(mean, covariance, synthetic[:].mean(0), np.cov(synthetic[:], rowvar=False))


def by_cdist(real: Features, synthetic: Features) -> Run:
    """Precision and recall by torch's distances in float64, the radii with them."""
    first, second = (torch.from_numpy(some[:]).double() for some in (real, synthetic))

    def run() -> None:
        for centres, points in ((first, second), (second, first)):
            covered = torch.zeros(len(points), dtype=torch.bool)
            for chunk in centres.split(512):
                own = torch.cdist(chunk, centres).kthvalue(NEIGHBOURS + 1, dim=1).values
                covered |= (torch.cdist(chunk, points) <= own[:, None]).any(0)

    return run


@dataclass(frozen=True)
class Metric:
    """What is timed.

    Attributes:
        prepare: of real and synthetic features: what is run; it is not timed itself.
        operations: those that grow with the numbers of synthetic and of real images, up to a factor.
        whole: the same where the slices are timed with less; None: ``operations``.
    """

    prepare: Callable[[Features, Features], Run]
    operations: Callable[[int, int], float]
    whole: Callable[[int, int], float] | None = None


def _fitted(passes: int, synthetic: int, real: int) -> float:
    return passes * min(synthetic, likelihood.MOST_CENTRES) * real


METRICS = {
    "real moments": Metric(lambda real, synthetic: partial(moments, real), lambda m, n: n),
    "FID": Metric(distance, lambda m, n: m),
    "FID infinity": Metric(limit, lambda m, n: m),
    "FID interval, 10 draws": Metric(interval, lambda m, n: m),
    "KID, 10 subsets of 1,000": Metric(subsets, lambda m, n: 0),
    "Inception Score": Metric(score, lambda m, n: m),
    "real radii": Metric(lambda real, synthetic: partial(radii, real, NEIGHBOURS, "cpu"), lambda m, n: n**2),
    "synthetic radii": Metric(lambda real, synthetic: partial(radii, synthetic, NEIGHBOURS, "cpu"), lambda m, n: m**2),
    "precision, recall, density, coverage": Metric(manifolds, lambda m, n: m * n),
    "FLD": Metric(divergence, partial(_fitted, EPOCHS + 2), partial(_fitted, likelihood.EPOCHS + 2)),
    "FID, clean-fid": Metric(by_sqrtm, lambda m, n: m),
    "radii, precision, recall, torch float64": Metric(by_cdist, lambda m, n: m**2 + n**2 + 2 * m * n),
}


def main(arguments: list[str] | None = None) -> int:
    """Write one row per slice and metric."""
    parser = argparse.ArgumentParser(prog="python docs/metrics_scale.py", description="time and memory of the fidelity metrics")
    parser.add_argument("--folder", type=Path, required=True, help="where to draw features; 300 MB")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS), help="metrics to time (default: all)")
    parser.add_argument("--slices", type=int, choices=(1, 2), default=2, help="slices; of 1, all take in proportion (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--out", type=Path, help="table to write (.csv)")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        measure(options.folder, *options.measure, options.threads)
        return 0
    for count in {count for sizes in SLICES for count in sizes}:
        draw(options.folder, count)
    slices = SLICES[: options.slices]
    rows = [
        row for name in options.metrics for row in extrapolated(name, measured(name, slices, options.folder, options.threads))
    ]
    frame = pd.DataFrame(rows).assign(dimensions=DIMENSIONS, threads=options.threads, commit=commit(ROOT))
    print(frame.to_string(index=False))
    if options.out:
        frame.to_csv(options.out, index=False)
    return 0


def measured(name: str, slices: Sequence[tuple[int, int]], folder: Path, threads: int) -> list[dict]:
    """Run a metric on some slices, each in a process of its own; return their rows."""
    rows = []
    for synthetic, real in slices:
        words = [sys.executable, __file__, "--folder", str(folder), "--threads", str(threads), "--measure", name]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        found = subprocess.run([*words, str(synthetic), str(real)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
        rows.append({"metric": name, "synthetic": synthetic, "real": real, **json.loads(found.stdout)})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def extrapolated(name: str, rows: list[dict]) -> list[dict]:
    """Add to each row what all images would take."""
    metric = METRICS[name]
    whole = (metric.whole or metric.operations)(*FULL)
    operations = [metric.operations(row["synthetic"], row["real"]) for row in rows]
    seconds = on_the_line(operations, [row["seconds"] for row in rows], whole)
    memory = on_the_line([row["real"] for row in rows], [row["peak_memory_mb"] for row in rows], FULL[1])
    return [row | {"extrapolated_seconds": round(seconds, 1), "extrapolated_memory_mb": round(memory)} for row in rows]


def on_the_line(sizes: list[float], values: list[float], size: float) -> float:
    """Return the value at a size, on the line through two points, or through one and 0; it does not fall.

    If both sizes are equal, the second value.
    """
    if len(sizes) == 1:
        return values[0] * size / sizes[0]
    slope = (values[1] - values[0]) / (sizes[1] - sizes[0]) if sizes[1] > sizes[0] else 0.0
    return max(values[1], values[1] + slope * (size - sizes[1]))


def measure(folder: Path, name: str, synthetic: str, real: str, threads: int) -> None:
    """Time a metric in this process; print its seconds and this process' peak memory."""
    torch.set_num_threads(threads)
    first, second = (open_arrays(folder / f"{count}.safetensors")[0]["features"] for count in (real, synthetic))
    run = METRICS[name].prepare(first, second)
    wall, used = time.monotonic(), time.process_time()
    run()
    taken = {"seconds": time.process_time() - used, "wall_seconds": time.monotonic() - wall, "peak_memory_mb": peak_memory_mb()}
    print(json.dumps({name: round(value, 2) for name, value in taken.items()}))


def draw(folder: Path, count: int) -> None:
    """Write features as a network's are: at least 0, and a few of them say most."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(count)
    mix = np.random.default_rng(0).normal(size=(LATENT, DIMENSIONS)) * np.geomspace(1, 0.1, LATENT)[:, None] / LATENT**0.5
    with writing(folder / f"{count}.safetensors", {"features": ("F32", (count, DIMENSIONS))}) as writer:
        for start in range(0, count, CHUNK):
            latent = generator.normal(size=(min(CHUNK, count - start), LATENT)).astype(np.float32)
            noise = generator.normal(size=(len(latent), DIMENSIONS)).astype(np.float32)
            writer.put("features", start, np.maximum(latent @ mix.astype(np.float32) + np.float32(0.1) * noise, 0))


if __name__ == "__main__":
    sys.exit(main())
