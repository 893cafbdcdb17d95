import numpy as np
import pytest
import yaml

from dpsapf.datasets.prepared import read_part
from dpsapf.evaluation import features
from dpsapf.evaluation.features import extract_features
from dpsapf.evaluation.reference import reference_features
from dpsapf.evaluation.utility import accuracies
from dpsapf.experiment.columns import SPLITS
from dpsapf.experiment.records import Utility
from dpsapf.experiment.registries import ProtocolEntry, digest, entry
from dpsapf.experiment.stages import ReferenceFeatures
from dpsapf.support.arrays import open_arrays
from dpsapf.support.errors import UserError
from dpsapf.support.records import read_record
from tests.prepared_dataset import write_dataset


def options(folder, **changes):
    values = {
        "archive": folder / "dataset.safetensors",
        "dataset": folder / "dataset.json",
        "protocol": "tiny-v1",
        "registry": folder / "protocols.yaml",
        "features": folder / "features.safetensors",
        "ceiling": folder / "ceiling.json",
    }
    return ReferenceFeatures(**(values | changes))


@pytest.fixture
def made(folder):
    reference_features(options(folder))
    return folder


def images(folder, split):
    part = read_part(folder / "dataset.safetensors", split)
    return part[:], part.labels


def test_features_are_of_the_training_images_in_order(made):
    arrays, facts = open_arrays(made / "features.safetensors")
    protocol = entry(made / "protocols.yaml", "tiny-v1", ProtocolEntry)
    assert np.array_equal(arrays["features"][:], extract_features(images(made, "train")[0], protocol, "cpu"))
    assert arrays["features"].shape == (60, 64)
    assert set(arrays) == {"features", "mean", "covariance", "precision_radii"}
    assert (facts["protocol"], facts["protocol_digest"]) == ("tiny-v1", digest(protocol))


def test_batches_are_all_of_the_images(made, monkeypatch):
    before = (made / "features.safetensors").read_bytes()
    monkeypatch.setattr(features, "BATCH", 7)
    reference_features(options(made))
    arrays, _ = open_arrays(made / "features.safetensors")
    small = arrays["features"][:].copy()
    (made / "features.safetensors").write_bytes(before)
    np.testing.assert_allclose(small, arrays["features"][:], rtol=1e-4, atol=1e-6)  # fp32 sums in other batches


def test_the_ceiling_is_what_classifiers_learn_from_real_images(made):
    ceiling = read_record(made / "ceiling.json", Utility)
    train, test = images(made, "train"), images(made, "test")
    scores = accuracies(train, test, 2, entry(made / "protocols.yaml", "tiny-v1", ProtocolEntry), 0, "cpu")
    assert ceiling.per_classifier == scores and ceiling.accuracy == pytest.approx(np.mean(list(scores.values())))
    assert (ceiling.trained_on, ceiling.train_images, ceiling.test_images) == ("real", 60, 20)
    assert ceiling.outside_the_guarantee and ceiling.protocol == "tiny-v1"


def test_accuracy_is_the_mean_over_classifiers(folder):
    registry = yaml.safe_load((folder / "protocols.yaml").read_text())
    registry["tiny-v1"]["classifiers"] = ["resnet", "resnext"]
    (folder / "protocols.yaml").write_text(yaml.safe_dump(registry))
    reference_features(options(folder))
    ceiling = read_record(folder / "ceiling.json", Utility)
    assert list(ceiling.per_classifier) == ["resnet", "resnext"]
    assert ceiling.accuracy == pytest.approx(sum(ceiling.per_classifier.values()) / 2)


def test_the_same_call_writes_the_same_bytes(made):
    first = [(made / name).read_bytes() for name in ("features.safetensors", "ceiling.json")]
    np.random.seed(5)  # noqa: NPY002 - a global state that must not matter
    reference_features(options(made))
    assert [(made / name).read_bytes() for name in ("features.safetensors", "ceiling.json")] == first


def test_validation_images_play_no_part(made):
    """They are kept for choosing hyperparameters: the ceiling learns from the training images alone."""
    first = [(made / name).read_bytes() for name in ("features.safetensors", "ceiling.json")]
    parts = {split: images(made, split) for split in SPLITS}
    parts["validation"] = 255 - parts["validation"][0], parts["validation"][1]
    write_dataset(made / "dataset.safetensors", parts)
    reference_features(options(made))
    assert [(made / name).read_bytes() for name in ("features.safetensors", "ceiling.json")] == first


def test_the_seed_reaches_the_classifiers_and_not_the_features(made, monkeypatch):
    from dpsapf.evaluation.utility import judge

    seeds, before = [], (made / "features.safetensors").read_bytes()
    monkeypatch.setattr("dpsapf.evaluation.utility.judge", lambda *inputs: seeds.append(inputs[4]) or judge(*inputs))
    reference_features(options(made, seed=7))
    assert seeds == [7] and (made / "features.safetensors").read_bytes() == before


def test_an_unknown_protocol_is_named_with_the_known_ones(folder):
    with pytest.raises(UserError, match="tiny-v3.*must be one of tiny-v1, tiny-v2"):
        reference_features(options(folder, protocol="tiny-v3"))
    assert not (folder / "features.safetensors").exists() and not (folder / "ceiling.json").exists()
