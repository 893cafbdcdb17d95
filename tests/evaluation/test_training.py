"""Recipes: how classifiers are trained, step by step."""

import copy

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as transforms
from pydantic import ValidationError
from torch import nn

from dpsapf.evaluation import training
from dpsapf.evaluation.training import (
    Images,
    checked_steps,
    copied,
    cropped_and_flipped,
    follow,
    resident,
    train_classifier,
)
from dpsapf.experiment.registries import ProtocolEntry, Recipe
from dpsapf.support.errors import UserError

BASE = {"classifiers": ("resnet",), "epochs": 2, "batch": 10, "optimizer": "sgd", "learning_rate": 0.1}


def recipe(**changes):
    return Recipe(**(BASE | changes))


def data(count=25, side=8):
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 2
    pixels = generator.integers(0, 100, (count, side, side, 3)) + 100 * labels[:, None, None, None]
    return Images(pixels.astype(np.uint8), labels, np.arange(count), "cpu")


def linear(classes=2, side=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, classes))


def trained(model, images, told, judged=None, seed=0):
    train_classifier(model, images, told, torch.Generator().manual_seed(seed), judged)
    return model


class Watched(nn.Module):
    """Notes the batches that it is given."""

    def __init__(self):
        super().__init__()
        self.model, self.seen = linear(), []

    def __deepcopy__(self, memo):
        return type(self)()

    def forward(self, images):
        self.seen.append(images)
        return self.model(images)


def test_an_epoch_is_every_image_once_in_a_new_order():
    model, images = Watched(), data()
    trained(model, images, recipe())
    assert [len(batch) for batch in model.seen] == [10, 10, 5] * 2
    whole, _ = images.batch(torch.arange(25))
    first, second = (torch.cat(model.seen[start : start + 3]) for start in (0, 3))
    for epoch in (first, second):
        assert torch.equal(*(found.flatten(1).sum(1).sort().values for found in (epoch, whole)))
    assert not torch.equal(first, second)


def test_steps_are_batches_with_replacement():
    model = Watched()
    trained(model, data(4), recipe(epochs=None, steps=7))
    assert [len(batch) for batch in model.seen] == [10] * 7  # of four images


