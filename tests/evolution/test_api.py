import numpy as np
import pytest

from dpsapf.evolution.api import image_api
from dpsapf.support.checked import replace
from tests.evolution.conftest import evolving

LABELS = np.array([0, 0, 1, 1, 1])
PROMPTS = [("a red circle on a blue background", "a photo of a cat")]


@pytest.fixture
def api(tmp_path, model_record):
    return image_api(model_record, PROMPTS, 0, evolving(tmp_path))


def test_images_are_the_models_own_size_and_each_is_another(api):
    images = api.images(LABELS)
    assert images.shape == (5, 32, 32, 3) and images.dtype == np.uint8
    assert len(np.unique(images, axis=0)) == 5


def test_the_batch_size_changes_no_image(api, tmp_path, model_record):
    small = image_api(model_record, PROMPTS, 0, evolving(tmp_path, micro_batch=2))
    images = api.images(LABELS)
    assert abs(small.images(LABELS).astype(int) - images).max() <= 1  # fp32 sums may round a pixel the other way
    varied = [one.variations(images, LABELS, 0.5, "x").astype(int) for one in (api, small)]
    assert abs(varied[0] - varied[1]).max() <= 1


def test_variations_of_equal_images_differ_and_equal_names_repeat_them(api):
    same = np.repeat(api.images(LABELS)[:1], 5, axis=0)
    varied = api.variations(same, LABELS, 1.0, 0, "vary")
    assert varied.dtype == np.uint8 and len(np.unique(varied, axis=0)) == 5
    assert (api.variations(same, LABELS, 1.0, 0, "vary") == varied).all()
    assert (api.variations(same, LABELS, 1.0, 1, "vary") != varied).any()


def test_at_the_full_degree_nothing_of_the_image_is_left_and_at_half_something_is(api):
    dark, light = (np.full((5, 32, 32, 3), value, np.uint8) for value in (0, 255))
    apart = [
        abs(api.variations(dark, LABELS, degree, "x").astype(int) - api.variations(light, LABELS, degree, "x")).mean()
        for degree in (0.5, 1.0)
    ]
    assert apart[0] > 5 * apart[1]


def test_classes_and_wordings_have_their_prompts(model_record, tmp_path):
    options = replace(evolving(tmp_path), guidance_scale=7.0)
    wordings = [*PROMPTS, ("a handwritten digit 7", "a handwritten digit 7")]
    one, both, other = (image_api(model_record, some, 0, options) for some in (wordings[:1], wordings, wordings[1:]))
    assert one.prompts.shape[:2] == (1, 2) and both.prompts.shape[:2] == (2, 2)
    labels = np.zeros(12, dtype=np.int64)
    made = [each.images(labels) for each in (one, both, other)]
    first, second = ((made[1] == made[place]).all((1, 2, 3)) for place in (0, 2))
    assert (first ^ second).all() and first.any() and second.any(), "each image has one wording, of its own choice"
    assert (one.images(labels[:2]) != one.images(labels[:2] + 1)).any()
