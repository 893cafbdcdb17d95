import math
from itertools import cycle, islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsapf.privacy.clipping import MARGIN, TOGETHER, clip_factors, clipped_sum

KINDS = ("flat", "automatic")


def drawn(images, seed=0, shapes=((3, 4), (5,), (2, 1, 3))):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, *shape, generator=generator) for shape in shapes]


def naive_clipped_sum(gradients, bound, clipping):
    """One image at a time, to a little less than the bound."""
    bound *= 1 - 2**-10
    sums = [torch.zeros_like(gradient[0]) for gradient in gradients]
    for image in range(len(gradients[0])):
        norm = math.sqrt(sum(gradient[image].double().square().sum().item() for gradient in gradients))
        factor = bound / (norm + 0.01) if clipping == "automatic" else min(1.0, bound / norm)
        for total, gradient in zip(sums, gradients, strict=True):
            total += factor * gradient[image]
    return sums


@settings(max_examples=25, deadline=None)
@given(images=st.integers(1, 6), bound=st.floats(0.1, 5), clipping=st.sampled_from(KINDS), seed=st.integers(0, 99))
def test_clipped_sum_equals_the_loop(images, bound, clipping, seed):
    gradients = drawn(images, seed)
    sums, _ = clipped_sum(gradients, bound, clipping)
    for total, expected in zip(sums, naive_clipped_sum(gradients, bound, clipping), strict=True):
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)  # fp32 sums in another order


