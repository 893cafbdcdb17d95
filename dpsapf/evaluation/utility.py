"""Utility: classifiers trained on one set of images, tested once on real test images."""

import itertools
import logging
import typing
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import torch

from dpsapf.datasets.prepared import Part
from dpsapf.evaluation.classifiers import build_classifier
from dpsapf.evaluation.probe import probe_predictions
from dpsapf.evaluation.scores import Predictions, average, score
from dpsapf.evaluation.training import Images, Labelled, accuracy, logits, resident, train_classifier
from dpsapf.experiment.records import Utility
from dpsapf.experiment.registries import PROBE, ProtocolEntry, Recipe
from dpsapf.support.checkpoint import Checkpoint, named
from dpsapf.support.progress import track
from dpsapf.support.provenance import provenance
from dpsapf.support.randomness import child_seed, numpy_generator, torch_generator

LOG = logging.getLogger(__name__)
TRAINED = "trained/"  # prefix of a checkpoint's tensors
Judged = Callable[[torch.nn.Module], float]


def judge(
    train: Labelled,
    test: Labelled,
    classes: int,
    protocol: ProtocolEntry,
    seed: int,
    device: str,
    checkpoint: Checkpoint | None = None,
) -> dict[str, list[Predictions]]:
    """Train every classifier of the protocol and let it predict the test images.

    Which of a classifier's states predicts, the recipe's ``selection`` says; the test images are used once, at the end.
    The probe has no seed and is fitted once (see `probe_predictions`).

    Args:
        train: synthetic images for the utility, real ones for the ceiling.
        test: real test images and labels.
        classes: number of classes.
        protocol: classifiers and their training.
        seed: of initial weights, batches and the held-out share.
        device: ``cpu`` or ``cuda``.
        checkpoint: keeps what was tested, so that an interrupted stage goes on with the next classifier.

    Returns:
        By classifier, in the protocol's order: the predictions of each of its trainings.
    """
    recipe = protocol.recipe(side(train))
    tested = Images.all(*test, device)
    found = _restored(checkpoint)
    data = resident(train, device) if recipe.trained else train
    for repeat, name in track(list(itertools.product(range(recipe.repeats), recipe.trained)), "classifiers", "model"):
        if (key := _key(name, repeat)) not in found:
            found[key] = _trained(name, data, tested, classes, recipe, repeat_seed(seed, repeat))
            _keep(checkpoint, found)
    result = {
        name: [Predictions.of(found[_key(name, repeat)].numpy()) for repeat in range(recipe.repeats)] for name in recipe.trained
    }
    if PROBE in recipe.classifiers:
        result[PROBE] = [Predictions(probe_predictions(train, test[0], protocol, device), None)]
    return {name: result[name] for name in recipe.classifiers}


def _restored(checkpoint: Checkpoint | None) -> dict[str, torch.Tensor]:
    """Return the logits of trainings that are done, by name."""
    saved = checkpoint.load() if checkpoint else None
    return named(saved[1], TRAINED) if saved else {}


def _keep(checkpoint: Checkpoint | None, found: dict[str, torch.Tensor]) -> None:
    if checkpoint:
        checkpoint.save({}, {TRAINED + name: value for name, value in found.items()})


def side(images: Labelled) -> int:
    """Return the side of some images [pixels]."""
    return images[0][:1].shape[1]


def accuracies(train: Labelled, test: Labelled, *others: typing.Any) -> dict[str, float]:  # noqa: ANN401 - as `judge`
    """Return each classifier's accuracy in [0, 1], the mean over its trainings; arguments as `judge`."""
    found = judge(train, test, *others)
    return {name: fmean(float((each.classes == test[1]).mean()) for each in trainings) for name, trainings in found.items()}


def _key(name: str, repeat: int) -> str:
    return f"{name}, repeat {repeat}"


def repeat_seed(seed: int, repeat: int) -> int:
    """Return the seed of one training of each classifier; repeat 0 has the run's own seed."""
    return child_seed(seed, "classifier repeat", repeat) if repeat else seed


def _trained(name: str, train: Labelled, tested: Images, classes: int, recipe: Recipe, seed: int) -> torch.Tensor:
    """Train a classifier and return its logits of the test images; dropout draws from torch's own state, which is given back."""
    device = tested.device
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        torch.manual_seed(child_seed(seed, "classifier", name))
        model = build_classifier(name, classes).to(device)
        fitting, judged = _chosen_by(recipe, train, seed, device)
        train_classifier(model, fitting, recipe, torch_generator(seed, "classifier", name, "batches"), judged)
        return logits(model, tested)


def _chosen_by(recipe: Recipe, train: Labelled, seed: int, device: str) -> tuple[Images, Judged | None]:
    """Return what is trained on, and what judges a state; None: the last is tested."""
    if recipe.selection == "last":
        return Images.all(*train, device), None
    fitting, validation = held_out(train, recipe.validation_share, seed, device)
    return fitting, lambda model: accuracy(model, validation)


def held_out(train: Labelled, share: float, seed: int, device: str) -> tuple[Images, Images]:
    """Split images into those that are trained on and a share of them, one at least, that is not."""
    order = numpy_generator(seed, "classifier", "validation").permutation(len(train[1]))
    first = max(1, round(share * len(order)))
    return Images(*train, order[first:], device), Images(*train, order[:first], device)


def utility_record(
    predictions: Mapping[str, Sequence[Predictions]], train: Labelled, test: Part, classes: int, **told: object
) -> Utility:
    """Score predictions into a record.

    Args:
        predictions: as `judge` returns them.
        train: what was trained on.
        test: the real test images.
        classes: number of classes.
        told: protocol, trained_on and selection of the record.
    """
    scores = {name: average([score(test.labels, each, classes) for each in found]) for name, found in predictions.items()}
    overall = average(list(scores.values()))
    accuracies = {name: each.accuracy for name, each in scores.items()}
    LOG.info("accuracy %s", accuracies)
    return Utility(
        accuracy=overall.accuracy,
        macro_f1=overall.macro_f1,
        calibration_error=overall.calibration_error,
        per_classifier=accuracies,
        classifiers=scores,
        train_images=len(train[1]),
        test_images=len(test),
        outside_the_guarantee=True,
        provenance=provenance(),
        **told,
    )
