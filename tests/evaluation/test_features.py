import cleanfid.features
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dpsapf.evaluation import features as module
from dpsapf.evaluation.features import build_extractor, extract_features
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
    with pytest.raises(UserError, match="must be clean-fid:inception or a packaged network"):
        extract_features(images, protocol(feature_network="package:none"), "cpu")
    with pytest.raises(UserError, match="must have SHA-256 0000"):
        extract_features(images, protocol(feature_sha256="0000"), "cpu")


@pytest.fixture
def inception(monkeypatch):
    """Stands for clean-fid's Inception: returns its input, and so shows what it is given."""
    monkeypatch.setattr(cleanfid.features, "build_feature_extractor", lambda *args, **kwargs: lambda x: x.flatten(1))
    return protocol(feature_network="clean-fid:inception", feature_resolution=20, resize="bicubic")


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
    assert np.array_equal(given, images.transpose(0, 3, 1, 2)) and given.dtype == np.float64


def test_features_do_not_depend_on_the_batch(folder, monkeypatch):
    images = noise(7, 32)
    whole = extract_features(images, protocol(), "cpu")
    monkeypatch.setattr(module, "BATCH", 3)
    assert whole.shape == (7, 64)
    assert np.allclose(extract_features(images, protocol(), "cpu"), whole, atol=1e-6)  # float32 network


@pytest.mark.parametrize(
    ("error", "message"),
    [(OSError("no route"), "cannot be downloaded: no route"), (RuntimeError("bad archive\ntrace"), "delete it: bad archive$")],
)
def test_inception_that_cannot_be_had_is_told_in_one_line(monkeypatch, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(cleanfid.features, "build_feature_extractor", fail)
    with pytest.raises(UserError, match=message):
        extract_features(noise(2, 299), protocol(feature_network="clean-fid:inception"), "cpu")


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
    network = build_extractor(protocol(), "cpu")
    with torch.inference_mode():
        assert not network(torch.zeros(1, 3, 32, 32)).requires_grad


@pytest.mark.parametrize("name", ["tiny", "clean-fid:tiny", "package:", "package:other"])
def test_only_packaged_networks_and_clean_fids_are_known(folder, name):
    with pytest.raises(UserError, match=rf"feature_network = '{name}': must be clean-fid:inception or a packaged network"):
        build_extractor(protocol(feature_network=name), "cpu")


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
    given = extract_features(images, protocol(feature_network="clean-fid:inception", feature_resolution=20, resize=name), "cpu")
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
