import dataclasses

import numpy as np
import pytest
import torch

from dpsapf.config import ProtocolEntry
from dpsapf.errors import UserError
from dpsapf.evaluation.classifiers import CLASSIFIERS, build_classifier
from dpsapf.evaluation.utility import accuracies, accuracy

PROTOCOL = ProtocolEntry(
    feature_network="package:x",
    feature_resolution=32,
    resize="none",
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
    return accuracies(train or images(), test or images(60, 1), 2, dataclasses.replace(PROTOCOL, **changes), 0, "cpu")


@pytest.mark.parametrize("name", list(CLASSIFIERS))
def test_every_classifier_learns_a_simple_task(name):
    assert run(classifiers=(name,))[name] > 0.9


def test_shuffled_training_labels_leave_chance():
    pixels, labels = images()
    shuffled = np.random.default_rng(0).permutation(labels)
    assert run((pixels, shuffled))["resnet"] < 0.85


def test_same_seed_same_number():
    assert run() == run()


def test_test_labels_change_the_number_and_nothing_else():
    """Flipping the test labels gives exactly one minus the accuracy: training has not seen them."""
    pixels, labels = images(60, 1)
    assert run(test=(pixels, 1 - labels))["resnet"] == pytest.approx(1 - run()["resnet"])


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    run(classifier_steps=2)
    assert torch.equal(before, torch.get_rng_state())


def test_unknown_classifier_is_refused():
    with pytest.raises(UserError, match="must be among resnet, wideresnet, resnext"):
        build_classifier("vit", 2)


def test_accuracy_counts_hits():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]))
    pixels = torch.tensor([1.0, -1.0, 1.0, 1.0])[:, None, None, None].expand(4, 3, 1, 1)
    assert accuracy(model, (pixels, torch.tensor([0, 1, 1, 0]))) == 0.75
