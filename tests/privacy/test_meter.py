import math
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from dpsapf.experiment.records import Release
from dpsapf.privacy.evidence import ADDITIVE
from dpsapf.privacy.meter import Meter, first_alone, joint_norm
from dpsapf.privacy.noise import DIGITS, SeededNoise, SystemNoise, gumbel_noise, laplace_noise
from dpsapf.privacy.poisson import poisson_batch
from dpsapf.privacy.values import Private
from dpsapf.support.errors import UserError
from dpsapf.support.randomness import torch_generator

PLANNED = Release(name="dp-sgd", noise_multiplier=9.0, sensitivity=9.0, sampling_rate=0.9, steps=9, noise="system")


def source(name="x"):
    return SeededNoise(torch_generator(0, name))


def steps(meter, count=3, sigma=2.0, bound=0.5, size=600, name="step"):
    sums = [torch.full((size,), 7.0), torch.zeros(3, 4)]
    return [meter.gaussian(Private(sums), sigma, bound, source(f"{name}{step}")).values for step in range(count)]


def test_what_was_done_and_nothing_of_the_plan_is_told():
    meter = Meter(50)
    for step in range(3):
        meter.batch(0.25, torch_generator(0, step))
    steps(meter)
    expected = {"noise_multiplier": 2.0, "sensitivity": 0.5, "sampling_rate": 0.25, "steps": 3, "noise": "seed"}
    assert meter.release(PLANNED) == Release(name="dp-sgd", **expected)


def test_batches_are_the_samplers_and_are_counted():
    meter, counts = Meter(50), np.zeros(50, dtype=int)
    for step in range(4):
        drawn = meter.batch(0.3, torch_generator(0, step))
        assert torch.equal(drawn, poisson_batch(50, 0.3, torch_generator(0, step)))
        counts[drawn] += 1
    measured = meter.measured(1.0)
    assert sum(measured.batches) == counts.sum() and len(measured.batches) == 4
    assert measured.participation == tuple(np.bincount(counts))


def test_noise_is_measured_from_what_was_added():
    """On sums of any size, by step and by tensor: the squares are those of the difference over sigma C."""
    meter = Meter(5)
    released = steps(meter)
    noise = torch.stack([torch.cat([a - 7.0, b.flatten()]) for a, b in released]) / (2.0 * 0.5)
    measured = meter.measured(1.0)
    assert measured.sizes == (600, 12) and noise.shape == (3, 612)
    assert measured.squares == pytest.approx(noise.square().sum(1).tolist(), rel=1e-12)
    assert measured.parts == pytest.approx([float(part.square().sum()) for part in noise.split([600, 12], 1)], rel=1e-12)
    assert measured.looked_at == 612 and measured.sum_squares == pytest.approx(float(noise.sum(0).square().sum()) / 3, rel=1e-12)
    edges = [-math.inf, *stats.norm.ppf(np.arange(1, 16) / 16), math.inf]
    assert measured.cells == tuple(np.histogram(noise, edges)[0])
    assert 1e-6 < stats.chi2(noise.numel()).cdf(sum(measured.squares)) < 1 - 1e-6


@pytest.mark.parametrize("factor", [0.0, 1 / 3])
def test_a_noise_function_that_adds_less_is_seen(monkeypatch, factor):
    """The meter believes no argument: it looks at what comes out."""
    monkeypatch.setattr("dpsapf.privacy.meter.add_gaussian_noise", lambda v, s, c, g, n: v + factor * s * c * n.normal(v))
    meter = Meter(5)
    steps(meter)
    measured = meter.measured(1.0)
    assert sum(measured.squares) / (3 * 612) == pytest.approx(factor**2, abs=0.02)


@pytest.mark.parametrize("size", [50, 9000])
def test_noise_that_is_drawn_again_is_seen(size):
    meter = Meter(5)
    steps(meter, size=size)
    assert meter.measured(1.0).repetition > 1e-4
    again = Meter(5)
    for _ in range(2):
        steps(again, count=1, size=size, name="same")
    assert again.measured(1.0).repetition < 1e-20


def test_noise_of_every_step_is_remembered():
    meter = Meter(5)
    for name in ("first", "second", "third", "second"):
        steps(meter, count=1, name=name)
    assert meter.measured(1.0).repetition < 1e-20


