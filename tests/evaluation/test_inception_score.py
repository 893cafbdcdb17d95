"""Inception Score: its extremes, and torch-fidelity on the same logits."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from dpsapf.evaluation.inception_score import inception_score
from dpsapf.support.errors import UserError


def softmax(logits):
    return torch.from_numpy(logits).double().softmax(1).numpy()


def test_uniform_predictions_score_one():
    assert inception_score(np.full((60, 10), 0.1), 3) == pytest.approx((1, 0), abs=1e-12)


@pytest.mark.parametrize("splits", [1, 5])
def test_sure_and_balanced_predictions_score_the_number_of_classes(splits):
    """Images in the order of their classes: neighbours would be of one class, and score 1."""
    assert inception_score(np.eye(10)[np.arange(100) // 10], splits) == pytest.approx((10, 0), abs=1e-12)


def test_sure_predictions_of_one_class_score_one():
    assert inception_score(np.eye(10)[np.zeros(40, int)], 2) == (1, 0)


def test_sure_but_unbalanced_predictions_score_their_perplexity():
    shares = np.array([0.5, 0.25, 0.25])
    probabilities = np.eye(3)[[0, 0, 1, 2]]
    assert inception_score(probabilities, 1)[0] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-12)


@pytest.mark.parametrize("splits", [1, 4, 10])
@pytest.mark.parametrize("scale", [0.1, 3.0, 200.0])
def test_torch_fidelity_agrees_on_the_same_splits(splits, scale):
    logits = scale * np.random.default_rng(0).normal(size=(200, 30))
    order = np.concatenate([np.arange(start, 200, splits) for start in range(splits)])
    known = isc_features_to_metric(torch.from_numpy(logits[order]), splits, shuffle=False)
    found = inception_score(softmax(logits), splits)
    assert found == pytest.approx((known["inception_score_mean"], known["inception_score_std"]), rel=1e-9, abs=1e-12)


def test_fp32_probabilities_are_summed_in_float64():
    probabilities = softmax(np.random.default_rng(1).normal(size=(3000, 1008)))
    assert inception_score(probabilities.astype(np.float32), 1)[0] == pytest.approx(
        inception_score(probabilities, 1)[0], rel=1e-7
    )


def test_classes_without_any_probability_add_nothing():
    probabilities = softmax(np.random.default_rng(2).normal(size=(50, 4)))
    with np.errstate(all="raise"):
        assert inception_score(np.hstack([probabilities, np.zeros((50, 2))]), 2) == inception_score(probabilities, 2)


@pytest.mark.parametrize("splits", [0, 6])
def test_more_splits_than_images_are_an_error(splits):
    with pytest.raises(UserError, match="1 to 5"):
        inception_score(np.full((5, 2), 0.5), splits)
