import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpsapf.datasets import histo_mini, oct_mini
from dpsapf.datasets.images import array_digest
from dpsapf.datasets.textures import CANVAS, render_dataset, smooth_noise
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from tests.all_images import as_part

DRAW = {"oct-mini": (oct_mini.draw_scan, 4, 1), "histo-mini": (histo_mini.draw_patch, 2, 3)}
CELLS = st.integers(1, CANVAS)


class Ones:
    """A generator that draws one everywhere."""

    def standard_normal(self, shape):
        return np.ones(shape)


@pytest.fixture(params=DRAW)
def procedural(request, make_entry):
    draw, classes, channels = DRAW[request.param]
    names = tuple(f"class {label}" for label in range(classes))
    return draw, make_entry(loader=request.param, classes=names, prompts=names, channels=channels, resolution=32, procedural=True)


def nearest_mean_accuracy(part, half):
    """Accuracy of the simplest classifier, nearest class mean, fitted on one half and tested on the other."""
    pixels = part.images.reshape(len(part.labels), -1).astype(float)
    fit = np.arange(len(pixels)) % half < half // 2
    means = np.stack([pixels[fit & (part.labels == label)].mean(0) for label in np.unique(part.labels)])
    guesses = ((pixels[~fit, None] - means) ** 2).sum(-1).argmin(1)
    return (guesses == part.labels[~fit]).mean()


def test_shapes_types_and_label_order(procedural):
    draw, entry = procedural
    part = as_part(render_dataset(entry, draw, 3))
    classes = len(entry.classes)
    assert part.images.shape == (3 * classes, 32, 32, entry.channels)
    assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int64)
    assert part.labels.tolist() == np.repeat(np.arange(classes), 3).tolist()


def test_each_image_has_its_own_seed(procedural):
    draw, entry = procedural
    few, more = (as_part(render_dataset(entry, draw, count)) for count in (2, 5))
    for label in range(len(entry.classes)):
        assert np.array_equal(few.images[few.labels == label], more.images[more.labels == label][:2])
    assert len({image.tobytes() for image in more.images}) == len(more.images)


def test_the_other_resolution_shows_the_same_image(procedural):
    draw, entry = procedural
    small, large = (as_part(render_dataset(replace(entry, resolution=side), draw, 2)).images for side in (32, 64))
    shrunk = large.reshape(-1, 32, 2, 32, 2, entry.channels).mean((2, 4))
    assert np.abs(shrunk - small).mean() < 12  # of 255; Lanczos against box filter on speckle


def test_images_use_the_grey_scale(procedural):
    draw, entry = procedural
    images = as_part(render_dataset(entry, draw, 20)).images
    assert images.std(axis=(1, 2, 3)).min() > 12
    assert ((images == 0) | (images == 255)).mean() < 0.2


def test_a_digest_is_that_of_the_reduced_images(procedural):
    draw, entry = procedural
    part = as_part(render_dataset(entry, draw, 1))
    digest = array_digest(part.images, part.labels)
    assert np.array_equal(as_part(render_dataset(replace(entry, sha256=digest), draw, 1)).images, part.images)
    for other in (replace(entry, sha256="0" * 64), replace(entry, sha256=digest, resolution=16)):
        with pytest.raises(UserError, match="sha256"):
            render_dataset(other, draw, 1)


def test_classes_overlap_but_carry_signal(procedural):
    draw, entry = procedural
    accuracy = nearest_mean_accuracy(as_part(render_dataset(entry, draw, 150)), 2)
    assert 1 / len(entry.classes) < accuracy < 0.95, "class means alone must not separate the classes"


def test_the_set_does_not_depend_on_split_names_or_prompts(procedural):
    draw, entry = procedural
    names = tuple(f"other {name}" for name in entry.classes)
    other = replace(entry, split_seed=5, classes=names, prompts=names, validation=3, test=3)
    assert np.array_equal(as_part(render_dataset(entry, draw, 2)).images, as_part(render_dataset(other, draw, 2)).images)


def test_another_loader_draws_other_images(make_entry):
    def draw(label, generator):
        return generator.random((CANVAS, CANVAS))

    first, second = (as_part(render_dataset(make_entry(loader=name), draw, 1)).images for name in ("a", "b"))
    assert not np.array_equal(first, second)


def test_values_outside_are_cut_off_and_the_others_rounded(make_entry):
    levels = [[-3.0, -0.001, 0.0, 0.4 / 255], [0.6 / 255, 0.5, 254.6 / 255, 7.0]]

    def draw(label, generator):
        return np.tile(levels[label], (CANVAS, CANVAS // 4))

    images = as_part(render_dataset(make_entry(resolution=CANVAS), draw, 1)).images
    assert images[:, 0, :4, 0].tolist() == [[0, 0, 0, 0], [1, 128, 255, 255]]


def test_smooth_noise_is_smooth_and_centred():
    fields = np.stack([smooth_noise(np.random.default_rng(seed), 8) for seed in range(200)])
    assert fields.shape == (200, CANVAS, CANVAS)
    assert abs(fields.mean()) < 0.03  # standard error about 0.01
    assert 0.55 < fields.std() < 0.85
    assert np.abs(np.diff(fields, axis=1)).mean() < 0.2 * fields.std()


@settings(max_examples=30, deadline=None)
@given(CELLS, CELLS)
def test_weights_of_the_grid_sum_to_one(rows, columns):
    assert np.allclose(smooth_noise(Ones(), rows, columns), 1, rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(CELLS, CELLS, st.integers(0, 2**32))
def test_the_field_stays_between_its_grid_values(rows, columns, seed):
    grid = np.random.default_rng(seed).standard_normal((rows + 1, columns + 1))
    field = smooth_noise(np.random.default_rng(seed), rows, columns)
    assert grid.min() - 1e-12 <= field.min() and field.max() <= grid.max() + 1e-12


def test_rows_run_from_top_to_bottom_and_columns_are_as_many_if_omitted():
    down, across = (np.abs(np.diff(smooth_noise(np.random.default_rng(3), 1, 32), axis=axis)).mean() for axis in (0, 1))
    assert across > 5 * down, "one cell from top to bottom, 32 from left to right"
    assert np.array_equal(smooth_noise(np.random.default_rng(3), 6), smooth_noise(np.random.default_rng(3), 6, 6))
