import sys

import cleanfid.features
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from dpsapf.datasets.archive import write_archive
from dpsapf.evaluation import features as module
from dpsapf.evaluation.evaluate import evaluate
from dpsapf.evaluation.features import extract_features
from dpsapf.evaluation.network import FeatureNetwork
from dpsapf.evaluation.reference import reference_features
from dpsapf.experiment.records import Fidelity, Utility
from dpsapf.experiment.registries import ProtocolEntry
from dpsapf.experiment.stages import Evaluate, ReferenceFeatures
from dpsapf.support.errors import UserError
from dpsapf.support.records import read_record, write_record


@pytest.fixture
def folder(tmp_path, monkeypatch, dataset_record):
    """A dataset, a protocol and a feature network, all tiny."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 60), ("validation", 10), ("test", 20)):
        labels = np.arange(count) % 2
        pixels = generator.integers(0, 120, (count, 32, 32, 3)) + 100 * labels[:, None, None, None]
        arrays |= {f"{split}_images": pixels.astype(np.uint8), f"{split}_labels": labels}
    write_archive(tmp_path / "dataset.npz", arrays)
    write_archive(tmp_path / "same.npz", {"images": arrays["train_images"], "labels": arrays["train_labels"]})
    write_record(tmp_path / "dataset.json", dataset_record)
    (tmp_path / "networks").mkdir()
    save_file(FeatureNetwork(3).state_dict(), tmp_path / "networks" / "tiny.safetensors")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "features.py"))
    protocol = {
        "feature_network": "package:tiny",
        "feature_resolution": 32,
        "resize": "lanczos",
        "kid_subset_size": 20,
        "classifiers": ["resnet"],
        "classifier_steps": 5,
    }
    (tmp_path / "protocols.yaml").write_text(yaml.safe_dump({"tiny-v1": protocol, "tiny-v2": protocol}))
    return tmp_path


def reference(folder, protocol="tiny-v1"):
    reference_features(
        ReferenceFeatures(
            archive=folder / "dataset.npz",
            dataset=folder / "dataset.json",
            protocol=protocol,
            registry=folder / "protocols.yaml",
            features=folder / "features.npz",
            ceiling=folder / "ceiling.json",
        )
    )


def options(folder, **changes):
    values = {
        "synthetic": folder / "same.npz",
        "archive": folder / "dataset.npz",
        "dataset": folder / "dataset.json",
        "features": folder / "features.npz",
        "protocol": "tiny-v1",
        "registry": folder / "protocols.yaml",
        "fidelity": folder / "fidelity.json",
        "utility": folder / "utility.json",
    }
    return Evaluate(**(values | changes))


def test_real_images_against_themselves_are_perfect(folder):
    reference(folder)
    evaluate(options(folder))
    fidelity = read_record(folder / "fidelity.json", Fidelity)
    assert fidelity.fid == pytest.approx(0, abs=1e-6) and fidelity.precision == fidelity.recall == 1
    assert fidelity.outside_the_guarantee and fidelity.protocol == "tiny-v1"


def test_utility_of_the_training_images_is_the_ceiling(folder):
    reference(folder)
    evaluate(options(folder))
    ceiling, utility = read_record(folder / "ceiling.json", Utility), read_record(folder / "utility.json", Utility)
    assert ceiling.trained_on == "real" and utility.trained_on == "synthetic"
    assert ceiling.per_classifier == utility.per_classifier


def test_what_is_separable(folder):
    reference(folder)
    evaluate(options(folder, what=("fidelity",), utility=None))
    assert (folder / "fidelity.json").exists() and not (folder / "utility.json").exists()
    with pytest.raises(UserError, match="--utility"):
        evaluate(options(folder, what=("utility",), utility=None))


def test_features_of_another_protocol_are_refused(folder):
    reference(folder, "tiny-v2")
    with pytest.raises(UserError, match="made under another protocol than tiny-v1"):
        evaluate(options(folder))
    assert not (folder / "fidelity.json").exists()


def test_fidelity_alone_does_not_load_the_classifiers(folder, monkeypatch):
    reference(folder)
    monkeypatch.setitem(sys.modules, "dpsapf.evaluation.utility", None)  # its import would fail
    evaluate(options(folder, what=("fidelity",)))
    assert (folder / "fidelity.json").exists()
    with pytest.raises(ImportError):
        evaluate(options(folder))


def test_utility_alone_does_not_load_the_distances(folder, monkeypatch):
    reference(folder)
    monkeypatch.setitem(sys.modules, "dpsapf.evaluation.fidelity", None)
    evaluate(options(folder, what=("utility",)))
    assert (folder / "utility.json").exists()


def test_too_few_images_for_the_neighbours_are_refused(folder):
    reference(folder)
    write_archive(folder / "few.npz", {"images": noise(5, 32), "labels": np.arange(5) % 2})
    with pytest.raises(UserError, match="60 real, 5 synthetic.*more than 5 of each"):
        evaluate(options(folder, synthetic=folder / "few.npz"))


def test_evaluating_twice_gives_equal_records(folder):
    reference(folder)
    evaluate(options(folder))
    first = [(folder / name).read_bytes() for name in ("fidelity.json", "utility.json")]
    torch.manual_seed(99)  # a global state that must not matter
    np.random.seed(99)  # noqa: NPY002
    evaluate(options(folder))
    assert first == [(folder / name).read_bytes() for name in ("fidelity.json", "utility.json")]


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
