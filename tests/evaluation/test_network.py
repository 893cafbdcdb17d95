import pytest
import torch
from safetensors.torch import save_file

from dpsapf.evaluation.network import FEATURES, FeatureNetwork, load_feature_network, standardise
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FeatureNetwork(7)


@pytest.fixture
def weights(network, tmp_path):
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_features_and_logits_have_their_shapes(network):
    images = torch.zeros(3, 3, 32, 32)
    assert network(images).shape == (3, FEATURES)
    assert network.classify(images).shape == (3, 7)
    assert torch.isfinite(network(images)).all()


def test_network_reads_back_as_it_was_saved(network, weights):
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    loaded = load_feature_network(weights, sha256(weights))
    assert torch.equal(loaded(images), network(images))
    assert not loaded.training


def test_features_tell_images_apart(network):
    images = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    first, second = network(images)
    assert not torch.allclose(first, second, atol=1e-3)


def test_other_digest_is_refused(weights):
    with pytest.raises(UserError, match="SHA-256"):
        load_feature_network(weights, "0" * 64)


def test_weights_are_small(weights):
    assert weights.stat().st_size < 2e6


def test_standardise_scales_the_features_and_keeps_the_predictions():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FeatureNetwork(5).eval()
    images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    before = network.classify(images).detach()
    standardise(network, images)
    features = network(images).detach()
    torch.testing.assert_close(network.classify(images).detach(), before, rtol=1e-3, atol=1e-4)  # fp32, rescaled weights
    torch.testing.assert_close(features.mean(0), torch.zeros(64), rtol=0, atol=1e-2)  # fp32 of small variances
    torch.testing.assert_close(features.std(0), torch.ones(64), rtol=1e-2, atol=0)
