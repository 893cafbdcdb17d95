"""On a CPU, where bf16 numbers are made fp32; the path of a GPU with a stand-in for its product, and really in `test_gpu`."""

import pytest
import torch

from dpsapf.gradients import products
from dpsapf.gradients.products import PIECE, product, product_with_fp32

DTYPES = torch.float32, torch.bfloat16


def factors(length, dtype):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator) for shape in ((2, 3, 5, length), (2, 3, length, 4)))
    return left.to(dtype), right.to(dtype)


@pytest.fixture
def pieces(monkeypatch):
    """The products that a GPU would be asked for, by their numbers of summands, done exactly and rounded to fp32."""
    asked = []

    def bmm(left, right, out_dtype):
        assert left.dtype == right.dtype == torch.bfloat16 and out_dtype == torch.float32
        asked.append(left.shape[2])
        return (left.double() @ right.double()).float()

    monkeypatch.setattr(products, "_is_bf16_on_a_gpu", lambda values: values.dtype == torch.bfloat16)
    monkeypatch.setattr(torch, "bmm", bmm)
    return asked


def test_bf16_numbers_are_multiplied_exactly_and_summed_in_fp32():
    left, right = factors(1000, torch.bfloat16)
    found, exact = product(left, right), left.double() @ right.double()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)  # fp32 sums of a thousand numbers of order 1
    assert (left @ right - exact).abs().max() > 1e-2, "what sums in bf16 would do"


@pytest.mark.parametrize("length", [1, PIECE, PIECE + 1, 3 * PIECE + 7])
def test_long_sums_are_taken_in_pieces(pieces, length):
    left, right = factors(length, torch.bfloat16)
    torch.testing.assert_close(product(left, right).double(), left.double() @ right.double(), rtol=1e-5, atol=1e-4)
    assert max(pieces) <= PIECE and sum(pieces) == length


def test_three_bf16_numbers_hold_an_fp32_number():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-5, 5).repeat(100)
    parts = products._bf16_parts(values)
    assert torch.equal(sum(part.double() for part in parts).float(), values)
    assert {part.dtype for part in parts} == {torch.bfloat16}


def test_a_product_with_fp32_numbers_is_exact_to_fp32(pieces):
    (left, _), (_, right) = factors(PIECE + 9, torch.float32), factors(PIECE + 9, torch.bfloat16)
    found, exact = product_with_fp32(left[0, 0], right[0, 0]), left[0, 0].double() @ right[0, 0].double()
    assert len(pieces) == 6
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(product_with_fp32(left[0, 0], right[0, 0].float()).double(), exact, rtol=1e-5, atol=1e-4)
    assert (left[0, 0].bfloat16().double() @ right[0, 0].double() - exact).abs().max() > 1e-2, "with one part"


def test_pieces_are_of_512_products_which_are_32_steps_of_a_gpu():
    assert PIECE == 512 and products.CUTS == 32


@pytest.mark.parametrize("first", [True, False])
def test_factors_of_two_types_are_multiplied_in_fp32(pieces, first):
    left, right = (
        values.to(dtype) for values, dtype in zip(factors(9, torch.float32), DTYPES if first else DTYPES[::-1], strict=True)
    )
    torch.testing.assert_close(product(left, right), left.float() @ right.float())
    assert not pieces