@pytest.mark.parametrize("clipping", KINDS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_sensitivity_on_neighbouring_batches(clipping, scale):
    """Removing any one image moves the joint sum by at most C."""
    generator = torch.Generator().manual_seed(1)
    gradients = [scale * torch.randn(8, 20, generator=generator), scale * torch.randn(8, 3, 3, generator=generator)]
    whole, _ = clipped_sum(gradients, 1.5, clipping)
    for image in range(8):
        rest = [gradient[torch.arange(8) != image] for gradient in gradients]
        without, _ = clipped_sum(rest, 1.5, clipping)
        change = math.sqrt(sum((a - b).square().sum().item() for a, b in zip(whole, without, strict=True)))
        assert change <= 1.5 * (1 + 1e-5)  # fp32 sums of eight images


def rounded_apart(images, size=16):
    """Gradients that make two sums in fp32 drift apart: the sum of half of them is just below a power of two, P.

    An image more brings it above P, where numbers are twice as far apart. There the others, by turns a little more and a little
    less than P 2^-24, count as P 2^-23 and as 0.
    """
    half, power = images // 2, 2.0 ** math.floor(math.log2(0.9 * images / 2 / math.sqrt(size)))
    step = power * 2.0**-24
    others = [step * 17 / 16, -step * 15 / 16]
    rows = [0.0, *[power / half] * (half - 1), power / half - 8 * step, *islice(cycle(others), images - half - 1)]
    return torch.tensor(rows)[:, None].repeat(1, size)


@pytest.mark.parametrize("images", [TOGETHER, 512, 8192])
def test_no_gradients_make_rounding_in_a_sum_exceed_the_bound(images):
    gradients = rounded_apart(images)
    without, _ = clipped_sum([gradients], 1.0, "flat")
    gradients[0] = (1 - MARGIN) / 4 * (1 - 1e-6)
    whole, norms = clipped_sum([gradients], 1.0, "flat")
    assert norms.max() <= 1 - MARGIN, "nothing is clipped"
    assert 0.99 < (whole[0].double() - without[0].double()).norm() <= 1
    if images > TOGETHER:
        in_fp32 = torch.ones(images) @ gradients - torch.ones(images) @ gradients.index_fill(0, torch.tensor([0]), 0)
        assert in_fp32.double().norm() > 1, "as a sum in fp32 does"


def test_what_sums_in_fp32_may_be_off_by_is_half_the_margin():
    """Each of two sums of B numbers is off by B 2^-24 times what they add up to at most, which is B C."""
    assert 2 * TOGETHER**2 * 2.0**-24 == MARGIN / 2


@pytest.mark.parametrize("images", [1, TOGETHER, TOGETHER + 1, 3 * TOGETHER])
def test_sums_of_many_images_are_in_double_precision(images):
    gradients = drawn(images)
    sums, _ = clipped_sum(gradients, 1.0, "automatic")
    assert {total.dtype for total in sums} == {torch.float32 if images <= TOGETHER else torch.float64}
    for total, expected in zip(sums, naive_clipped_sum(gradients, 1.0, "automatic"), strict=True):
        torch.testing.assert_close(total.float(), expected, rtol=1e-4, atol=1e-5)  # fp32 sums in another order


def test_unclipped_sum_would_break_the_sensitivity():
    gradients = [torch.full((2, 4), 10.0)]
    assert gradients[0].sum(0).norm() - gradients[0][:1].sum(0).norm() > 1.5
    (whole,), (one,) = (clipped_sum([gradients[0][:count]], 1.5, "none")[0] for count in (2, 1))
    assert (whole - one).norm() > 1.5


@settings(max_examples=100, deadline=None)
@given(norm=st.floats(0, 1e18), bound=st.floats(1e-6, 1e6), clipping=st.sampled_from(KINDS))
def test_no_norm_exceeds_the_bound_whatever_it_was(norm, bound, clipping):
    squared = torch.tensor([norm]).square()
    (factor,) = clip_factors(squared, bound, clipping).tolist()
    assert 0 < factor < math.inf
    assert factor * math.sqrt(squared.item()) <= bound


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 10**6),
    spread=st.floats(0, 3),
    scale=st.floats(1e-12, 1e12),
    ratio=st.floats(1 - 1e-6, 1 + 1e-6) | st.floats(1e-3, 10),
    clipping=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
)
def test_the_exact_norm_of_large_gradients_is_at_most_the_bound(size, spread, scale, ratio, clipping, seed):
    """In fp64, of what is released of one image: bounds next to its norm, numbers of one size and of many sizes."""
    generator = torch.Generator().manual_seed(seed)
    gradient = scale * torch.randn(1, size, generator=generator).mul(spread).exp()
    bound = ratio * gradient.double().norm().item()
    sums, _ = clipped_sum([gradient, gradient[:, : size // 3]], bound, clipping)
    assert 0 < torch.cat(sums).double().norm().item() <= bound


@pytest.mark.parametrize("clipping", KINDS)
def test_the_exact_norm_of_a_whole_unet_is_at_most_the_bound(clipping):
    gradient = torch.rand(1, 3 * 10**7, generator=torch.Generator().manual_seed(0))
    (total,), _ = clipped_sum([gradient], 0.5, clipping)
    assert 0.5 * (1 - 1.01 * MARGIN) < total.double().norm().item() <= 0.5


@settings(max_examples=100, deadline=None)
@given(norm=st.floats(1e-9, 1e9), ratio=st.floats(1 - 1e-12, 1 + 1e-12) | st.floats(1e-3, 10), clipping=st.sampled_from(KINDS))
def test_factors_of_double_norms_are_as_exact(norm, ratio, clipping):
    """The saliency pass clips in fp64."""
    (factor,) = clip_factors(torch.tensor([norm], dtype=torch.float64).square(), ratio * norm, clipping).tolist()
    assert factor * norm <= ratio * norm
    bound = (1 - MARGIN) * ratio
    expected = bound * norm / (norm + 0.01) if clipping == "automatic" else min(1.0, bound)
    assert factor == pytest.approx(expected, rel=1e-13)


@settings(max_examples=50, deadline=None)
@given(norm=st.floats(1e-3, 1e3), bound=st.floats(1e-2, 1e2))
def test_flat_clipping_leaves_short_gradients_and_cuts_long_ones_to_the_bound(norm, bound):
    factor = clip_factors(torch.tensor([norm]).square(), bound, "flat").item()
    bound *= 1 - MARGIN
    assert factor * norm == pytest.approx(min(norm, bound), rel=1e-6)  # fp32
    assert norm > bound * (1 - 1e-6) or factor == 1  # exactly


def test_automatic_clipping_lengthens_short_gradients_and_keeps_their_order():
    norms = torch.tensor([0.0, 1e-3, 0.01, 1.0, 100.0])
    clipped = clip_factors(norms.square(), 2.0, "automatic") * norms
    expected = [2.0 * (1 - MARGIN) * norm / (norm + 0.01) for norm in norms.tolist()]
    assert clipped.tolist() == pytest.approx(expected, rel=1e-6)  # fp32
    assert clipped.diff().gt(0).all() and clipped[2] == pytest.approx(1 - MARGIN)  # half the bound at a norm of gamma


def test_a_broken_image_contributes_nothing():
    gradients = [torch.tensor([[1.0, 0.0], [float("nan"), 0.0], [float("inf"), 0.0]])]
    sums, _ = clipped_sum(gradients, 2.0, "flat")
    assert sums[0].tolist() == [1.0, 0.0]
    assert clip_factors(torch.tensor([float("inf"), float("nan"), 0.0]), 1.0, "flat").tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("clipping", [*KINDS, "none"])
def test_an_image_that_is_broken_in_one_parameter_contributes_to_none(clipping):
    gradients = drawn(4)
    gradients[2][1, 0, 0, 2] = float("nan")
    sums, norms = clipped_sum(gradients, 1.0, clipping)
    expected, _ = clipped_sum([gradient[[0, 2, 3]] for gradient in gradients], 1.0, clipping)
    assert all(torch.equal(total, other) for total, other in zip(sums, expected, strict=True))
    assert norms.isnan().tolist() == [False, True, False, False]


def test_an_image_whose_norm_overflows_contributes_nothing():
    """Its norm is not known, so its contribution cannot be bounded."""
    sums, norms = clipped_sum([torch.tensor([[1e25, 0.0], [0.5, 0.0]])], 1.0, "flat")
    assert norms[0].isinf() and sums[0].tolist() == [0.5, 0.0]


def test_without_clipping_every_factor_is_1_and_no_bound_is_needed():
    assert clip_factors(torch.tensor([0.0, 4.0, 1e30]), math.inf, "none").tolist() == [1.0, 1.0, 1.0]
    gradients = drawn(5)
    for total, gradient in zip(clipped_sum(gradients, math.inf, "none")[0], gradients, strict=True):
        torch.testing.assert_close(total, gradient.sum(0))


def test_norms_are_those_before_clipping_over_all_parameters_together():
    gradients = [torch.full((1, 4), 1.0), torch.full((1, 2, 6), 1.0)]
    sums, norms = clipped_sum(gradients, 1.0, "flat")
    assert norms.tolist() == [4.0]
    assert {round(value, 4) for total in sums for value in total.flatten().tolist()} == {round((1 - MARGIN) / 4, 4)}  # one factor
    assert all((gradient == 1).all() for gradient in gradients)  # the gradients are left as they were


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(5)), clipping=st.sampled_from(KINDS))
def test_the_order_of_images_does_not_matter(order, clipping):
    gradients = drawn(5)
    sums, norms = clipped_sum(gradients, 1.0, clipping)
    others, permuted = clipped_sum([gradient[order] for gradient in gradients], 1.0, clipping)
    assert torch.equal(norms[order], permuted)
    for total, other in zip(sums, others, strict=True):
        torch.testing.assert_close(total, other, rtol=1e-5, atol=1e-6)  # fp32 sums in another order


@pytest.mark.parametrize("clipping", [*KINDS, "none"])
def test_nobody_contributes_zero(clipping):
    sums, norms = clipped_sum(drawn(0), 1.0, clipping)
    assert [tuple(total.shape) for total in sums] == [(3, 4), (5,), (2, 1, 3)]
    assert not any(total.any() for total in sums) and norms.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_that_are_clipped_stay_by_2_to_the_minus_10_below_the_bound(dtype):
    assert clip_factors(torch.tensor([4.0], dtype=dtype), 1.0, "flat").item() == (1 - 2**-10) / 2
