import pytest
import torch

from dpsapf.bench import work
from dpsapf.evaluation.classifiers import CLASSIFIERS
from dpsapf.experiment import cost
from dpsapf.experiment.work import architectures, classifiers


def test_the_packaged_model_is_counted_as_the_file_says():
    from dpsapf.pretraining.architecture import MAX_TOKENS, TEXT_WIDTH, build_unet, build_vae

    found = work.counted(build_unet, build_vae, work._denoised, 32, MAX_TOKENS, TEXT_WIDTH)
    assert found == architectures()["public-mini"]
    assert found.forward < found.frozen < found.full


@pytest.mark.slow
def test_every_architecture_is_counted_as_the_file_says():
    assert work.architectures() == architectures()


def test_inception_is_counted_as_the_costs_say():
    from torchvision.models import inception_v3

    with torch.device("meta"):
        network, pixels = inception_v3(weights=None, init_weights=False).eval(), torch.zeros(1, 3, 299, 299)
        assert work._operations(lambda: network(pixels)) == cost.INCEPTION


def test_stable_diffusion_has_the_published_number_of_parameters():
    assert architectures()["sd-1"].parameters == 859_520_964 and architectures()["sd-2"].parameters == 865_910_724


def test_no_classifier_is_left_out():
    assert set(classifiers()) == set(CLASSIFIERS)


@pytest.mark.slow
def test_every_classifier_is_counted_as_the_file_says():
    """WRN-28-10: 5.2 billion multiplications forward (Zagoruyko and Komodakis 2016, Table 5), times 2 and 3."""
    assert work.trained_classifiers() == classifiers()
    assert classifiers()["wrn-28-10"] == pytest.approx(5.2e9 * 2 * 3 / 1e12, rel=0.02)
