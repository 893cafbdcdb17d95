import numpy as np
import pytest
import torch

from dpsapf.evolution.votes import Electorate
from dpsapf.experiment.records import Release
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import SystemNoise, add_gaussian_noise, grid
from dpsapf.privacy.values import Private
from tests.contracts.last_bits import CANARIES, SUBJECTS, accounted, attack, bound, floating
from tests.contracts.one_run_audit import SCORED, SCORES, coins, planted_saliency, released_scores
from tests.contracts.one_run_audit import _own_matrix as own_matrix


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_the_attack_decides_nothing_on_the_grid_and_much_in_floating_point(subject):
    assert attack(subject, add_gaussian_noise) == (0, 0)
    decided, right = attack(subject, floating)
    assert decided == right > CANARIES / 200 and bound(decided, right) > accounted(subject)


def test_scores_that_are_written_lie_on_the_grid(tmp_path):
    """All the way through the stage: the file's numbers, read again, are whole steps, of canaries and of the others."""
    members = torch.from_numpy(coins(SCORED).nonzero()[0])
    with planted_saliency(None, squared_gradient_norms=own_matrix):
        steps = released_scores(tmp_path, members) / grid(SCORES.sensitivity, SCORED)
    assert (steps == np.round(steps)).all() and len(np.unique(steps)) > SCORED / 2


def test_votes_lie_on_the_grid():
    release = Release(name="pe-histogram", noise_multiplier=5.0, sensitivity=1.0, sampling_rate=1.0, steps=1, noise="system")
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    voters = Electorate(features, torch.zeros(50, dtype=torch.int64), None, release, "system", 0, Meter(50), "cpu")
    (votes,) = voters.vote(features[:20], torch.zeros(20, dtype=torch.int64), 0).values
    steps = votes / grid(1.0, 20)
    assert torch.equal(steps, steps.round())


@pytest.mark.parametrize("shapes", [[(5,)], [(3, 4), (100,)]])
def test_every_tensor_of_a_release_lies_on_the_grid_of_all_of_them(shapes):
    sums = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes]
    released = Meter(5).gaussian(Private(sums), 1.3, 0.7, SystemNoise()).values
    spacing = grid(0.7, sum(value.numel() for value in released))
    for value in released:
        assert torch.equal(value / spacing, (value / spacing).round()) and value.dtype == torch.float64
