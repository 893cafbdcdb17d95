import copy
import io
import pickle

import numpy as np
import pytest
import torch

from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import SystemNoise
from dpsapf.privacy.values import Private, Released, only_released
from dpsapf.support.randomness import torch_generator


def released(population=30, rate=0.4):
    meter = Meter(population)
    meter.batch(rate, torch_generator(0))
    return meter.gaussian(Private([torch.ones(3), torch.zeros(2, 2)]), 2.0, 0.5, SystemNoise())


@pytest.mark.parametrize(
    "write",
    [pickle.dumps, copy.deepcopy, lambda sums: torch.save(sums, io.BytesIO()), lambda sums: np.save(io.BytesIO(), sums)],
)
def test_private_sums_get_into_no_file(write):
    with pytest.raises(TypeError, match="private sums are not written to a file: release them through a Meter"):
        write(Private([torch.ones(3)]))


def test_private_sums_show_nothing_of_themselves():
    sums = Private([torch.full((3,), 7.25)])
    assert "7.25" not in f"{sums} {sums!r}"
    with pytest.raises(TypeError):
        torch.stack([sums])
    with pytest.raises(TypeError):
        iter(sums)


@pytest.mark.parametrize("value", [Private([torch.ones(3)]), torch.ones(3), np.ones(3), (torch.ones(3),), 1.0, None])
def test_only_what_was_released_passes(value):
    with pytest.raises(TypeError, match=f"{type(value).__name__} was not released"):
        only_released(value)
    assert isinstance(only_released(released()), Released)


def test_means_are_over_the_expected_batch_which_is_no_secret():
    found = released(population=30, rate=0.4)
    assert found.expected == 12 and [value.shape for value in found.values] == [(3,), (2, 2)]
    assert all(torch.equal(mean, value / 12) for mean, value in zip(found.means(), found.values, strict=True))
    assert {value.dtype for value in found.values} == {torch.float64}
