import numpy as np
import pytest
import yaml

from dpsapf.evaluation.features import extract_features
from dpsapf.evaluation.reference import reference_features
from dpsapf.evaluation.utility import accuracies
from dpsapf.experiment.records import Utility
from dpsapf.experiment.registries import ProtocolEntry, entry
from dpsapf.experiment.stages import ReferenceFeatures
from dpsapf.support.errors import UserError
from dpsapf.support.records import read_record


def options(folder, **changes):
    values = {
        "archive": folder / "dataset.npz",
        "dataset": folder / "dataset.json",
        "protocol": "tiny-v1",
        "registry": folder / "protocols.yaml",
        "features": folder / "features.npz",
        "ceiling": folder / "ceiling.json",
    }
    return ReferenceFeatures(**(values | changes))


@pytest.fixture
def made(folder):
    reference_features(options(folder))
    return folder


def arrays(path):
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def test_features_are_of_the_training_images_in_order(made):
    written, images = arrays(made / "features.npz"), arrays(made / "dataset.npz")
    protocol = entry(made / "protocols.yaml", "tiny-v1", ProtocolEntry)
    assert np.array_equal(written["features"], extract_features(images["train_images"], protocol, "cpu"))
    assert written["features"].shape == (60, 64) and str(written["protocol"]) == "tiny-v1"


def test_the_ceiling_is_what_classifiers_learn_from_real_images(made):
    ceiling, images = read_record(made / "ceiling.json", Utility), arrays(made / "dataset.npz")
    train, test = ((images[f"{split}_images"], images[f"{split}_labels"]) for split in ("train", "test"))
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
    first = [(made / name).read_bytes() for name in ("features.npz", "ceiling.json")]
    np.random.seed(5)  # noqa: NPY002 - a global state that must not matter
    reference_features(options(made))
    assert [(made / name).read_bytes() for name in ("features.npz", "ceiling.json")] == first


def test_validation_images_play_no_part(made):
    """They are kept for choosing hyperparameters: the ceiling learns from the training images alone."""
    first = [(made / name).read_bytes() for name in ("features.npz", "ceiling.json")]
    images = arrays(made / "dataset.npz")
    images["validation_images"] = 255 - images["validation_images"]
    np.savez(made / "dataset.npz", **images)
    reference_features(options(made))
    assert [(made / name).read_bytes() for name in ("features.npz", "ceiling.json")] == first


def test_the_seed_reaches_the_classifiers_and_not_the_features(made, monkeypatch):
    seeds, features = [], (made / "features.npz").read_bytes()
    monkeypatch.setattr("dpsapf.evaluation.utility.accuracies", lambda *inputs: seeds.append(inputs[4]) or {"resnet": 0.5})
    reference_features(options(made, seed=7))
    assert seeds == [7] and (made / "features.npz").read_bytes() == features


def test_an_unknown_protocol_is_named_with_the_known_ones(folder):
    with pytest.raises(UserError, match="tiny-v3.*must be one of tiny-v1, tiny-v2"):
        reference_features(options(folder, protocol="tiny-v3"))
    assert not (folder / "features.npz").exists() and not (folder / "ceiling.json").exists()
