"""Utility: classifiers trained on one set of images, tested once on real test images."""

import copy
import itertools
import logging
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch.nn import functional

from dpsapf.evaluation.classifiers import build_classifier
from dpsapf.evaluation.features import Pixels
from dpsapf.evaluation.probe import PROBE, probe_accuracy
from dpsapf.experiment.registries import ProtocolEntry
from dpsapf.support.checkpoint import Checkpoint
from dpsapf.support.progress import track
from dpsapf.support.randomness import child_seed, numpy_generator, torch_generator

LOG = logging.getLogger(__name__)
SHIFT = 2  # pixels of random translation; no flips, which would change a digit
CHECKS = 8  # states that validation chooses from
TESTED = 500  # images that are classified at a time
Labelled = tuple[Pixels, np.ndarray]
"""Images, uint8 [N, H, W, 3], in memory or in a file, and their labels, int64 [N]."""


@dataclass(frozen=True)
class Images:
    """Some labelled images, put on a device a batch at a time.

    Attributes:
        pixels: uint8 [N, H, W, 3], in memory or in a file.
        labels: int64 [N].
        positions: of these images among them, int64 [n].
        device: where batches go.
    """

    pixels: Pixels
    labels: np.ndarray
    positions: np.ndarray
    device: str

    def __len__(self) -> int:
        """Return n."""
        return len(self.positions)

    def batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images with values in [-1, 1], fp32 [b, 3, H, W], and labels [b], at int64 ``rows`` [b] of these."""
        chosen = self.positions[rows.numpy()]
        pixels, labels = torch.from_numpy(self.pixels[chosen]), torch.from_numpy(self.labels[chosen])
        return pixels.permute(0, 3, 1, 2).to(self.device).float() / 127.5 - 1, labels.to(self.device)


def accuracies(
    train: Labelled,
    test: Labelled,
    classes: int,
    protocol: ProtocolEntry,
    seed: int,
    device: str,
    checkpoint: Checkpoint | None = None,
) -> dict[str, float]:
    """Train every classifier of the protocol and test it.

    A share of the *training* images selects each classifier's best state; the test images are used once, at the end.
    The accuracy of a classifier is its mean over ``protocol.classifier_repeats`` trainings. The probe has no seed and
    is fitted once (see `probe_accuracy`).

    Args:
        train: synthetic images for the utility, real ones for the ceiling.
        test: real test images and labels.
        classes: number of classes.
        protocol: classifiers and their training.
        seed: of initial weights, batches and the held-out share.
        device: ``cpu`` or ``cuda``.
        checkpoint: keeps what was tested, so that an interrupted stage goes on with the next classifier.

    Returns:
        Accuracy in [0, 1] by classifier.
    """
    names = [name for name in protocol.classifiers if name != PROBE]
    tested, repeats = Images(*test, np.arange(len(test[1])), device), range(protocol.classifier_repeats if names else 0)
    saved = checkpoint.load() if checkpoint else None
    scores = saved[0] if saved else {}
    for repeat, name in track(list(itertools.product(repeats, names)), "classifiers", "model"):
        if (key := f"{name}, repeat {repeat}") not in scores:
            scores[key] = _trained(name, train, tested, classes, protocol, repeat_seed(seed, repeat), device)
            if checkpoint:
                checkpoint.save(scores, {})
    result = {name: fmean(scores[f"{name}, repeat {repeat}"] for repeat in repeats) for name in names}
    if PROBE in protocol.classifiers:
        result[PROBE] = probe_accuracy(train, test, protocol, device)
    LOG.info("accuracy %s", result)
    return {name: result[name] for name in protocol.classifiers}


def repeat_seed(seed: int, repeat: int) -> int:
    """Return the seed of one training of each classifier; repeat 0 has the run's own seed."""
    return child_seed(seed, "classifier repeat", repeat) if repeat else seed


def _trained(name: str, train: Labelled, tested: Images, classes: int, protocol: ProtocolEntry, seed: int, device: str) -> float:
    """Train a classifier and return its accuracy on the test images."""
    fitting, validation = _held_out(train, protocol.synthetic_validation, seed, device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(child_seed(seed, "classifier", name))
        model = build_classifier(name, classes).to(device)
    train_classifier(model, fitting, validation, protocol, torch_generator(seed, "classifier", name, "batches"))
    return accuracy(model, tested)


def _held_out(train: Labelled, share: float, seed: int, device: str) -> tuple[Images, Images]:
    order = numpy_generator(seed, "classifier", "validation").permutation(len(train[1]))
    first = max(1, round(share * len(order)))
    return Images(*train, order[first:], device), Images(*train, order[:first], device)


def train_classifier(
    model: torch.nn.Module, train: Images, validation: Images, protocol: ProtocolEntry, generator: torch.Generator
) -> None:
    """Train with AdamW on a one-cycle schedule and leave the state that is best on the validation images.

    Args:
        model: changed in place.
        train: what is trained on.
        validation: images that are not.
        protocol: steps, batch and learning rate.
        generator: of batches and shifts.
    """
    steps = protocol.classifier_steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=protocol.classifier_learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, protocol.classifier_learning_rate, total_steps=steps)
    best, best_state = -1.0, None
    for step in range(1, steps + 1):
        model.train()
        images, labels = train.batch(torch.randint(len(train), (protocol.classifier_batch,), generator=generator))
        loss = functional.cross_entropy(model(_shifted(images, generator)), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // CHECKS) == 0 or step == steps:
            score = accuracy(model, validation)
            if score >= best:
                best, best_state = score, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)


def _shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Translate a batch by up to `SHIFT` pixels, edges repeated."""
    side = images.shape[-1]
    down, right = torch.randint(2 * SHIFT + 1, (2,), generator=generator).tolist()
    padded = functional.pad(images, (SHIFT,) * 4, mode="replicate")
    return padded[..., down : down + side, right : right + side]


@torch.inference_mode()
def accuracy(model: torch.nn.Module, images: Images) -> float:
    """Return the share of images whose class is predicted, in [0, 1]."""
    model.eval()
    hits = 0
    for rows in torch.arange(len(images)).split(TESTED):
        pixels, labels = images.batch(rows)
        hits += int((model(pixels).argmax(1) == labels).sum())
    return hits / len(images)
