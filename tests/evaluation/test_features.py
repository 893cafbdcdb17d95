import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dpsapf.evaluation import feature_networks
from dpsapf.evaluation import features as module
from dpsapf.evaluation.feature_networks import Network, load_network
from dpsapf.evaluation.features import all_features, extract_features, feature_batches
from dpsapf.evaluation.network import FeatureNetwork
from dpsapf.experiment.registries import ProtocolEntry
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256


def noise(count, side):
    return np.random.default_rng(0).integers(0, 255, (count, side, side, 3)).astype(np.uint8)


def protocol(**changes):
    values = {"feature_network": "package:tiny", "feature_resolution": 32, "resize": "lanczos"}
    return ProtocolEntry(**(values | {"classifiers": (), "classifier_steps": 1} | changes))


def test_unknown_network_and_wrong_digest_are_refused(folder):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    with pytest.raises(UserError, match="'package:none': no such packaged network: there is package:tiny$"):
        extract_features(images, protocol(feature_network="package:none"), "cpu")
    with pytest.raises(UserError, match="must have SHA-256 0000"):
        extract_features(images, protocol(feature_sha256="0000"), "cpu")


@pytest.fixture
def inception(monkeypatch):
    """Stands for clean-fid's Inception: returns its input as numbers from 0 to 255, and so shows what it is given."""
    shows = Network(lambda images: (images * 128 + 128).flatten(1))
    monkeypatch.setitem(feature_networks.BUILDERS, "clean-fid:inception", lambda *_: shows)
    monkeypatch.setattr(feature_networks, "read_weights", lambda _: b"")
    return cleaned()


def cleaned(**changes):
    clean_fid = {"feature_network": "clean-fid:inception", "value_range": "tensorflow"}
    return protocol(**(clean_fid | {"feature_resolution": 20, "resize": "bicubic"} | changes))


def test_inception_is_given_clean_fids_resizing_of_floats(inception):
    """clean-fid resizes each channel as floats with Pillow's antialiased filter and does not round."""
    images = noise(3, 48)
    given = extract_features(images, inception, "cpu").reshape(3, 3, 20, 20)
    channel = Image.fromarray(images[1, :, :, 2].astype(np.float32))
    expected = np.asarray(channel.resize((20, 20), Image.Resampling.BICUBIC))
    assert np.allclose(given[1, 2], expected, atol=1e-4)


def test_images_of_the_right_size_are_given_as_they_are(inception):
    images = noise(3, 20)
    given = extract_features(images, inception, "cpu").reshape(3, 3, 20, 20)
    assert np.allclose(given, images.transpose(0, 3, 1, 2), atol=1e-4) and given.dtype == np.float64


def test_features_do_not_depend_on_the_batch(folder, monkeypatch):
    images = noise(7, 32)
    whole = extract_features(images, protocol(), "cpu")
    monkeypatch.setattr(module, "BATCH", 3)
    assert whole.shape == (7, 64)
    assert np.allclose(extract_features(images, protocol(), "cpu"), whole, atol=1e-6)  # float32 network


def test_a_packaged_network_is_given_images_from_minus_1_to_1(folder):
    images = noise(4, 32)
    network = FeatureNetwork(3)
    network.load_state_dict(load_file(folder / "networks" / "tiny.safetensors"))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = network(pixels).double().numpy()
    assert pixels.min() == pytest.approx(-1) and pixels.max() > 0.98
    assert np.allclose(extract_features(images, protocol(), "cpu"), expected, atol=1e-6)  # float32 network


def test_a_pinned_network_is_loaded_and_gives_no_gradient(folder):
    digest = sha256(folder / "networks" / "tiny.safetensors")
    assert extract_features(noise(2, 32), protocol(feature_sha256=digest), "cpu").shape == (2, 64)
    network = load_network(protocol(), "cpu")
    with torch.inference_mode():
        features = network.features(torch.zeros(1, 3, 32, 32))
        assert not features.requires_grad and network.logits(features).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "remedy"), [("tiny", "must be"), ("clean-fid:tiny", "must be"), ("package:", "no such packaged")]
)
def test_only_packaged_and_published_networks_are_known(folder, name, remedy):
    with pytest.raises(UserError, match=rf"feature_network = '{name}': {remedy}"):
        load_network(protocol(feature_network=name), "cpu")


