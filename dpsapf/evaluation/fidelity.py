"""How close synthetic features are to real ones: every metric that a protocol names."""

import numpy as np

from dpsapf.evaluation.gaussians import Features, frechet, frechet_infinity, moments
from dpsapf.evaluation.inception_score import inception_score
from dpsapf.evaluation.kernels import kernel_distance
from dpsapf.evaluation.likelihood import MOST_CENTRES, likelihood
from dpsapf.evaluation.neighbours import manifold_scores, radii
from dpsapf.evaluation.real import Reference
from dpsapf.evaluation.resampling import frechet_interval
from dpsapf.experiment.registries import ProtocolEntry
from dpsapf.support.randomness import child_seed, numpy_generator


def fidelity_scores(
    reference: Reference,
    synthetic: np.ndarray,
    probabilities: np.ndarray | None,
    protocol: ProtocolEntry,
    seed: int,
    device: str,
) -> dict[str, float]:
    """Compute a protocol's metrics; names are those of `dpsapf.experiment.records.Fidelity`.

    Args:
        reference: the real side.
        synthetic: features fp32 [M, D].
        probabilities: of the feature network's classes [M, classes]; None where the protocol has no Inception Score.
        protocol: which metrics, with which k, subsets, splits and draws.
        seed: of everything that is drawn.
        device: ``cpu`` or ``cuda``, for distances between features.

    Returns:
        The scores; a metric that the protocol does not name is not there.
    """
    scores = _gaussian(reference, synthetic, protocol, seed)
    size = min(protocol.kid_subset_size, len(reference.features), len(synthetic))
    kid_seed = child_seed(seed, "kid") % 2**32
    names = "kid", "kid_spread"
    scores |= zip(names, kernel_distance(reference.features, synthetic, protocol.kid_subsets, size, kid_seed), strict=True)
    scores |= _manifold(reference, synthetic, protocol, device)
    if probabilities is not None:
        names = "inception_score", "inception_score_spread"
        scores |= zip(names, inception_score(probabilities, protocol.inception_splits), strict=True)
    if reference.test is not None:
        scores["fld"] = _feature_likelihood(reference, synthetic, protocol, seed, device)
    return scores


def _feature_likelihood(reference: Reference, synthetic: np.ndarray, protocol: ProtocolEntry, seed: int, device: str) -> float:
    """Return FLD, of test images or, as the paper's authors have it, of training images."""
    real = reference.features
    enough = len(synthetic) >= min(MOST_CENTRES, len(real) // 2)  # for what was subtracted to be the cached one
    found = likelihood(real, reference.test, synthetic, device, child_seed(seed, "fld"), reference.baseline if enough else None)
    return found.divergence + (found.gap if protocol.fld_of == "train" else 0.0)


def _gaussian(reference: Reference, synthetic: np.ndarray, protocol: ProtocolEntry, seed: int) -> dict[str, float]:
    compared = _compared(synthetic, protocol, seed)
    scores = {"fid": frechet(reference.moments, moments(compared))}
    if protocol.bootstrap_draws:
        bounds = frechet_interval(reference.moments, compared, child_seed(seed, "fid interval"), protocol.bootstrap_draws)
        scores |= zip(("fid_low", "fid_high"), bounds, strict=True)
    if "fid_infinity" in protocol.metrics:
        scores["fid_infinity"] = frechet_infinity(reference.moments, synthetic, child_seed(seed, "fid infinity"))
    return scores


def _compared(synthetic: np.ndarray, protocol: ProtocolEntry, seed: int) -> Features:
    """Return the synthetic features that FID is computed from."""
    if protocol.frechet_images is None or protocol.frechet_images >= len(synthetic):
        return synthetic
    rows = numpy_generator(seed, "fid").choice(len(synthetic), protocol.frechet_images, replace=False)
    return synthetic[np.sort(rows)]


def _manifold(reference: Reference, synthetic: np.ndarray, protocol: ProtocolEntry, device: str) -> dict[str, float]:
    around_synthetic = radii(synthetic, protocol.neighbours, device, protocol.counts_itself)
    found = manifold_scores(
        reference.features,
        synthetic,
        reference.precision_radii,
        around_synthetic,
        reference.density_radii,
        protocol.neighbours,
        device,
    )
    wanted = ("precision", "recall", *(name for name in ("density", "coverage") if name in protocol.metrics))
    return {name: getattr(found, name) for name in wanted}
