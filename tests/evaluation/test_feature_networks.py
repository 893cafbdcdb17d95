import io

import cleanfid.inception_pytorch
import numpy as np
import pytest
import timm
import torch
from cleanfid.inception_torchscript import InceptionV3W
from safetensors.torch import load_file, save
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from dpsapf.evaluation import feature_networks
from dpsapf.evaluation.feature_networks import Network, dinov2, load_network, pytorch_fid_inception
from dpsapf.evaluation.features import all_features, class_probabilities, prepared
from dpsapf.evaluation.weights import CLEAN_FID, DINOV2, PYTORCH_FID
from dpsapf.experiment.registries import ProtocolEntry
from dpsapf.support.errors import UserError
from tests.evaluation.networks import dinov2_safetensors, state_dictionary, torchscript

ROUNDING = 1e-4  # of fp32 through some fifty layers, relative to the largest feature


def noise(count, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def protocol(network, **changes):
    values = {"feature_network": network, "feature_sha256": "0" * 64, "feature_resolution": 299, "resize": "bicubic"}
    return ProtocolEntry(**(values | {"classifiers": (), "classifier_steps": 1} | changes))


def close(found, expected):
    return float((found - expected).abs().max() / expected.abs().max()) < ROUNDING


@pytest.fixture
def given(monkeypatch):
    """Hand the bytes of a file out as the weights of any network."""

    def give(path):
        data = path if isinstance(path, bytes) else path.read_bytes()
        monkeypatch.setattr(feature_networks, "read_weights", lambda _: data)

    return give


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    return state_dictionary(tmp_path_factory.mktemp("inception") / "pt_inception.pth")


def test_clean_fids_inception_is_what_clean_fid_makes_of_the_file(tmp_path, given):
    given(torchscript(tmp_path / "inception-2015-12-05.pt"))
    images = noise(2, 299)
    mine = torch.from_numpy(all_features(images, protocol(CLEAN_FID, value_range="tensorflow"), "cpu"))
    theirs = InceptionV3W(str(tmp_path), download=False)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    assert mine.shape == (2, 2048) and close(mine, expected)
    other = torch.from_numpy(all_features(images, protocol(CLEAN_FID), "cpu"))
    assert not close(other, expected), "another range of values must be seen"


def test_pytorch_fids_inception_is_torch_fidelitys(inception_file):
    """Two implementations of the same network, on images that need no resizing: 2,048 features, and logits of 1,008 classes."""
    network, images = (
        pytorch_fid_inception(inception_file.read_bytes(), "cpu"),
        torch.from_numpy(noise(2, 299)).permute(0, 3, 1, 2),
    )
    oracle = FeatureExtractorInceptionV3("oracle", ["2048", "logits"], feature_extractor_weights_path=str(inception_file))
    with torch.no_grad():
        features, logits = oracle(images)
        mine = network.features((images.float() - 128) / 128)
        told = network.logits(mine)
    assert mine.shape == (2, 2048) and told.shape == (2, 1008) and features.abs().max() > 0.1
    assert close(mine, features) and close(told, logits)


def test_small_images_are_resized_and_scaled_as_pytorch_fid_does(inception_file, monkeypatch):
    """clean-fid keeps pytorch-fid's class; resizing, which it took out, is pytorch-fid's line: bilinear, corners not aligned."""
    state = torch.load(inception_file, weights_only=True)
    monkeypatch.setattr(cleanfid.inception_pytorch, "load_state_dict_from_url", lambda *args, **kwargs: state)
    oracle, images = cleanfid.inception_pytorch.InceptionV3([3], resize_input=False).eval(), noise(2, 32)
    unit = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    resized = torch.nn.functional.interpolate(unit, size=(299, 299), mode="bilinear", align_corners=False)
    network, wanted = pytorch_fid_inception(inception_file.read_bytes(), "cpu"), protocol(PYTORCH_FID, resize="torch-bilinear")
    with torch.no_grad():
        assert close(network.features(prepared(images, wanted, "cpu")), oracle(resized)[0].flatten(1))


def test_classes_are_probabilities_of_the_features(inception_file):
    network, wanted = (
        pytorch_fid_inception(inception_file.read_bytes(), "cpu"),
        protocol(PYTORCH_FID, metrics=("inception_score",)),
    )
    features = np.random.default_rng(0).normal(0, 1, (5, 2048)).astype(np.float32)
    found = class_probabilities(features, network, wanted, "cpu")
    logits = network.logits(torch.from_numpy(features)).double()
    expected = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    assert found.shape == (5, 1008) and np.allclose(found, expected.numpy(), atol=1e-6)  # fp32 softmax
    assert class_probabilities(features, network, protocol(PYTORCH_FID), "cpu") is None


def test_a_network_without_classes_has_no_inception_score():
    wanted = protocol(DINOV2, metrics=("inception_score",))
    with pytest.raises(UserError, match="inception_score.*tells no classes apart"):
        class_probabilities(np.zeros((2, 3), np.float32), Network(lambda images: images), wanted, "cpu")


@pytest.mark.slow
def test_dinov2_is_timms_with_its_position_embedding_resampled(tmp_path):
    path = dinov2_safetensors(tmp_path / "model.safetensors")
    assert load_file(path)["pos_embed"].shape == (1, 37 * 37 + 1, 768)
    name = DINOV2.removeprefix("timm:")
    oracle = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, num_classes=0, img_size=224
    ).eval()
    network, images = dinov2(path.read_bytes(), "cpu"), torch.from_numpy(noise(1, 224)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        found, expected = network.features(images), oracle(images)
    assert found.shape == (1, 768) and close(found, expected)


def test_imagenets_normalisation_is_torchvisions():
    from torchvision.transforms.functional import normalize, to_tensor

    image = noise(1, 224)
    expected = normalize(to_tensor(image[0]), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    wanted = protocol(DINOV2, feature_resolution=224, value_range="imagenet")
    assert torch.allclose(prepared(image, wanted, "cpu")[0], expected, atol=1e-6)  # one rounding more or less


class Harmful:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return exec, (f"open({str(self.target)!r}, 'w').write('run')",)


def test_no_code_of_a_state_dictionary_runs_and_the_refusal_is_one_line(tmp_path, given):
    buffer = io.BytesIO()
    torch.save({"fc.bias": Harmful(tmp_path / "ran")}, buffer)
    given(buffer.getvalue())
    with pytest.raises(UserError, match="is no such network") as caught:
        load_network(protocol(PYTORCH_FID), "cpu")
    assert not (tmp_path / "ran").exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [CLEAN_FID, PYTORCH_FID, DINOV2])
@pytest.mark.parametrize("data", [b"", b"no weights", save({"x": torch.zeros(2)})])
def test_a_file_that_is_no_such_network_is_told_in_one_line(given, name, data):
    given(data)
    with pytest.raises(UserError, match="is no such network") as caught:
        load_network(protocol(name), "cpu")
    assert "\n" not in str(caught.value)
