"""The attacks on right code: none finds more than epsilon. `python -m tests.faults` runs them on faulty copies of the tree."""

import pytest

from tests.contracts.one_run_audit import SUBJECTS, target


@pytest.mark.parametrize("subject", SUBJECTS)
def test_an_attack_finds_no_more_than_epsilon(subject):
    release, _, attacked, _ = SUBJECTS[subject]
    found = attacked()
    bound = max(found.bound(), found.curve_bound() if release.sampling_rate == 1 else 0.0)
    assert bound <= target(release), f"bound {bound:.2f} above epsilon {target(release):.2f}"
