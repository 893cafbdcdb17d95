import itertools

import numpy as np
import pytest

from dpsapf.aggregation.multiple_tests import LEVEL, holm

DRAWS = [np.random.default_rng(seed).uniform(0, 0.2, size) for seed, size in enumerate((1, 2, 3, 5, 7))]
TIES = [[0.01, 0.01, 0.04], [0.0, 0.0, 0.5], [1.0, 1.0], [0.03, 0.02, 0.01, 0.04]]


def closed_test(p):
    """Holm's correction as what it is: the closed test of Bonferroni's, over every subset that has the hypothesis."""
    members = range(len(p))
    subsets = [set(some) for size in range(1, len(p) + 1) for some in itertools.combinations(members, size)]
    return [max(min(1, len(some) * min(p[i] for i in some)) for some in subsets if index in some) for index in members]


@pytest.mark.parametrize("p", [*DRAWS, *TIES])
def test_holm_is_the_closed_test_of_bonferroni(p):
    np.testing.assert_allclose(holm(p), closed_test(list(p)))


def test_what_was_not_tested_is_not_of_the_family():
    np.testing.assert_allclose(holm([np.nan, 0.02, 0.04, np.nan]), [np.nan, 0.04, 0.04, np.nan])
    assert len(holm([])) == 0


def test_a_family_of_true_nulls_is_rejected_in_five_of_a_hundred():
    rejected = [(holm(p) <= LEVEL).any() for p in np.random.default_rng(0).uniform(size=(4000, 6))]
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.014)  # four standard errors
