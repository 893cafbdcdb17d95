"""All metrics of a protocol at once, from features; each metric alone is tested beside its module."""

import numpy as np
import pytest
import torch
from cleanfid.fid import frechet_distance, kernel_distance

from dpsapf.evaluation.fidelity import fidelity_scores
from dpsapf.evaluation.gaussians import frechet, moments
from dpsapf.evaluation.likelihood import baseline, likelihood
from dpsapf.evaluation.neighbours import radii
from dpsapf.evaluation.real import Reference
from dpsapf.experiment.registries import ProtocolEntry
from dpsapf.support.randomness import child_seed

ALL = ("inception_score", "density", "coverage", "fld", "fid_infinity")


def protocol(**changes):
    values = {"feature_network": "package:tiny", "feature_resolution": 32, "resize": "lanczos", "kid_subset_size": 100}
    return ProtocolEntry(**(values | {"kid_subsets": 5, "classifiers": (), "classifier_steps": 1} | changes))


def features(count=300, dimension=8, shift=0.0, seed=0):
    return np.random.default_rng(seed).normal(shift, 1.0, (count, dimension)).astype(np.float32)


def reference(real, wanted, test=None):
    of_precision = radii(real, wanted.precision_neighbours or wanted.neighbours, "cpu", wanted.counts_itself)
    subtracted = None if test is None else baseline(real, test, len(real), "cpu", 0)
    return Reference(real, moments(real), of_precision, radii(real, wanted.neighbours, "cpu"), test, subtracted, "digest")


def scores(real, synthetic, test=None, probabilities=None, seed=0, **changes):
    wanted = protocol(**changes)
    return fidelity_scores(reference(real, wanted, test), synthetic, probabilities, wanted, seed, "cpu")


def before(real, synthetic, neighbours, subsets, size, seed):
    """What demo-v1 was computed by: clean-fid's matrix root and kernel, and distances in float64."""
    real, synthetic = real.astype(np.float64), synthetic.astype(np.float64)
    statistics = [(given.mean(0), np.cov(given, rowvar=False)) for given in (real, synthetic)]
    np.random.seed(child_seed(seed, "kid") % 2**32)  # noqa: NPY002
    kid = kernel_distance(real, synthetic, num_subsets=subsets, max_subset_size=size)

    def covered(centres, points):
        centres, points = torch.from_numpy(centres), torch.from_numpy(points)
        around = torch.cdist(centres, centres).kthvalue(neighbours + 1, dim=1).values
        return (torch.cdist(centres, points) <= around[:, None]).any(0).double().mean().item()

    fid = float(frechet_distance(*statistics[0], *statistics[1]))
    return {"fid": fid, "kid": kid, "precision": covered(real, synthetic), "recall": covered(synthetic, real)}


@pytest.mark.parametrize("seed", [0, 7])
def test_a_protocol_of_before_means_what_it_meant(seed):
    """FID to the rounding of clean-fid's matrix root, KID to that of float64 sums over the same subsets, the shares exactly."""
    real, synthetic = features(500, 64), features(400, 64, shift=0.1, seed=3)
    found = scores(real, synthetic, seed=seed, kid_subsets=20, kid_subset_size=300)
    expected = before(real, synthetic, 5, 20, 300, seed)
    assert found["fid"] == pytest.approx(expected["fid"], rel=1e-6)
    assert found["kid"] == pytest.approx(expected["kid"], rel=1e-6, abs=1e-9)
    assert (found["precision"], found["recall"]) == (expected["precision"], expected["recall"])
    assert set(found) == {"fid", "kid", "kid_spread", "precision", "recall"}


def test_a_set_with_itself_has_no_distance():
    real = features()
    found = scores(real, real.copy(), metrics=("density", "coverage"))
    assert found["fid"] == pytest.approx(0, abs=1e-6) and found["precision"] == found["recall"] == found["coverage"] == 1


def test_every_metric_is_there_only_where_the_protocol_names_it():
    real, test = features(200), features(100, seed=1)
    classes = np.full((150, 4), 0.25)
    asked = {"metrics": ALL, "bootstrap_draws": 20}
    found = scores(real, features(150, seed=2), test, classes, **asked)
    assert set(found) - set(scores(real, features(150, seed=2))) == {*ALL, "inception_score_spread", "fid_low", "fid_high"}
    assert found["inception_score"] == pytest.approx(1) and found["inception_score_spread"] == pytest.approx(0, abs=1e-12)
    assert found["fid_low"] < found["fid"] < found["fid_high"] and found["fid_infinity"] < found["fid"]


def test_scores_worsen_monotonically_with_a_growing_shift():
    real, test = features(300), features(200, seed=9)
    asked = {"metrics": ("density", "coverage", "fld", "fid_infinity")}
    rows = [scores(real, features(300, seed=1, shift=shift), test, **asked) for shift in (0, 0.5, 1, 2)]
    for name, sign in (
        ("fid", 1),
        ("kid", 1),
        ("fid_infinity", 1),
        ("fld", 1),
        ("precision", -1),
        ("recall", -1),
        ("coverage", -1),
    ):
        steps = np.diff([sign * row[name] for row in rows])
        assert (steps > 0).all(), (name, [row[name] for row in rows])


def test_collapse_keeps_precision_and_loses_recall():
    """One mode of the real images alone, and not the other way round: a swap of the two is seen."""
    real = np.concatenate([features(150, shift=-4), features(150, shift=4, seed=1)])
    found = scores(real, features(300, shift=4, seed=2), metrics=("density", "coverage"))
    assert found["precision"] > 0.8 and found["recall"] < 0.6 and found["coverage"] < 0.6


def test_precision_has_its_own_neighbours_and_an_image_may_count_itself():
    real, synthetic = features(200), features(200, shift=0.8, seed=1)
    found = scores(real, synthetic, neighbours=5, precision_neighbours=4, counts_itself=True)
    assert found["precision"] == scores(real, synthetic, neighbours=3)["precision"]
    assert found["recall"] == scores(real, synthetic, neighbours=4)["recall"]
    assert found["precision"] < scores(real, synthetic, neighbours=5)["precision"]


def test_fid_takes_as_many_images_as_the_protocol_says():
    real, synthetic = features(300), features(400, shift=0.2, seed=1)
    few = scores(real, synthetic, frechet_images=100)["fid"]
    assert few > scores(real, synthetic)["fid"] == scores(real, synthetic, frechet_images=400)["fid"]
    assert few != scores(real, synthetic, frechet_images=100, seed=1)["fid"]


def test_fld_of_training_images_rewards_copies_and_of_test_images_does_not():
    real, test = features(200), features(200, seed=1)
    copies = real.copy()
    of_train, of_test = (scores(real, copies, test, metrics=("fld",), fld_of=name)["fld"] for name in ("train", "test"))
    found = likelihood(real, test, copies, "cpu", child_seed(0, "fld"), baseline(real, test, 200, "cpu", 0))
    assert of_test == pytest.approx(found.divergence) and of_train == pytest.approx(found.divergence + found.gap)
    assert of_train < of_test


def test_frechet_is_of_the_reference_and_not_of_the_other_moments():
    real, synthetic = features(300), features(200, shift=0.5, seed=1)
    assert scores(real, synthetic)["fid"] == frechet(moments(real), moments(synthetic))