def test_features_stay_with_their_images(folder):
    images, order = noise(7, 32), np.array([3, 0, 6, 1, 5, 2, 4])
    features = extract_features(images, protocol(), "cpu")
    assert np.allclose(extract_features(images[order], protocol(), "cpu"), features[order], atol=1e-6)  # float32 network
    assert len(np.unique(features.round(6), axis=0)) == 7


@pytest.mark.parametrize(("name", "other"), [("lanczos", "bicubic"), ("bicubic", "lanczos")])
def test_the_protocols_filter_is_used(inception, name, other):
    """On a network that returns its input; features of two filters are not comparable."""
    images = noise(1, 48)
    filters = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}
    given = extract_features(images, cleaned(resize=name), "cpu")
    channel = Image.fromarray(images[0, :, :, 0].astype(np.float32))
    resized = {key: np.asarray(channel.resize((20, 20), value)) for key, value in filters.items()}
    computed = given.reshape(3, 20, 20)[0]
    assert np.allclose(computed, resized[name], atol=1e-4) and not np.allclose(computed, resized[other], atol=0.5)


@pytest.mark.parametrize("side", [16, 48])
def test_smaller_and_larger_images_are_brought_to_the_networks_size(folder, side):
    """A constant image stays constant, so that its features are those of the same colour at the right size."""
    flat = np.full((1, side, side, 3), 90, np.uint8)
    expected = extract_features(np.full((1, 32, 32, 3), 90, np.uint8), protocol(), "cpu")
    assert np.allclose(extract_features(flat, protocol(), "cpu"), expected, atol=1e-5)  # the filter's rounding


@pytest.mark.parametrize("quantise", [False, True])
def test_quantised_images_are_those_of_a_file_and_others_keep_their_fractions(inception, quantise):
    images = noise(2, 48)
    given = extract_features(images, cleaned(quantise=quantise), "cpu").reshape(2, 3, 20, 20).transpose(0, 2, 3, 1)
    whole = np.asarray(Image.fromarray(images[1]).resize((20, 20), Image.Resampling.BICUBIC))
    assert np.allclose(given[1], whole, atol=1e-4) == quantise and np.allclose(given[1], whole, atol=1.5)


def test_torchs_bilinear_filter_is_not_antialiased(inception):
    """Reduced to half, each pixel is the mean of four; Pillow's filter reaches farther."""
    images = noise(1, 40)
    given = extract_features(images, cleaned(resize="torch-bilinear"), "cpu").reshape(3, 20, 20)
    expected = images[0].reshape(20, 2, 20, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.allclose(given, expected, atol=1e-3)


@pytest.mark.parametrize("threads", [1, 3])
def test_features_do_not_depend_on_threads_and_keep_their_order(inception, monkeypatch, threads):
    monkeypatch.setattr(module, "BATCH", 4)
    images = noise(11, 48)
    expected = np.concatenate([extract_features(images[i : i + 1], inception, "cpu") for i in range(11)])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert np.array_equal(extract_features(images, inception, "cpu"), expected)
    finally:
        torch.set_num_threads(before)


class Watched:
    """Images that are counted as they are read."""

    def __init__(self, images):
        self.images, self.read = images, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        self.read += len(self.images[rows])
        return self.images[rows]


def test_no_more_than_the_next_batch_is_read_ahead(inception, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 3)
    images = Watched(noise(12, 20))
    for done, _ in enumerate(feature_batches(images, inception, "cpu"), 1):
        assert images.read <= 3 * (done + 1)
    assert images.read == 12 and done == 4


def test_large_images_come_in_smaller_batches(inception):
    sizes = [len(batch) for batch in feature_batches(noise(130, 20), cleaned(feature_resolution=299), "cpu")]
    assert sizes == [64, 64, 2]


def test_collected_features_are_the_batches_in_one_array(folder, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 3)
    images = noise(7, 32)
    found = all_features(images, protocol(), "cpu")
    assert found.dtype == np.float32 and np.array_equal(found, extract_features(images, protocol(), "cpu"))