def test_noise_of_other_sizes_than_before_is_a_mistake():
    meter = Meter(5)
    steps(meter, count=1)
    with pytest.raises(ValueError, match="a step has noise of sizes"):
        steps(meter, count=1, size=599)


def test_one_step_repeats_nothing():
    meter = Meter(5)
    steps(meter, count=1)
    assert meter.measured(1.0).repetition == 1.0


def test_the_salt_has_256_bits():
    assert len(bytes.fromhex(Meter(5).measured(1.0).salt)) == 32


@pytest.mark.parametrize(("norms", "largest"), [((0.3, 0.9, 0.5), 0.9), ((), 0.0)])
def test_the_largest_contribution_is_kept(norms, largest):
    meter = Meter(5)
    for norm in norms:
        meter.contribution(norm)
    assert meter.measured(1.0).largest_contribution == largest


def added_up(rows, together=lambda rows: rows.sum(0), micro_batch=3, step=1):
    """A meter's measures, the sum, and the sizes of the passes; on a GPU a pass overwrites what the one before gave."""
    meter, total, place, sizes = Meter(len(rows)), torch.zeros(rows.shape[1], dtype=torch.float64), torch.zeros_like(rows[0]), []

    def sums_of(chunks):
        for chunk in chunks:
            sizes.append(len(chunk))
            yield [place.copy_(together(rows[chunk]))], torch.tensor(len(chunk))

    for number in range(step):
        meter.batch(1.0, torch_generator(number))
    told = meter.add([total], first_alone(torch.arange(len(rows)), micro_batch), sums_of)
    assert told == len(rows)
    return meter.measured(1.0), total, sizes


def some_rows(count=7):
    return torch.randn(count, 5, generator=torch_generator(0, "rows"), dtype=torch.float64)


def test_units_are_added_up_chunk_by_chunk_and_some_of_them_again_alone():
    rows = some_rows()
    measured, total, sizes = added_up(rows)
    assert sizes == [1, 3, 3, *[3, 1, 1, 1]] and torch.allclose(total, rows.sum(0), rtol=1e-12)  # in another order
    assert measured.not_additive < 1e-6 and measured.largest_contribution in rows.norm(dim=1).tolist()
    assert added_up(rows, micro_batch=9)[2] == [1, 6, *[4, 1, 1, 1, 1]], "four at the most"


@pytest.mark.parametrize(("step", "probed"), [(1, True), (2, False), (7, False), (8, True), (9, False), (16, False), (64, True)])
def test_units_are_added_up_again_at_powers_of_eight(step, probed):
    assert (len(added_up(some_rows(), step=step)[2]) > 3) == probed


@pytest.mark.parametrize(
    "together",
    [
        lambda rows: rows.sum(0) / rows.norm(),  # clipped together instead of each
        lambda rows: rows.mean(0),
        lambda rows: rows.sum(0) + (len(rows) > 1),  # what is of no unit
        lambda rows: rows.sum(0) * (len(rows) > 1),  # alone they add nothing
        lambda rows: rows.sum(0) * (math.nan if len(rows) > 1 else 1),
    ],
)
def test_units_that_change_one_another_are_seen(together):
    assert added_up(some_rows().abs(), together)[0].not_additive > 2 * ADDITIVE


def test_units_that_are_never_in_a_pass_together_need_no_second():
    measured, _, sizes = added_up(some_rows(4), micro_batch=1)
    assert sizes == [1, 1, 1, 1] and measured.not_additive == 0


@pytest.mark.parametrize(
    ("voters", "most", "surplus"),
    [(([0, 1, 2], [3, 4]), 1, 0), (([0, 1],), 1, 0), (([0, 1, 2], [2]), 2, 0), (([3] * 3, [3] * 3), 6, 1), ((), 0, 0)],
)
def test_votes_are_measured_by_how_many_a_unit_has_in_a_round(voters, most, surplus):
    meter = Meter(5)
    for step in range(2):
        meter.batch(1.0, torch_generator(step))
        counts = [meter.votes(torch.arange(len(units)) % 2, 4, torch.tensor(units)) for units in voters]
    measured = meter.measured(1.0)
    assert (measured.largest_contribution, measured.surplus, measured.strangers) == (most, surplus, 0)
    assert sum(counts, torch.zeros(4)).sum() == sum(map(len, voters))


