import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsapf.privacy.clipping import MARGIN
from dpsapf.saliency.scores import SCORES, Bounds, score
from dpsapf.support.errors import UserError

ADDITIVE = [name for name, row in SCORES.items() if row.contributions]  # signal has tests of its own
BOUNDS = Bounds(clipping_norm=0.7, votes=3)


def squared_norms(images, matrices, seed, scale=1.0):
    return scale * torch.rand(images, matrices, generator=torch.Generator().manual_seed(seed)) ** 4


@pytest.mark.parametrize("name", ADDITIVE)
@settings(max_examples=25, deadline=None)
@given(images=st.integers(1, 5), matrices=st.integers(1, 9), seed=st.integers(0, 99), scale=st.sampled_from([1e-8, 1.0, 1e8]))
def test_one_image_contributes_at_most_the_sensitivity(name, images, matrices, seed, scale):
    row = score(name)
    contributions = row.contributions(squared_norms(images, matrices, seed, scale), BOUNDS)
    assert contributions.min() >= 0 and contributions.dtype == torch.float64
    assert contributions.norm(dim=1).max() <= row.sensitivity(BOUNDS) * (1 + 1e-12)  # float64 rounding
    for size in range(1, matrices + 1):
        assert contributions[:, :size].sum(1).max() <= row.unit_sensitivity(BOUNDS, size) * (1 + 1e-12)


@pytest.mark.parametrize("name", ADDITIVE)
def test_the_sensitivity_is_reached(name):
    """A bound that no image comes near would waste the budget."""
    extremes = torch.tensor([[100.0, 0, 0, 0], [100.0, 100, 100, 0]])
    norms = score(name).contributions(extremes, BOUNDS).norm(dim=1)
    assert norms.max() == pytest.approx(score(name).sensitivity(BOUNDS), rel=2.1 * MARGIN)  # of C, and so of C^2


@pytest.mark.parametrize("name", ["energy", "norm"])
def test_half_the_sensitivity_would_be_broken(name):
    half = Bounds(clipping_norm=0.5 * BOUNDS.clipping_norm, votes=3)
    contributions = score(name).contributions(squared_norms(20, 6, 0, 100.0), BOUNDS)
    assert contributions.norm(dim=1).max() > score(name).sensitivity(half)


def test_known_values():
    squared = torch.tensor([[9.0, 16.0, 0.0]])
    loose = Bounds(clipping_norm=10.0, votes=1)
    assert SCORES["energy"].contributions(squared, loose).tolist() == [[9, 16, 0]]
    assert SCORES["norm"].contributions(squared, loose).tolist() == [[3, 4, 0]]
    assert SCORES["vote"].contributions(squared, loose).tolist() == [[0, 1, 0]]
    assert SCORES["share"].contributions(squared, loose).tolist() == [[0.36, 0.64, 0]]
    tight = Bounds(clipping_norm=1.0, votes=1)
    assert SCORES["energy"].contributions(squared, tight)[0].tolist() == pytest.approx([0.36, 0.64, 0], rel=2.1 * MARGIN)


def test_without_a_bound_the_energy_is_exact():
    squared = squared_norms(4, 5, 1, 1e6)
    assert torch.equal(SCORES["energy"].contributions(squared, Bounds(clipping_norm=math.inf, votes=1)), squared.double())


@pytest.mark.parametrize("name", ADDITIVE)
def test_broken_and_vanishing_images_contribute_nothing(name):
    squared = torch.tensor([[float("nan"), 1.0, 1, 1], [float("inf"), 1.0, 1, 1], [0.0, 0, 0, 0]])
    assert score(name).contributions(squared, BOUNDS).abs().sum() == 0


def test_more_votes_than_matrices():
    assert SCORES["vote"].contributions(torch.ones(2, 2), BOUNDS).tolist() == [[1, 1], [1, 1]]


def test_unknown_score_is_refused():
    with pytest.raises(UserError, match="must be one of energy, norm, vote, share"):
        score("synflow")
