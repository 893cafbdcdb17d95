import numpy as np
import pytest
import yaml
from safetensors.torch import save_file

from dpsapf.commands import Evaluate, ReferenceFeatures
from dpsapf.config import ProtocolEntry
from dpsapf.datasets.archive import write_archive
from dpsapf.errors import UserError
from dpsapf.evaluation import features as module
from dpsapf.evaluation.evaluate import evaluate
from dpsapf.evaluation.features import extract_features
from dpsapf.evaluation.network import FeatureNetwork
from dpsapf.evaluation.reference import reference_features
from dpsapf.formats import Fidelity, Utility
from dpsapf.records import read_record, write_record


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
        "resize": "none",
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


def protocol(**changes):
    values = {"feature_network": "package:tiny", "feature_resolution": 32, "resize": "none"}
    return ProtocolEntry(**(values | {"classifiers": (), "classifier_steps": 1} | changes))


def test_unknown_network_wrong_digest_and_unfit_size_are_refused(folder):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    with pytest.raises(UserError, match="must be clean-fid:inception or a packaged network"):
        extract_features(images, protocol(feature_network="package:none"), "cpu")
    with pytest.raises(UserError, match="must have SHA-256 0000"):
        extract_features(images, protocol(feature_sha256="0000"), "cpu")
    with pytest.raises(UserError, match="do not fit feature_resolution 16"):
        extract_features(images, protocol(feature_resolution=16), "cpu")


def test_images_are_resized_by_clean_fids_filter(folder):
    images = np.random.default_rng(0).integers(0, 255, (3, 48, 48, 3)).astype(np.uint8)
    assert extract_features(images, protocol(resize="bicubic"), "cpu").shape == (3, 64)