def test_a_vote_of_a_unit_that_was_not_drawn_is_seen():
    meter = Meter(40)
    drawn = meter.batch(0.5, torch_generator(0))
    meter.votes(torch.zeros(40, dtype=torch.int64), 2, torch.arange(40))
    assert meter.measured(1.0).strangers == meter.measured(1.0).surplus == 40 - len(drawn) > 0


def test_units_that_are_added_up_beyond_the_batch_are_counted():
    """Whatever adds them: rows of scores, or gradients; also after a checkpoint, and in the worst of several steps."""
    meter = Meter(5)
    for step, rows in enumerate((5, 7, 6)):
        meter.batch(1.0, torch_generator(step))
        meter.rows(torch.ones(3, 2), 4.0)
        resumed = Meter(5)
        resumed.restore(*meter.state())
        meter = resumed
        meter.add([torch.zeros(2)], [torch.arange(rows - 3)], lambda chunks: (([torch.ones(2)], 0.0) for _ in chunks))
    assert meter.measured(1.0).surplus == 2


def test_empty_batches_are_as_frequent_as_they_must_be():
    """A unit alone is in a tenth of the batches: an empty one is not drawn again."""
    meter = Meter(1)
    sizes = [len(meter.batch(0.1, torch_generator(step))) for step in range(300)]
    assert stats.binomtest(sum(sizes), 300, 0.1).pvalue > 1e-4


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_contribution_that_is_no_number_counts_as_unbounded(norm):
    meter = Meter(5)
    meter.contribution(norm)
    meter.contribution(0.5)
    assert meter.measured(1.0).largest_contribution == sys.float_info.max


def test_gumbel_noise_has_the_scale_of_the_exponential_mechanism():
    """D/e with e = 2/(sigma_s sqrt(k)); its quantiles, taken to the normal's, are measured."""
    meter, scores = Meter(5), np.arange(4000.0)
    released = np.array(list(map(float, meter.gumbel(scores, 4, 5.0, 0.7, source()))))
    assert stats.kstest((released - scores) / (0.7 * 5.0 * 2 / 2), stats.gumbel_r.cdf).pvalue > 1e-4
    measured = meter.measured(1.0)
    assert measured.sizes == (4000,) and 1e-6 < stats.chi2(4000).cdf(measured.squares[0]) < 1 - 1e-6
    done = meter.release(PLANNED)
    assert (done.mechanism, done.noise_multiplier, done.sensitivity) == ("exponential", 5.0, 0.7)


@pytest.mark.parametrize("score", [0.0, 2.0**-40, 1e6 + 2.0**-20])
def test_noise_and_what_it_is_added_to_keep_their_digits(score):
    """A ranking is decided by all of them: with few, two sums would be equal too often."""
    (won,), (noise,) = Meter(5).gumbel(np.array([score]), 1, 2.0, 1.0, source()), gumbel_noise(1, Decimal(1), source())
    gap = Meter(5).laplace(Decimal(score), 2.0, 1.0, source())
    for found, drawn in ((won, noise), (gap, laplace_noise(Decimal(2), source()))):
        exact = Fraction(score) + Fraction(drawn)
        assert abs(Fraction(found) - exact) <= abs(exact) / 10 ** (DIGITS - 1)


class Extreme:
    """A source of the least and the largest uniform."""

    kind = "seed"

    def uniform(self, count):
        return [Decimal(2.0**-53), Decimal(1 - 2.0**-53)]


def test_extreme_noise_counts_as_the_normal_quantile_at_a_chance_of_1e_15():
    meter = Meter(5)
    meter.gumbel(np.zeros(2), 1, 1.0, 1.0, Extreme())
    assert meter.measured(1.0).squares[0] == pytest.approx(2 * stats.norm.ppf(1e-15) ** 2, rel=1e-3)


def test_laplace_noise_has_scale_sigma_s():
    noise = np.array([float(Meter(5).laplace(Decimal(3), 5.0, 1.0, source(f"l{draw}"))) - 3.0 for draw in range(2000)])
    assert stats.kstest(noise, stats.laplace(0, 5.0).cdf).pvalue > 1e-4
    meter = Meter(5)
    released = float(meter.laplace(Decimal(3), 5.0, 1.0, source()))
    expected = stats.norm.ppf(stats.laplace.cdf((released - 3.0) / 5.0)) ** 2
    assert meter.measured(1.0).squares == pytest.approx([expected])
    done = meter.release(PLANNED)
    assert (done.mechanism, done.noise_multiplier, done.sensitivity) == ("ptr", 5.0, 1.0)


