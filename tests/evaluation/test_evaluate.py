import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from dpsapf.datasets.archive import write_archive
from dpsapf.evaluation.evaluate import evaluate
from dpsapf.evaluation.reference import reference_features
from dpsapf.experiment.records import Fidelity, Utility
from dpsapf.experiment.stages import Evaluate, ReferenceFeatures
from dpsapf.support.errors import UserError
from dpsapf.support.records import read_record


def reference(folder, protocol="tiny-v1"):
    reference_features(
        ReferenceFeatures(
            archive=folder / "dataset.safetensors",
            dataset=folder / "dataset.json",
            protocol=protocol,
            registry=folder / "protocols.yaml",
            features=folder / "features.safetensors",
            ceiling=folder / "ceiling.json",
        )
    )


def options(folder, **changes):
    values = {
        "synthetic": folder / "same.npz",
        "archive": folder / "dataset.safetensors",
        "dataset": folder / "dataset.json",
        "features": folder / "features.safetensors",
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
    with pytest.raises(UserError, match="images = '5 synthetic': tiny-v1 needs at least 6"):
        evaluate(options(folder, synthetic=folder / "few.npz"))


def test_images_without_a_recipe_are_told_before_hours_of_fidelity(folder):
    registry = yaml.safe_load((folder / "protocols.yaml").read_text())
    recipe = {"largest_side": 16, "classifiers": ["resnet"], "steps": 1, "batch": 8, "optimizer": "sgd", "learning_rate": 0.1}
    registry["tiny-v1"] |= {"classifiers": [], "recipes": [recipe]}
    (folder / "protocols.yaml").write_text(yaml.safe_dump(registry))
    with pytest.raises(UserError, match="recipes = 32: none is for images of that side"):
        evaluate(options(folder))
    assert not (folder / "fidelity.json").exists()


def test_evaluating_twice_gives_equal_records(folder):
    reference(folder)
    evaluate(options(folder))
    first = [(folder / name).read_bytes() for name in ("fidelity.json", "utility.json")]
    torch.manual_seed(99)  # a global state that must not matter
    np.random.seed(99)  # noqa: NPY002
    evaluate(options(folder))
    assert first == [(folder / name).read_bytes() for name in ("fidelity.json", "utility.json")]


def test_the_probe_is_one_more_classifier(folder):
    registry = yaml.safe_load((folder / "protocols.yaml").read_text())
    registry["tiny-v1"]["classifiers"] = ["probe", "resnet"]
    (folder / "protocols.yaml").write_text(yaml.safe_dump(registry))
    reference(folder)
    evaluate(options(folder))
    ceiling, utility = (read_record(folder / name, Utility) for name in ("ceiling.json", "utility.json"))
    assert list(utility.per_classifier) == ["probe", "resnet"] and ceiling.per_classifier == utility.per_classifier
    assert utility.accuracy == pytest.approx(np.mean(list(utility.per_classifier.values())))
    assert utility.per_classifier["probe"] == 1.0  # the classes differ by their brightness


def test_predictions_of_each_test_image_are_kept_on_request(folder):
    reference(folder)
    evaluate(options(folder, what=("utility",), predictions=folder / "private_predictions.csv"))
    found = read_record(folder / "utility.json", Utility)
    table = pd.read_csv(folder / "private_predictions.csv")
    assert len(table) == 20 and table["image"].tolist() == list(range(20)) and table["outside_the_guarantee"].all()
    assert table["class"].tolist() == ["a", "b"] * 10 and set(table["classifier"]) == {"resnet"}
    assert (table["class"] == table["predicted"]).mean() == pytest.approx(found.per_classifier["resnet"])
    assert table["confidence"].between(0.5, 1).all()  # of two classes


def test_predictions_without_a_private_name_are_refused_before_anything_is_trained(folder):
    with pytest.raises(UserError, match="let its name begin with private, as private_predictions.csv"):
        evaluate(options(folder, what=("utility",), features=folder / "dataset.json", predictions=folder / "predictions.csv"))
    assert not (folder / "utility.json").exists()


def test_the_record_has_the_scores_of_each_classifier(folder):
    reference(folder)
    evaluate(options(folder, what=("utility",)))
    found = read_record(folder / "utility.json", Utility)
    scores = found.classifiers["resnet"]
    confusion = np.array(scores.confusion)
    assert confusion.sum() == 20 and np.trace(confusion) / 20 == pytest.approx(found.accuracy)
    assert scores.per_class_accuracy == pytest.approx(tuple(confusion.diagonal() / confusion.sum(1)))
    assert (found.macro_f1, found.calibration_error) == (scores.macro_f1, scores.calibration_error)
    assert found.selection == "synthetic" and found.counts is None and found.outside_the_guarantee


def noise(count, side):
    return np.random.default_rng(0).integers(0, 255, (count, side, side, 3)).astype(np.uint8)
