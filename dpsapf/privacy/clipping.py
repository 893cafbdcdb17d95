"""Per-image clipping: the only place where a contribution is bounded."""

import typing
from collections.abc import Callable

import torch

Clipping = typing.Literal["flat", "automatic", "none"]
AUTOMATIC_STABILITY = 0.01  # gamma of automatic clipping (Bu et al. 2023, arXiv 2206.07136)
MARGIN = 2.0**-10  # share of the bound that clipped norms stay below it
TOGETHER = 64  # images that are added up in fp32


def clip_factors(squared_norms: torch.Tensor, bound: float, clipping: Clipping) -> torch.Tensor:
    """Return the factor that brings each image's gradient to a norm of at most ``bound``.

    C' = (1 - MARGIN) C takes the place of C. A sixteenth of the margin is for the grid that sums are rounded to
    (`dpsapf.privacy.noise.grid`). Half of it is for sums in fp32. Adding B images errs by at most 2^-24 B times what their norms
    add up to, whatever their gradients are. So two sums that differ by one image err by 2^-23 B^2 C together: 2^-11 C for
    `TOGETHER` images. More than these are added in fp64. The rest is for a norm from sums in fp32, which may be too small, and
    for the rounding of factors. So two sums that differ by one image differ, on the grid, by an L2 norm of at most C. Sums that
    are contracted from tokens need more: see `dpsapf.gradients.ghost_clipping`.

    Args:
        squared_norms: squared L2 norms over everything that is released jointly, [B], >= 0, fp32 or fp64.
        bound: C > 0.
        clipping: ``flat`` is min(1, C'/||g||) (Abadi et al. 2016); ``automatic`` is C'/(||g|| + 0.01); ``none`` is 1,
            for the method without a guarantee.

    Returns:
        Factors [B]. ``factor * ||g|| <= C`` for the first two kinds, for the exact norm; a non-finite norm gets 0, so
        that a broken image contributes nothing rather than something unbounded.
    """
    norms = squared_norms.sqrt()
    bound *= 1 - MARGIN
    if clipping == "none":
        factors = torch.ones_like(norms)
    elif clipping == "automatic":
        factors = bound / (norms + AUTOMATIC_STABILITY)
    else:
        factors = torch.clamp(bound / norms.clamp_min(torch.finfo(norms.dtype).tiny), max=1.0)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))


def clipped_sum(gradients: list[torch.Tensor], bound: float, clipping: Clipping) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Clip each image's gradient over all parameters together, and sum over images.

    Args:
        gradients: per parameter, per-image gradients [B, *shape].
        bound: C > 0.
        clipping: see `clip_factors`.

    Returns:
        Per parameter the sum [*shape] of clipped gradients, see `added_up`, and the norms [B] before clipping. Adding or
        removing one image changes the sums, taken together, by an L2 norm of at most C.
    """
    squared = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0)
    factors = clip_factors(squared, bound, clipping)
    usable = torch.isfinite(squared)
    sums = [weighted_sum(factors, with_zeros(gradient, usable)) for gradient in gradients]
    return sums, squared.sqrt()


def weighted_sum(factors: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Sum gradients [B, *shape] times factors [B] over images, see `added_up`."""
    return added_up(lambda *part: torch.tensordot(*part, dims=1), TOGETHER, factors, gradients)


def added_up(sum_of: Callable[..., torch.Tensor], size: int, *values: torch.Tensor) -> torch.Tensor:
    """Sum rows of some tensors, ``size`` at a time in fp32, and these sums in fp64.

    In fp32 one row more may change how all others are rounded, see `clip_factors`.

    Args:
        sum_of: parts of the tensors -> the sum over their rows.
        size: rows of a part.
        values: the tensors, with as many rows each.

    Returns:
        The sum: fp32 of one part, fp64 of several.
    """
    parts = zip(*(value.split(size) for value in values), strict=True)
    total = sum_of(*next(parts))
    for part in parts:
        total = total.double().add_(sum_of(*part))
    return total


def with_zeros(values: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
    """Replace rows of ``values`` [b, ...] that are not usable, bool [b], by zeros: 0 times what is not finite is not 0.

    Whether all are usable is asked on a CPU only: a GPU would make the CPU wait for the answer.
    """
    if not values.is_cuda and usable.all():
        return values
    return torch.where(usable.reshape(-1, *[1] * (values.dim() - 1)), values, 0)