def test_an_exact_release_says_so():
    meter = Meter(5)
    meter.batch(1.0, torch_generator(0))
    meter.exact(Private([torch.zeros(2)]))
    assert meter.release(PLANNED) == Release(name="dp-sgd", mechanism="none", sensitivity=None, sampling_rate=1.0, steps=1)


@pytest.mark.parametrize("changes", [{"sigma": 1.0}, {"bound": 0.4}])
def test_a_release_must_not_change_on_the_way(changes):
    meter = Meter(5)
    steps(meter, count=1)
    with pytest.raises(UserError, match="at an earlier step of the same release"):
        steps(meter, count=1, **changes)


def test_neither_may_its_rate_its_mechanism_or_where_noise_comes_from():
    meter = Meter(5)
    meter.batch(0.5, torch_generator(0))
    with pytest.raises(UserError, match="sampling_rate"):
        meter.batch(0.4, torch_generator(0))
    steps(meter, count=1)
    with pytest.raises(UserError, match="mechanism"):
        meter.exact(Private([torch.zeros(2)]))
    with pytest.raises(UserError, match="noise = 'system'"):
        meter.gaussian(Private([torch.zeros(600)]), 2.0, 0.5, SystemNoise())


def test_going_on_from_a_checkpoint_measures_the_same():
    def run(meter, first, last):
        for step in range(first, last):
            meter.batch(0.4, torch_generator(0, step))
            meter.contribution(0.1 * step)
            meter.gaussian(Private([torch.zeros(30)]), 2.0, 0.5, source(f"{step}"))
        return meter

    whole, half, resumed = run(Meter(40), 0, 6), run(Meter(40), 0, 3), Meter(40)
    resumed.restore(*half.state())
    run(resumed, 3, 6)
    one, two = (dict(meter.measured(1.0)) for meter in (whole, resumed))
    assert one.pop("salt") != two.pop("salt") and one == two
    assert resumed.release(PLANNED) == whole.release(PLANNED)


def test_a_checkpoint_keeps_the_noise_of_every_step():
    meter, resumed = Meter(5), Meter(5)
    for name in ("first", "second"):
        steps(meter, count=1, name=name, size=9000)
    facts, tensors = meter.state()
    assert tensors["noise/earlier"].shape == (2, 512) and len(tensors["noise/sum"]) == len(tensors["noise/places/0"]) + 6
    resumed.restore(facts, tensors)
    for name in ("third", "first"):
        steps(resumed, count=1, name=name, size=9000)
    assert resumed.measured(1.0).repetition < 1e-20


def test_going_on_leaves_the_checkpoint_as_it_was():
    meter, resumed = Meter(40), Meter(40)
    meter.batch(0.4, torch_generator(0))
    facts, tensors = meter.state()
    before = tensors["participation"].clone()
    resumed.restore(facts, tensors)
    resumed.batch(0.4, torch_generator(1))
    assert torch.equal(tensors["participation"], before)


def test_an_exact_release_says_what_was_clipped_and_does_not_change_on_the_way():
    planned = Release(name="dp-sgd", mechanism="none", sensitivity=0.5, sampling_rate=0.5, steps=2)
    meter = Meter(5)
    for step in range(2):
        meter.batch(0.5, torch_generator(step, "exact"))
        meter.exact(Private([torch.zeros(2)]), 0.5)
    assert meter.release(planned) == planned
    with pytest.raises(UserError, match="sensitivity = 0.7: was 0.5"):
        meter.exact(Private([torch.zeros(2)]), 0.7)


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [[0]]), (2, [[0], [1]]), (6, [[0], [1, 2], [3, 4], [5]])])
def test_the_first_unit_is_alone(count, expected):
    assert [chunk.tolist() for chunk in first_alone(torch.arange(count), 2)] == expected


def test_a_joint_norm_is_taken_in_fp64():
    parts = [torch.full((3_000_000,), 1.0), torch.full((2, 500_000), 2.0)]  # in fp32 torch is off by 1e-5 and more here
    assert joint_norm(parts) == pytest.approx(math.sqrt(7e6), rel=1e-12)
    assert joint_norm([torch.tensor([1e30]), torch.tensor([1e30])]) == pytest.approx(math.sqrt(2) * 1e30)
