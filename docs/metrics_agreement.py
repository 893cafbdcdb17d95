"""The fidelity metrics beside clean-fid, torch-fidelity and prdc on the same features: the largest difference.

``python docs/metrics_agreement.py --out results/reference/metrics-agreement.csv``. Libraries get the features in float64; KID's
subsets and the splits of the Inception Score are the same. Sets are of different sizes, nearer and farther from each other.
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from cleanfid import fid as cleanfid
from measure import ROOT, commit
from prdc import compute_prdc
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kernel_mmd
from torch_fidelity.metric_prc import calculate_precision_recall_full

from dpsapf.evaluation.gaussians import frechet, moments
from dpsapf.evaluation.inception_score import inception_score
from dpsapf.evaluation.kernels import discrepancy
from dpsapf.evaluation.neighbours import manifold_scores, radii

DIMENSIONS, REAL, SYNTHETIC, NEIGHBOURS = 512, 1500, 1000, 5
SHIFTS = (0.0, 0.02, 0.05, 0.2)


def main(arguments: list[str] | None = None) -> int:
    """Write one row per metric and library."""
    parser = argparse.ArgumentParser(prog="python docs/metrics_agreement.py", description="fidelity metrics beside libraries")
    parser.add_argument("--out", type=Path, help="table to write (.csv)")
    options = parser.parse_args(arguments)
    rows = [row for shift in SHIFTS for row in compared(draw(REAL, 0, 0.0), draw(SYNTHETIC, 1, shift))]
    frame = pd.DataFrame(rows, columns=["metric", "library", "ours", "theirs"])
    frame["largest_difference"] = (frame["ours"] - frame["theirs"]).abs()
    frame["largest_value"] = frame["theirs"].abs()
    table = frame.groupby(["metric", "library"], sort=False)[["largest_difference", "largest_value"]].max().reset_index()
    table = table.assign(cases=len(SHIFTS), dimensions=DIMENSIONS, commit=commit(ROOT))
    print(table.to_string(index=False))
    if options.out:
        table.to_csv(options.out, index=False)
    return 0


def compared(real: np.ndarray, synthetic: np.ndarray) -> Iterator[tuple[str, str, float, float]]:
    """Give each metric's name, a library's, our value and the library's."""
    first, second = real.astype(np.float64), synthetic.astype(np.float64)
    one, other = moments(real), moments(synthetic)
    plain = [(some.mean(0), np.cov(some, rowvar=False)) for some in (first, second)]
    yield "FID", "clean-fid", frechet(one, other), cleanfid.frechet_distance(*plain[0], *plain[1])
    known = fid_statistics_to_metric(*({"mu": mean, "sigma": spread} for mean, spread in plain), False)
    yield "FID", "torch-fidelity", frechet(one, other), known["frechet_inception_distance"]
    size, chosen = len(second), np.arange(len(second))
    with mock.patch.object(np.random, "choice", lambda *_, **__: chosen):
        yield "KID", "clean-fid", discrepancy(first[:size], second), cleanfid.kernel_distance(first, second, 1, size)
    kernel = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
    yield "KID", "torch-fidelity", discrepancy(first[:size], second), kernel_mmd(second, first[:size], **kernel)
    own = radii(real, NEIGHBOURS, "cpu")
    found = manifold_scores(real, synthetic, own, radii(synthetic, NEIGHBOURS, "cpu"), own, NEIGHBOURS, "cpu")
    with contextlib.redirect_stdout(io.StringIO()):
        reference = compute_prdc(first, second, NEIGHBOURS)
    for name in ("precision", "recall", "density", "coverage"):
        yield name, "prdc", getattr(found, name), reference[name]
    pair = calculate_precision_recall_full(torch.from_numpy(second), torch.from_numpy(first), NEIGHBOURS)
    for name, value in zip(("precision", "recall"), pair, strict=True):
        yield name, "torch-fidelity", getattr(found, name), value
    logits = torch.from_numpy(second[:, :10] * 5)
    order = np.concatenate([np.arange(start, len(second), 10) for start in range(10)])
    score = isc_features_to_metric(logits[order], 10, shuffle=False)["inception_score_mean"]
    yield "Inception Score", "torch-fidelity", inception_score(logits.softmax(1).numpy(), 10)[0], score


def draw(count: int, seed: int, shift: float) -> np.ndarray:
    """Draw features as a network's are: at least 0, and a few of them say most; fp32."""
    generator, mixing = np.random.default_rng(seed), np.random.default_rng(99)
    mix = mixing.normal(size=(64, DIMENSIONS)) * np.geomspace(1, 0.1, 64)[:, None] / 8
    noise = 0.1 * generator.normal(size=(count, DIMENSIONS))
    return np.maximum(generator.normal(size=(count, 64)) @ mix + noise + shift, 0).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
