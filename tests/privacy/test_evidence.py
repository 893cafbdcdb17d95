"""How often right runs are refused is also counted on 10,000 of them: `python -m tests.privacy.test_evidence`."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from dpsapf.experiment.records import Measured, Release, Spend
from dpsapf.privacy.evidence import UNLIKELY, check_measures, too_even, two_sided
from dpsapf.privacy.noise_seen import NoiseSeen
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
        private="p",
        provenance={},
    )
    return spend, Measured(
        salt="s",
        batches=tuple(present.sum(1).tolist()),
        participation=tuple(took.tolist()),
        strangers=0,
        surplus=0,
        secret="system",
        largest_contribution=1.0,
        not_additive=0.0,
        seconds=1.0,
        peak_memory_mb=1.0,
        **noise_seen(generator.standard_normal((steps, numbers))),
    )


def noise_seen(noise, parts=2):
    """What is measured of noise [T, d] in tensors of almost the same size."""
    seen, pieces = NoiseSeen(), np.array_split(noise, min(parts, noise.shape[1]), axis=1)
    for step in range(len(noise)):
        seen.add([torch.from_numpy(piece[step]) for piece in pieces], [piece.shape[1] for piece in pieces])
    return {
        "sizes": tuple(seen.sizes),
        "squares": tuple(seen.steps),
        "parts": tuple(seen.parts),
        "sums": tuple(seen.sums),
        "looked_at": seen.looked_at,
        "cells": tuple(seen.cells),
        "sum_squares": seen.sum_squares,
        "repetition": seen.repetition,
    }


def scaled(measured, factor):
    """Measures of noise whose sum of squares is so many times as large."""
    return replace(measured, **{key: tuple(factor * value for value in getattr(measured, key)) for key in ("squares", "parts")})


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
    assert f"the noise was {factor:.2g}"[:15] in refused(spend, scaled(measured, factor**2))


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


@pytest.mark.parametrize("key", ["largest_contribution", "repetition", "sum_squares", "not_additive", "squares", "parts"])
def test_what_is_no_number_is_refused(key):
    spend, measured = simulated(3500, 0.1, 4, np.random.default_rng(0))
    value = getattr(measured, key)
    nan = (math.nan, *value[1:]) if isinstance(value, tuple) else math.nan
    broken = Measured.model_construct(**(dict(measured) | {key: nan}))
    assert refused(spend, broken) is not None


def test_a_release_without_noise_needs_none():
    spend, measured = simulated(3500, 0.1, 4, np.random.default_rng(0))
    exact = replace(spend.release, mechanism="none", noise_multiplier=None, sensitivity=None, noise=None)
    none = {"sizes": (), "squares": (), "parts": (), "sums": (), "looked_at": 0, "cells": (0,) * 16, "sum_squares": 0.0}
    silent = replace(measured, repetition=1.0, largest_contribution=1e9, **none)
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
    "sizes = 499: must be 500: noise on each of 500 numbers at every step": {"sizes": (250, 249)},
    "squares = 875.0: the noise was 0.5 times what the release says": {"squares": (125.0,) * 7},
    "squares = 6: must be one for each of 7 steps": {"squares": (500.0,) * 6},
    "parts = 3000.0: must add up": {"parts": (1500.0, 1500.0)},
    "strangers = 1: so many images were read of images that were not in the batch": {"strangers": 1},
    "surplus = 2: so many more images were added up than the batch had": {"surplus": 2},
    "not_additive = 0.11: images together add something else": {"not_additive": 0.11},
    "secret = 'seed': batches or pairs came from a seed": {"secret": "seed"},
    "sums = 2: must be one for each tensor, and one for all together": {"sums": (1.0, 1.0)},
    "sums = 0.0: noise of some numbers takes away, or repeats, that of others": {"sums": (7.0, 0.0, 7.0)},
    "looked_at = 499: must be 4096 places or all": {"looked_at": 499},
    "cells = [3500, 0, 0, 0, 0]: the noise does not have the law": {"cells": (3500, *[0] * 15)},
    "sum_squares = 0.0: noise of some steps takes away": {"sum_squares": 0.0},
    "repetition = 0.0: noise of one step is like another step's": {"repetition": 0.0},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_refusal_names_the_record_the_measure_and_what_it_contradicts(message):
    spend, measured = simulated(3500, 0.1, 7, np.random.default_rng(0))
    assert refused(spend, replace(measured, **REFUSED[message])).startswith(f"private.json: {message}")


def test_empty_batches_that_are_missing_are_refused():
    spend, measured = simulated(50, 0.02, 200, np.random.default_rng(0))
    few = (1,) * 140 + (2,) * 60
    took = stats.binom.pmf(np.arange(201), 200, 0.02)
    assert 0.3 < np.mean(np.array(measured.batches) == 0) < 0.45 and took[0] < 0.02
    assert "are no Poisson samples" in refused(spend, replace(measured, batches=few))


@pytest.mark.parametrize("sigma", [1.0, 50.0])
def test_noise_of_one_number_that_is_rounded_to_0_is_not_refused(sigma):
    """One in 41,000 sigma right counts has it."""
    spend, measured = simulated(40, 1.0, 1, np.random.default_rng(0), numbers=1)
    spend = replace(spend, release=replace(spend.release, noise_multiplier=sigma))
    none = {"squares": (0.0,), "parts": (0.0,), "sums": (0.0, 0.0), "sum_squares": 0.0}
    assert refused(spend, replace(measured, **none)) is None


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
    total = sum(measured.squares)
    assert refused(spend, scaled(measured, quantile(1.1e-8 / 2) / total)) is None
    assert "squares" in refused(spend, scaled(measured, quantile(0.9e-8 / 2) / total))


@pytest.mark.parametrize("quantile", [stats.chi2(500).ppf, stats.chi2(500).isf])
def test_noise_of_one_step_is_refused_where_its_chance_over_all_steps_is_below_the_level(quantile):
    spend, measured = simulated(3500, 0.1, 7, np.random.default_rng(0))
    for chance, right in ((1.1e-8 / 14, True), (0.9e-8 / 14, False)):
        squares = (*measured.squares[1:], quantile(chance))
        parts = tuple(sum(squares) / 2 for _ in measured.parts)
        assert (refused(spend, replace(measured, squares=squares, parts=parts)) is None) == right


FAULTS = {
    "of one step is missing": lambda z: np.concatenate([z[:-1], 0 * z[-1:]]),
    "is half as large at one step": lambda z: np.concatenate([z[:-1], z[-1:] / 2]),
    "is all on one tensor": lambda z: np.where(np.arange(z.shape[1]) < z.shape[1] // 2, math.sqrt(2) * z, 0),
    "is all on every second number": lambda z: np.where(np.arange(z.shape[1]) % 2, math.sqrt(2) * z, 0),
    "is Laplace's": lambda z: stats.laplace.ppf(stats.norm.cdf(z)) / math.sqrt(2),
    "is uniform": lambda z: (2 * stats.norm.cdf(z) - 1) * math.sqrt(3),
    "is a sign": np.sign,
    "is that of two steps before, with the other sign": lambda z: np.concatenate([z[:2], z[2:4], -z[2:4], z[6:]]),
    "is that of the step before, with the other sign": lambda z: (
        np.repeat(z[: len(z) // 2], 2, 0) * np.tile([[1], [-1]], (len(z) // 2, 1))
    ),
    "takes away that of the steps before": lambda z: np.concatenate(
        [z[:-1], -z[:-1].sum(0, keepdims=True) / math.sqrt(len(z) - 1)]
    ),
    "has a part in common at all steps": lambda z: (z + 0.5 * z[:1]) / math.sqrt(1.25),
    "is in one half minus that in the other": lambda z: np.concatenate([z[:, :250], -z[:, :250]], 1),
    "is minus that of the number before": lambda z: np.repeat(z[:, :250], 2, 1) * np.tile([1, -1], 250),
    "is the same five times": lambda z: np.tile(z[:, :100], 5),
    "grows with the batch": lambda z: z * np.linspace(0.8, 1.2, len(z))[:, None],
}


@pytest.mark.parametrize("name", FAULTS)
def test_noise_is_refused_that(name):
    """Each has the right size on average, and is refused on 60 steps of 500 numbers."""
    generator = np.random.default_rng(3)
    spend, measured = simulated(3500, 0.1, 60, generator)
    noise = generator.standard_normal((60, 500))
    assert refused(spend, replace(measured, **noise_seen(noise))) is None
    assert refused(spend, replace(measured, **noise_seen(FAULTS[name](noise)))) is not None


def test_the_noise_of_a_single_number_is_told_rightly():
    spend, measured = simulated(40, 0.5, 1, np.random.default_rng(0), numbers=1)
    assert "the noise was 10 times" in refused(spend, replace(measured, squares=(100.0,), parts=(100.0,)))


def test_repetition_is_refused_where_its_chance_over_all_pairs_is_below_the_level():
    """Of the six pairs of four steps, and of each with the sum of those before."""
    spend, measured = simulated(3500, 0.1, 4, np.random.default_rng(0))
    assert refused(spend, replace(measured, repetition=1e-8 / 10)) is None
    assert "repetition" in refused(spend, replace(measured, repetition=0.99e-8 / 10))


def test_a_norm_may_exceed_its_bound_by_a_millionth():
    spend, measured = simulated(3500, 0.1, 4, np.random.default_rng(0))
    assert refused(spend, replace(measured, largest_contribution=1 + 1e-6)) is None
    assert "exceeds the sensitivity" in refused(spend, replace(measured, largest_contribution=1 + 1.1e-6))


if __name__ == "__main__":
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    found = refusals(runs)
    print(f"{runs} right runs, {len(found)} refused; each of up to 16 kinds of test may refuse with {UNLIKELY}", *found, sep="\n")


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
