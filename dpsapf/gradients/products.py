"""Matrix products with fp32 results: of fp32 numbers, and of bf16 ones at the speed of bf16.

A product of two bf16 numbers has 16 bits and is exact in fp32: multiplying them as they are loses nothing. A GPU's matrix
units do so some ten times as fast as they multiply fp32 numbers. They cut off, and do not round, what they add 16 products at
a time, so that the error grows with a sum's length: each time by some 2^-24 of the sum of absolute values. Sums are therefore
taken in pieces, which are added in fp32; a piece is off by 2^-19 of that sum.
"""

import functools

import torch

PIECE = 512  # products that are summed by matrix units
CUTS = PIECE // 16  # of a sum of them


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return ``left @ right``, summed in fp32 whatever the factors' type: fp32 [..., n, m].

    Args:
        left: [..., n, k], fp32 or bf16.
        right: [..., k, m], likewise; the same leading dimensions.
    """
    if not (_is_bf16_on_a_gpu(left) and _is_bf16_on_a_gpu(right)):
        return left.float() @ right.float()
    matrices = (left.reshape(-1, *left.shape[-2:]).split(PIECE, 2), right.reshape(-1, *right.shape[-2:]).split(PIECE, 1))
    products = (torch.bmm(*pieces, out_dtype=torch.float32) for pieces in zip(*matrices, strict=True))
    total = functools.reduce(torch.Tensor.add_, products)
    return total.reshape(*left.shape[:-2], *total.shape[1:])


def product_with_fp32(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return ``left @ right`` of an fp32 and, maybe, a bf16 matrix, to fp32 whatever the second's type: fp32 [..., n, m].

    Three bf16 numbers hold the 24 bits of an fp32 number, so that three products of bf16 numbers make it up.
    """
    if not _is_bf16_on_a_gpu(right):
        return left @ right.float()
    return functools.reduce(torch.Tensor.add_, (product(part, right) for part in _bf16_parts(left)))


def _is_bf16_on_a_gpu(values: torch.Tensor) -> bool:
    return values.is_cuda and values.dtype == torch.bfloat16


def _bf16_parts(values: torch.Tensor) -> list[torch.Tensor]:
    """Split fp32 numbers into bf16 numbers that add up to them."""
    parts = []
    for _ in range(3):
        parts.append(values.bfloat16())
        values = values - parts[-1]
    return parts
