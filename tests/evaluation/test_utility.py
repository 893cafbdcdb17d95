import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from dpsapf.evaluation import training, utility
from dpsapf.evaluation.classifiers import build_classifier
from dpsapf.evaluation.training import Images, accuracy, train_classifier
from dpsapf.evaluation.utility import accuracies
from dpsapf.experiment.registries import ProtocolEntry
from dpsapf.support.checked import replace
from dpsapf.support.checkpoint import Checkpoint
from dpsapf.support.interruption import Interrupted

PROTOCOL = ProtocolEntry(
    feature_network="package:x",
    feature_resolution=32,
    resize="lanczos",
    classifiers=("resnet",),
    classifier_steps=24,
    classifier_batch=16,
    classifier_learning_rate=4e-3,
)


def images(count=120, seed=0):
    """Two classes: bright at the top or at the bottom, with noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = generator.integers(0, 120, (count, 32, 32, 3))
    for image, label in zip(pixels, labels, strict=True):
        image[16 * label : 16 * label + 16] += 100
    return pixels.astype(np.uint8), labels.astype(np.int64)


def run(train=None, test=None, **changes):
    return accuracies(train or images(), test or images(60, 1), 2, replace(PROTOCOL, **changes), 0, "cpu")


@pytest.mark.parametrize("name", ["resnet", "wideresnet", "resnext"])
def test_every_classifier_learns_a_simple_task(name):
    assert run(classifiers=(name,), classifier_steps=60)[name] > 0.9


def test_shuffled_training_labels_leave_chance():
    pixels, labels = images()
    unrelated = np.arange(len(labels)) // 2 % 2  # each class has as many of either
    assert run((pixels, unrelated))["resnet"] == pytest.approx(0.5, abs=0.25)  # 60 images, few distinct decisions


def test_same_seed_same_number():
    assert run() == run()


@pytest.fixture
def built(monkeypatch):
    """The classifiers that a test trains, in order."""
    models = []

    def build(name, classes):
        models.append(build_classifier(name, classes))
        return models[-1]

    monkeypatch.setattr(utility, "build_classifier", build)
    return models


def test_test_labels_change_the_number_and_nothing_else(built):
    """Flipping the test labels gives one minus the accuracy, with the same trained weights."""
    pixels, labels = images(60, 1)
    score = run()["resnet"]
    assert run(test=(pixels, 1 - labels))["resnet"] == pytest.approx(1 - score)
    first, second = (model.state_dict() for model in built)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_training_labels_do_change_the_weights(built):
    pixels, labels = images()
    run()
    run((pixels, 1 - labels))
    first, second = (model.state_dict() for model in built)
    assert not torch.equal(first["fc.weight"], second["fc.weight"])


def test_state_that_is_best_on_validation_is_kept():
    """The third of the checked states scores best: it is the one that the model ends in."""
    states, scores = [], iter([0.2, 0.5, 0.9, *[0.1] * 9])

    def judged(model):
        states.append(copy.deepcopy(model.state_dict()))
        return next(scores)

    model = build_classifier("resnet", 2)
    data = Images(*images(), np.arange(120), "cpu")
    train_classifier(model, data, PROTOCOL.recipe(32), torch.Generator().manual_seed(0), judged)
    kept = [all(torch.equal(state[key], value) for key, value in model.state_dict().items()) for state in states]
    assert kept == [index == 2 for index in range(8)]


def test_held_out_images_are_not_trained_on(monkeypatch):
    seen = {}

    monkeypatch.setattr(utility, "accuracy", lambda model, images: seen.setdefault("validation", images) and 0.5)
    right = utility.train_classifier
    monkeypatch.setattr(utility, "train_classifier", lambda *inputs: seen.setdefault("train", inputs[1]) and right(*inputs))
    pixels, labels = images(50)
    run((pixels, labels), synthetic_validation=0.2)
    marks = {name: set(part.positions.tolist()) for name, part in seen.items()}
    assert all(np.array_equal(part.pixels, pixels) and np.array_equal(part.labels, labels) for part in seen.values())
    assert len(marks["validation"]) == 10 and marks["train"] == set(range(50)) - marks["validation"]


def test_shift_moves_the_image_and_repeats_its_edge():
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    moves = {tuple(training.shifted(image, torch.Generator().manual_seed(seed))[0, 0, 4, 4:5].tolist()) for seed in range(200)}
    near = {(float(8 * row + column),) for row in range(2, 7) for column in range(2, 7)}
    assert moves == near  # pixel (4, 4) shows each of the 25 pixels within SHIFT = 2
    assert torch.equal(training.shifted(torch.ones(2, 3, 8, 8), torch.Generator()), torch.ones(2, 3, 8, 8))


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    run(classifier_steps=2)
    assert torch.equal(before, torch.get_rng_state())


def test_repeats_are_averaged(monkeypatch):
    right = iter([30, 45, 60, 15])  # of 60
    truth = torch.from_numpy(images(60, 1)[1])
    monkeypatch.setattr(utility, "logits", lambda *inputs: one_hot(torch.where(torch.arange(60) < next(right), truth, 1 - truth)))
    monkeypatch.setattr(utility, "train_classifier", lambda *inputs: None)
    assert run(classifiers=("resnet", "resnext"), classifier_repeats=2) == {"resnet": 0.75, "resnext": 0.5}


def test_one_training_has_the_runs_own_seed_and_every_repeat_another(built):
    """The first model of several is the model of one; the others start elsewhere."""
    run(classifier_steps=2)
    run(classifier_steps=2, classifier_repeats=3)
    weights = [model.state_dict()["fc.weight"] for model in built]
    assert len(weights) == 4 and torch.equal(weights[0], weights[1])
    assert not any(torch.equal(weights[0], other) for other in weights[2:]) and not torch.equal(*weights[2:])
    assert utility.repeat_seed(7, 0) == 7 and len({utility.repeat_seed(7, repeat) for repeat in range(5)}) == 5


def test_repeats_hold_out_other_images(monkeypatch):
    held = []
    monkeypatch.setattr(utility, "train_classifier", lambda model, train, *rest: held.append(train.positions))
    run(classifiers=("resnet", "resnext"), classifier_repeats=2)
    assert np.array_equal(held[0], held[1]) and np.array_equal(held[2], held[3]) and not np.array_equal(held[0], held[2])


def test_the_probe_alone_trains_no_classifier(monkeypatch):
    monkeypatch.setattr(utility, "probe_predictions", lambda *inputs: np.repeat(images(60, 1)[1][:1], 60))
    monkeypatch.setattr(utility, "_trained", None)  # calling it would fail
    assert run(classifiers=("probe",), classifier_repeats=5) == {"probe": 0.5}


def test_accuracy_counts_hits(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]))
    pixels = np.array([255, 0, 255, 255, 0], np.uint8)[:, None, None, None].repeat(3, axis=3)
    images = Images(pixels, np.array([0, 1, 1, 0, 0]), np.arange(4), "cpu")
    assert accuracy(model, images) == 0.75
    monkeypatch.setattr(training, "TESTED", 3)
    assert accuracy(model, images) == 0.75


def test_a_batch_is_of_the_images_at_its_positions():
    pixels = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3).repeat(2, axis=0)
    found, labels = Images(pixels, np.array([5, 6, 7, 8]), np.array([3, 0, 2]), "cpu").batch(torch.tensor([0, 2]))
    assert labels.tolist() == [8, 7] and found.shape == (2, 3, 3, 4) and found.dtype == torch.float32
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), pixels[[3, 2]] / 127.5 - 1, atol=1e-6)


def test_an_interrupted_stage_goes_on_with_the_next_classifier(tmp_path, monkeypatch, built):
    changes = {"classifiers": ("resnet", "resnext"), "classifier_repeats": 2}
    arguments = images(), images(60, 1), 2, replace(PROTOCOL, **changes), 0, "cpu"
    expected = accuracies(*arguments)
    assert len(built) == 4
    right = utility.train_classifier

    def ended(model, *others):
        if len(built) == 7:
            raise Interrupted
        right(model, *others)

    monkeypatch.setattr(utility, "train_classifier", ended)
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {})
    with pytest.raises(Interrupted):
        accuracies(*arguments, checkpoint)
    monkeypatch.setattr(utility, "train_classifier", right)
    assert accuracies(*arguments, checkpoint) == expected and len(built) == 4 + 3 + 2
