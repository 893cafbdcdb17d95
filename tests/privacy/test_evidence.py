"""How often right runs are refused is also counted on 10,000 of them: `python -m tests.privacy.test_evidence`."""

import itertools
import sys

import numpy as np
import pytest
from scipy import stats

from dpsapf.experiment.records import Measured, Release, Spend
from dpsapf.privacy.evidence import UNLIKELY, check_measures, too_even, two_sided
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError

RATES = {(3500, 0.1): 60, (1200, 0.29): 30, (50, 0.02): 200, (4500, 0.0005): 60, (3500, 0.99): 20, (3500, 1.0): 5, (40, 0.5): 1}


def simulated(images, rate, steps, generator, numbers=500):
    """The spend record and measures of a right release, each measure drawn from its own law."""
    present = generator.random((steps, images)) < rate
    took = np.bincount(present.sum(0))
    release = Release(name="dp-sgd", noise_multiplier=1.0, sensitivity=1.0, sampling_rate=rate, steps=steps, noise="system")
    spend = Spend(
        subject="x",
        release=release,
        unit="image",
        population=images,
        dataset_id="d",
        made_from={},
        digest="w",
        numbers=numbers,
        trainable_parameters=numbers,
        peak_memory_mb=1.0,
        private="p",
        provenance={},
    )
    measured = Measured(
        salt="s",
        batches=tuple(present.sum(1).tolist()),
        participation=tuple(took.tolist()),
        largest_contribution=1.0,
        numbers=numbers * steps,
        squares=float(generator.chisquare(numbers * steps)),
        repetition=float(generator.random(max(1, 2 * (steps - 1))).min()),
        seconds=1.0,
    )
    return spend, measured


def refused(spend, measured):
    try:
        check_measures(spend, measured, "private.json")
    except UserError as error:
        return str(error)
    return None


def refusals(count, seed=0):
    """Simulate right runs of every kind; returns what was refused."""
    generator = np.random.default_rng(seed)
    kinds = itertools.islice(itertools.cycle(RATES.items()), count)
    return [found for (images, rate), steps in kinds if (found := refused(*simulated(images, rate, steps, generator)))]


def test_right_runs_are_not_refused():
    assert refusals(140) == []


def test_a_batch_of_exactly_the_expected_size_is_no_proof_of_anything():
    """What the dispersion's underflow refused in 0.2 % of the releases."""
    spend, measured = simulated(4000, 0.25, 1, np.random.default_rng(0))
    assert refused(spend, replace(measured, batches=(1000,), participation=(3000, 1000))) is None


@pytest.mark.parametrize(("images", "rate"), [(3500, 0.1), (20, 0.05), (50000, 0.0001)])
def test_two_sided_tails_are_exact(images, rate):
    """Summed over all counts, the chance of a value below p is at most p."""
    counts = np.arange(images + 1)
    values, law = two_sided(counts, images, rate), stats.binom.pmf(counts, images, rate)
    for level in (1e-9, 1e-4, 0.05):
        assert law[values < level].sum() <= level
    assert values.max() == 1


def test_too_even_is_the_exact_chance_of_lying_so_near():
    generator = np.random.default_rng(0)
    seen = generator.binomial(400, 0.1, (20000, 3))
    near = (abs(seen - 40).max(1) <= 4).mean()
    assert too_even(np.array([36, 40, 43]), 400, 0.1) == pytest.approx(near, abs=0.015)


@pytest.mark.parametrize("rate", [0.02, 0.5, 0.99])
def test_batches_of_one_size_are_refused(rate):
    spend, measured = simulated(3500, rate, 60, np.random.default_rng(0))
    found = refused(spend, replace(measured, batches=(round(3500 * rate),) * 60))
    assert f"no Poisson samples of 3500 images at rate {rate}" in found


@pytest.mark.parametrize("factor", [1 / 3, 0.9, 1.1])
def test_noise_of_another_size_is_refused(factor):
    spend, measured = simulated(3500, 0.1, 60, np.random.default_rng(0))
    assert f"the noise was {factor:.2g}"[:15] in refused(spend, replace(measured, squares=measured.squares * factor**2))


@pytest.mark.parametrize("images", [60, 3500])
def test_one_batch_used_again_is_refused(images):
    spend, measured = simulated(images, 0.1, 60, np.random.default_rng(0))
    few = images // 10
    again = replace(measured, batches=(few,) * 60, participation=(images - few, *[0] * 59, few))
    assert refused(spend, again) is not None


def test_an_image_that_always_takes_part_among_few_is_refused():
    spend, measured = simulated(3500, 0.01, 60, np.random.default_rng(0))
    present = np.random.default_rng(1).random((60, 3500)) < 0.01
    present[:, 0] = True
    measured = replace(
        measured, batches=tuple(present.sum(1).tolist()), participation=tuple(np.bincount(present.sum(0)).tolist())
    )
    assert "do not take part independently" in refused(spend, measured)


@pytest.mark.parametrize("key", ["largest_contribution", "repetition", "squares"])
def test_what_is_no_number_is_refused(key):
    spend, measured = simulated(3500, 0.1, 4, np.random.default_rng(0))
    broken = Measured.model_construct(**(dict(measured) | {key: float("nan")}))
    assert refused(spend, broken) is not None


def test_a_release_without_noise_needs_none():
    spend, measured = simulated(3500, 0.1, 4, np.random.default_rng(0))
    exact = replace(spend.release, mechanism="none", noise_multiplier=None, sensitivity=None, noise=None)
    silent = replace(measured, numbers=0, squares=0.0, repetition=1.0, largest_contribution=1e9)
    assert refused(replace(spend, release=exact), silent) is None
    assert refused(spend, silent) is not None


if __name__ == "__main__":
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    found = refusals(runs)
    print(f"{runs} right runs, {len(found)} refused; each of up to 6 kinds of test may refuse with {UNLIKELY}", *found, sep="\n")