def by_hand(model, images, told, seed=0):
    """SGD with momentum and weight decay, the rate falling by steps: no optimizer and no schedule of torch's."""
    generator, velocity = torch.Generator().manual_seed(seed), None
    parameters, rates = list(model.parameters()), []
    for epoch in range(told.epochs):
        rate = told.learning_rate * told.decay_factor ** (epoch // told.decay_every)
        for rows in torch.randperm(len(images), generator=generator).split(told.batch):
            pixels, labels = images.batch(rows)
            loss = nn.functional.cross_entropy(model(pixels), labels)
            found = torch.autograd.grad(loss, parameters)
            gradients = [g + told.weight_decay * p.detach() for g, p in zip(found, parameters, strict=True)]
            velocity = gradients if velocity is None else [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
            with torch.no_grad():
                for parameter, change in zip(parameters, velocity, strict=True):
                    parameter -= rate * change
            rates.append(rate)
    return model, rates


def test_the_recipe_of_cifar_is_sgd_with_momentum_decay_and_steps():
    told = recipe(epochs=5, weight_decay=0.05, schedule="step", decay_every=2, decay_factor=0.2)
    expected, rates = by_hand(linear(), data(), told)
    found = trained(linear(), data(), told)
    torch.testing.assert_close(found[1].weight, expected[1].weight)
    assert rates == pytest.approx([0.1] * 6 + [0.02] * 6 + [0.004] * 3)


@pytest.mark.parametrize("changes", [{"weight_decay": 0.0}, {"decay_every": 3}, {"decay_factor": 0.5}, {"momentum": 0.8}])
def test_each_key_of_the_recipe_does_something(changes):
    told = {"epochs": 5, "weight_decay": 0.05, "schedule": "step", "decay_every": 2, "decay_factor": 0.2}
    one, other = (trained(linear(), data(), recipe(**(told | more)))[1].weight for more in ({}, changes))
    assert not torch.allclose(one, other, rtol=1e-3)


@pytest.mark.parametrize(("name", "cls"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_the_optimizer_is_torchs(name, cls):
    found = training._optimizer(recipe(optimizer=name, weight_decay=0.03), linear())
    assert type(found) is cls and found.param_groups[0]["weight_decay"] == 0.03 and found.param_groups[0]["lr"] == 0.1


def test_the_average_is_that_of_the_papers_code():
    """Shadow weights start as the first weights; after step t they keep min(decay, (1 + t)/(10 + t)) of themselves."""
    states, told = [], recipe(epochs=3, checkpoints=9, ema_decay=0.5)
    average = trained(linear(), data(), told)
    plain = recipe(epochs=3, checkpoints=9)
    trained(linear(), data(), plain, lambda model: states.append(copy.deepcopy(model[1].weight)) or 0.0)
    expected = linear()[1].weight.detach()
    for step, state in enumerate(states, 1):
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * state
    assert len(states) == 9
    torch.testing.assert_close(average[1].weight, expected)


def test_an_average_has_the_batch_norms_of_the_model():
    model, average = (nn.BatchNorm1d(2) for _ in range(2))
    model(torch.randn(9, 2))
    with torch.no_grad():
        model.weight.fill_(3)
    follow(average, model, 0.25)
    assert torch.equal(average.running_mean, model.running_mean) and average.num_batches_tracked == 1
    assert average.weight.tolist() == [1.5, 1.5]


def test_the_averaged_weights_are_what_is_judged():
    judged = []
    told = recipe(ema_decay=0.9999, checkpoints=1)
    model = trained(linear(), data(), told, lambda model: judged.append(copy.deepcopy(model[1].weight)) or 0.0)
    assert torch.equal(judged[0], model[1].weight)
    assert not torch.allclose(judged[0], trained(linear(), data(), recipe())[1].weight)


@pytest.mark.parametrize(
    ("steps", "checkpoints", "expected"),
    [(120, 8, {15, 30, 45, 60, 75, 90, 105, 120}), (100, 8, {12, 25, 38, 50, 62, 75, 88, 100}), (3, 8, {1, 2, 3}), (9, 1, {9})],
)
def test_states_are_compared_at_equal_distances(steps, checkpoints, expected):
    assert checked_steps(steps, checkpoints) == expected


def test_the_last_state_is_left_where_nothing_judges():
    expected, _ = by_hand(linear(), data(), recipe())
    torch.testing.assert_close(trained(linear(), data(), recipe())[1].weight, expected[1].weight)


def test_of_equal_states_the_last_is_left():
    found = trained(linear(), data(), recipe(checkpoints=3), lambda model: 0.5)
    assert torch.equal(found[1].weight, trained(linear(), data(), recipe())[1].weight)


class Types(nn.Module):
    """Notes the types that its layers compute in."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(192, 2), []

    def forward(self, images):
        logits = self.layer(images.flatten(1))
        self.seen.append((logits.dtype, torch.is_grad_enabled()))
        return logits


@pytest.mark.parametrize(("precision", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_mixed_precision_computes_in_bf16_and_keeps_weights_in_fp32(precision, expected):
    model = trained(Types(), data(), recipe(precision=precision))
    assert {kind for kind, gradients in model.seen if gradients} == {expected}
    assert model.layer.weight.dtype == torch.float32


def test_crop_and_flip_is_torchvisions_of_each_image():
    images = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = cropped_and_flipped(images, torch.Generator().manual_seed(2))
    seen = set()
    for image, shown in zip(images, found, strict=True):
        padded = transforms.pad(image, 4)
        options = {
            (top, left, mirrored): transforms.hflip(cut) if mirrored else cut
            for top in range(9)
            for left in range(9)
            for cut in [transforms.crop(padded, top, left, 8, 8)]
            for mirrored in (False, True)
        }
        (place,) = [place for place, option in options.items() if torch.equal(option, shown)]
        seen.add(place)
    assert len(seen) > 30 and {mirrored for _, _, mirrored in seen} == {False, True}


def test_augmentation_is_of_training_batches_alone():
    model, images = Watched(), data()
    trained(model, images, recipe(augmentation="crop-flip", checkpoints=1), lambda model: 0.0)
    whole, _ = images.batch(torch.arange(25))
    changed = torch.cat(model.seen[:3])
    assert not torch.equal(*(found.flatten(1).sum(1).sort().values for found in (changed, whole)))


def test_images_on_the_device_are_those_that_are_streamed(monkeypatch):
    images = data(1201, 4)
    held = Images(copied(images.pixels, 1201, "cpu"), images.labels, images.positions[::-1], "cpu")
    streamed = Images(images.pixels, images.labels, images.positions[::-1], "cpu")
    rows = torch.tensor([0, 3, 1200, 3])
    for found, expected in zip(held.batch(rows), streamed.batch(rows), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("free", "fits"), [(2 * 25 * 192, True), (2 * 25 * 192 - 1, False)])
def test_images_go_to_a_gpu_if_they_fill_half_of_its_free_memory_at_most(monkeypatch, free, fits):
    images, asked = data(), []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 10**12))
    monkeypatch.setattr(training, "copied", lambda pixels, count, device: asked.append((count, device)) or "held")
    pixels, labels = resident((images.pixels, images.labels), "cuda")
    assert asked == [(25, "cuda")] * fits and isinstance(pixels, str) is fits and labels is images.labels
    assert resident((images.pixels, images.labels), "cpu")[0] is images.pixels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": None}, "either epochs or steps"),
        ({"steps": 5}, "either epochs or steps"),
        ({"epochs": None, "steps": 5, "schedule": "step"}, "counts epochs"),
        ({"classifiers": ()}, "at least 1 item"),
    ],
)
def test_a_recipe_that_says_too_little_or_too_much_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        recipe(**changes)


PROTOCOL = {"feature_network": "package:x", "feature_resolution": 32, "resize": "lanczos"}


def test_the_first_recipe_for_images_of_a_size_holds():
    small, large = recipe(largest_side=32), recipe(largest_side=96, epochs=7)
    protocol = ProtocolEntry(**PROTOCOL, recipes=(small, large))
    assert [protocol.recipe(side) for side in (28, 32, 33, 96)] == [small, small, large, large]
    with pytest.raises(UserError, match="recipes = 97: none is for images of that side: largest_side is 96"):
        protocol.recipe(97)


def test_a_protocol_has_one_kind_of_classifiers():
    with pytest.raises(ValidationError, match="either classifiers or recipes"):
        ProtocolEntry(**PROTOCOL, classifiers=("resnet",), recipes=(recipe(),))
    with pytest.raises(UserError, match="classifiers = .*names none"):
        ProtocolEntry(**PROTOCOL).recipe(32)


def test_keys_of_the_demo_are_a_recipe():
    told = {"classifiers": ("probe", "resnet"), "classifier_steps": 7, "classifier_batch": 3, "classifier_learning_rate": 0.5}
    found = ProtocolEntry(**PROTOCOL, **told, classifier_repeats=4, synthetic_validation=0.3).recipe(99)
    assert (found.classifiers, found.trained, found.length(10**6)) == (("probe", "resnet"), ("resnet",), 7)
    assert (found.batch, found.learning_rate, found.repeats, found.validation_share) == (3, 0.5, 4, 0.3)
    assert (found.selection, found.checkpoints) == ("synthetic", 8)


def test_an_epoch_ends_with_a_smaller_batch():
    assert [recipe(epochs=3, batch=10).length(images) for images in (1, 10, 25)] == [3, 3, 9]
