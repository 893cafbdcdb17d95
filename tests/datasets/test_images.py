import numpy as np
import pytest
from PIL import Image

from dpsapf.datasets.images import BATCH, Source, array_digest, as_rgb, check_digest, resize
from dpsapf.support.errors import UserError


def test_resize_keeps_pixels_of_the_right_size():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    assert np.array_equal(resize(images, 8)[..., 0], images)


def test_resize_is_pillows_lanczos():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    expected = Image.fromarray(images[1]).resize((20, 20), Image.Resampling.LANCZOS)
    assert np.array_equal(resize(images, 20)[1], np.asarray(expected))


def test_resize_keeps_a_constant_image_constant():
    assert (resize(np.full((1, 8, 8), 77, np.uint8), 32) == 77).all()


def test_resize_gives_grey_images_a_channel():
    assert resize(np.zeros((2, 8, 8), np.uint8), 4).shape == (2, 4, 4, 1)


@pytest.mark.parametrize("count", [1, BATCH, BATCH + 1])
def test_arrays_come_in_batches_and_tell_no_splits(count):
    images, labels = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 1), dtype=np.uint8), np.arange(count)
    source = Source.of_arrays(images, labels)
    batches = list(source.decoded(2))
    assert [len(batch) for batch in batches] == [min(BATCH, count), *[1] * (count > BATCH)]
    assert np.array_equal(np.concatenate(batches), images) and np.array_equal(source.labels, labels)
    assert source.splits.tolist() == ["train"] * count and source.users is None


def test_as_rgb_repeats_grey_and_keeps_colour():
    grey = np.arange(8, dtype=np.uint8).reshape(1, 2, 4, 1)
    assert np.array_equal(as_rgb(grey)[..., 2], grey[..., 0])
    colour = np.zeros((1, 2, 2, 3), np.uint8)
    assert as_rgb(colour) is colour


@pytest.mark.parametrize("change", ["pixel", "label", "shape"])
def test_digest_notices(change):
    images, labels = np.zeros((2, 4, 4), np.uint8), np.array([0, 1])
    before = array_digest(images, labels)
    assert before == array_digest(images.copy(), labels.astype(np.int32)), "neither memory nor integer width matters"
    if change == "pixel":
        images[1, 2, 3] = 1
    elif change == "label":
        labels = labels[::-1]
    else:
        images = images.reshape(2, 2, 8)
    assert array_digest(images, labels) != before


def test_check_digest_accepts_the_right_and_refuses_another(make_entry):
    check_digest(make_entry(sha256="aa"), lambda: "aa")
    with pytest.raises(UserError, match=r"sha256 = 'aa'.*bb.*changed"):
        check_digest(make_entry(sha256="aa"), lambda: "bb")


def test_a_digest_that_is_not_asked_for_is_not_computed(make_entry):
    check_digest(make_entry(sha256=None), lambda: pytest.fail("computed"))
