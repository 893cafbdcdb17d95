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


BATCHES = (350, 345, 355, 340, 360, 330, 370)
REFUSED = {
    "batches = 6: must be the 7 of the release's steps": {"batches": BATCHES[1:]},
    "batches = [350, 345, 355, 340, 360]: are no Poisson samples of 3500 images at rate 0.1": {"batches": (*BATCHES[:6], 1000)},
    "participation = [3500, 0, 0, 0, 0]: must count 3500 images and agree with the batches": {"participation": (3500, *[0] * 7)},
    "participation = [1, 3149, 0, 0, 0]: must count": {"participation": (1, 3149, *[0] * 7)},  # who took part in 8 of 7 steps
    "participation = [3150, 0, 0, 0, 0]: images do not take part independently at rate 0.1": {
        "batches": BATCHES,
        "participation": (3150, *[0] * 6, 350),
    },
    "largest_contribution = 1.01: exceeds the sensitivity 1.0": {"largest_contribution": 1.01},
    "numbers = 3499: must be 3500: noise on each of 500 numbers at every step": {"numbers": 3499},
    "squares = 875.0: the noise was 0.5 times what the release says": {"squares": 875.0},
    "repetition = 0.0: noise of one step is like another step's": {"repetition": 0.0},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_refusal_names_the_record_the_measure_and_what_it_contradicts(message):
    spend, measured = simulated(3500, 0.1, 7, np.random.default_rng(0))
    assert refused(spend, replace(measured, **REFUSED[message])).startswith(f"private.json: {message}")


def test_one_batch_that_is_not_all_is_refused_at_rate_1():
    spend, measured = simulated(3500, 1.0, 6, np.random.default_rng(0))
    found = refused(spend, replace(measured, batches=(3500, 3500, 3499, 3500, 3500, 3500)))
    assert found.startswith("private.json: batches = [3500, 3500, 3499, 3500, 3500]: rate 1 takes all 3500 images at every step")


def test_no_unit_takes_part_more_often_than_there_are_steps():
    spend, measured = simulated(40, 0.5, 3, np.random.default_rng(0))
    whole = (*measured.participation, *[0] * (4 - len(measured.participation)))
    assert refused(spend, replace(measured, participation=whole)) is None
    assert "must count 40 images" in refused(spend, replace(measured, participation=(*whole, 0)))


def test_two_sided_is_the_exact_test_of_a_fair_coin():
    counts = np.arange(11)
    expected = [stats.binomtest(int(count), 10, 0.5).pvalue for count in counts]
    assert two_sided(counts, 10, 0.5) == pytest.approx(expected)


def first_unlikely(chance, counts):
    """The first of growing counts whose chance is below one in a hundred million."""
    return next(count for count in counts if chance(count) < 1e-8)


def test_one_batch_is_refused_where_its_chance_over_all_steps_is_below_the_level():
    spend, measured = simulated(3500, 0.1, 60, np.random.default_rng(0))
    limit = first_unlikely(lambda size: 60 * 2 * stats.binom.sf(size - 1, 3500, 0.1), range(350, 3500))
    for size, said in ((limit - 1, "participation = "), (limit, "batches = ")):  # which is looked at next, and disagrees
        assert said in refused(spend, replace(measured, batches=(*measured.batches[1:], size)))


def test_batches_each_of_a_right_size_are_refused_for_their_total():
    spend, measured = simulated(3500, 0.1, 60, np.random.default_rng(0))
    larger = tuple(375 + step % 5 for step in range(60))
    assert two_sided(np.array([379]), 3500, 0.1) > 0.05 and too_even(np.array(larger), 3500, 0.1) > 1e-4
    assert "batches = " in refused(spend, replace(measured, batches=larger))


def test_participation_is_refused_where_its_chance_over_all_counts_is_below_the_level():
    """Too many units that took part in half of the steps, and as many fewer in one step more and one less."""
    spend, measured = simulated(100_000, 0.5, 4, np.random.default_rng(0))
    measured = replace(measured, batches=(50_100, 49_900, 50_150, 49_850))
    limit = first_unlikely(lambda count: 5 * 2 * stats.binom.sf(count - 1, 100_000, 6 / 16), range(38_000, 40_000))
    for count, is_right in ((limit - 2 + limit % 2, True), (limit + limit % 2, False)):
        others = (100_000 - 2 * 6250 - count) // 2
        found = refused(spend, replace(measured, participation=(6250, others, count, others, 6250)))
        assert (found is None) == is_right


@pytest.mark.parametrize("quantile", [stats.chi2(3500).ppf, stats.chi2(3500).isf])
def test_noise_is_refused_where_its_chance_is_below_the_level(quantile):
    spend, measured = simulated(3500, 0.1, 7, np.random.default_rng(0))
    assert refused(spend, replace(measured, squares=quantile(1.1e-8 / 2))) is None
    assert "squares" in refused(spend, replace(measured, squares=quantile(0.9e-8 / 2)))


def test_the_noise_of_a_single_number_is_told_rightly():
    spend, measured = simulated(40, 0.5, 1, np.random.default_rng(0), numbers=1)
    assert "the noise was 10 times" in refused(spend, replace(measured, squares=100.0))


def test_repetition_is_refused_where_its_chance_over_all_steps_is_below_the_level():
    """Of each step with the first and with the one before."""
    spend, measured = simulated(3500, 0.1, 4, np.random.default_rng(0))
    assert refused(spend, replace(measured, repetition=1e-8 / 8)) is None
    assert "repetition" in refused(spend, replace(measured, repetition=0.99e-8 / 8))


def test_a_norm_may_exceed_its_bound_by_a_millionth():
    spend, measured = simulated(3500, 0.1, 4, np.random.default_rng(0))
    assert refused(spend, replace(measured, largest_contribution=1 + 1e-6)) is None
    assert "exceeds the sensitivity" in refused(spend, replace(measured, largest_contribution=1 + 1.1e-6))


if __name__ == "__main__":
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    found = refusals(runs)
    print(f"{runs} right runs, {len(found)} refused; each of up to 6 kinds of test may refuse with {UNLIKELY}", *found, sep="\n")


@pytest.mark.parametrize(
    ("mechanism", "bound", "seen"), [("none", 0.5, True), ("none", None, False), ("exponential", 0.5, False)]
)
def test_what_was_clipped_without_noise_is_held_to_its_bound(mechanism, bound, seen):
    spend, measured = simulated(3500, 0.1, 60, np.random.default_rng(0))
    spend = replace(spend, release=replace(spend.release, mechanism=mechanism, sensitivity=bound))
    found = refused(spend, replace(measured, largest_contribution=0.6))
    assert bool(found and "largest_contribution = 0.6: exceeds the sensitivity 0.5" in found) == seen


def test_a_contribution_that_nobody_measured_is_refused():
    spend, measured = simulated(3500, 0.1, 60, np.random.default_rng(0))
    found = refused(spend, replace(measured, largest_contribution=0.0))
    assert "private.json: largest_contribution = 0.0: what a unit adds was not measured" in found
    exact = replace(spend, release=replace(spend.release, mechanism="none", noise_multiplier=None, noise=None))
    assert not refused(exact, replace(measured, largest_contribution=0.0))


def test_nobody_in_any_batch_adds_nothing():
    spend, measured = simulated(3, 0.001, 1, np.random.default_rng(0))
    assert measured.batches == (0,) and not refused(spend, replace(measured, largest_contribution=0.0))
