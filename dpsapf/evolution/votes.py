"""Private images vote for the nearest synthetic ones; all that leaves them are noisy histograms. Then who is chosen.

Lin et al. 2024 (arXiv 2305.15560), DP nearest-neighbour histogram, class by class; choosing the first by rank is Xie et al. 2024
(arXiv 2403.01749).
"""

from dataclasses import dataclass

import numpy as np
import torch

from dpsapf.experiment.methods import NoiseMode
from dpsapf.experiment.records import Release
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import Draws
from dpsapf.privacy.values import Private, Released

ENTRIES = 2**24  # of a distance matrix that is held at once


@dataclass(frozen=True)
class Electorate:
    """The private images, and what is measured of their votes.

    Attributes:
        features: of the training images, fp32 [N, D].
        labels: their classes, int64 [N].
        users: whom each image is of, int64 [N]; None if images are the units.
        release: the planned histograms.
        noise: where privacy noise is drawn from.
        seed: of the run.
        meter: of the release.
        device: where distances are computed.
    """

    features: torch.Tensor
    labels: torch.Tensor
    users: np.ndarray | None
    release: Release
    noise: NoiseMode
    seed: int
    meter: Meter
    device: str

    def vote(self, features: torch.Tensor, labels: torch.Tensor, step: int) -> Released:
        """Release one round's histogram.

        Args:
            features: of the synthetic images, fp32 [n, D].
            labels: their classes, int64 [n]; every class has one.
            step: number of the round, from 0.

        Returns:
            Noisy counts, one tensor, float64 [n].
        """
        draws = Draws(self.noise, self.seed, "evolve")
        secret = draws.secret(step, "voters")
        units = self.meter.batch(self.release.sampling_rate, secret)
        voters = units if self.users is None else one_image_each(self.users, secret)[units]
        counts, source = self.histogram(voters, features, labels), draws.noise(step, "privacy noise")
        return self.meter.gaussian(counts, self.release.noise_multiplier, self.release.sensitivity, source)

    def histogram(self, voters: torch.Tensor, features: torch.Tensor, labels: torch.Tensor) -> Private:
        """Count the votes that each synthetic image gets.

        An image is compared with those of all classes, so that no shape depends on anybody's label: then rounding cannot let
        one image sway another's vote.

        Args:
            voters: positions of private images, one of each unit, int64 [V].
            features: of the synthetic images, fp32 [n, D].
            labels: their classes, int64 [n].

        Returns:
            One tensor, float64 [n], on the CPU, which sums to V.
        """
        features, labels = features.to(self.device), labels.to(self.device)
        counts = torch.zeros(len(labels), dtype=torch.float64)
        whose = None if self.users is None else torch.from_numpy(np.unique(self.users, return_inverse=True)[1])
        for chunk in voters.split(max(1, ENTRIES // len(labels))):
            found = nearest(self.features[chunk].to(self.device), self.labels[chunk].to(self.device), features, labels)
            units = chunk if self.users is None else whose[chunk]
            counts += self.meter.votes(found.cpu(), len(labels), units)
        return Private([counts])


def nearest(points: torch.Tensor, classes: torch.Tensor, centres: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Find the nearest centre of each point's own class, in Euclidean distance; of several the first.

    Args:
        points: fp32 [b, D].
        classes: of the points, int64 [b].
        centres: fp32 [n, D].
        labels: of the centres, int64 [n].

    Returns:
        Positions of centres, int64 [b].
    """
    distances = torch.addmm(centres.square().sum(1), points, centres.T, alpha=-2)  # less the point's own square
    distances.masked_fill_(classes[:, None] != labels, torch.inf)
    return distances.argmin(1)


def one_image_each(users: np.ndarray, generator: torch.Generator) -> torch.Tensor:
    """Draw one image of each user, uniformly and independently: the first of theirs in a random order of all.

    Args:
        users: whom each image is of, int64 [N].
        generator: CPU generator of this round alone.

    Returns:
        Positions of images, int64 [U], in the order of the users' numbers.
    """
    order = torch.randperm(len(users), generator=generator)
    _, places = np.unique(users[order.numpy()], return_index=True)
    return order[torch.from_numpy(places)]


def drawn(
    noisy: np.ndarray, labels: np.ndarray, counts: np.ndarray, threshold: float, generator: np.random.Generator
) -> np.ndarray:
    """Draw images of each class with replacement, in proportion to max(count - H, 0); where none is left, uniformly.

    Args:
        noisy: released counts, float64 [n].
        labels: classes of the images, int64 [n], ascending.
        counts: images to draw of each class, int64 [K].
        threshold: H.
        generator: of this draw alone.

    Returns:
        Positions, int64 [sum of counts], class by class.
    """
    kept = np.maximum(noisy - threshold, 0)
    chosen = []
    for label, count in enumerate(counts):
        rows = np.flatnonzero(labels == label)
        weights = kept[rows] if kept[rows].any() else np.ones(len(rows))
        chosen.append(generator.choice(rows, count, p=weights / weights.sum()))
    return np.concatenate(chosen)


def first(noisy: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Take the images of each class with the largest noisy counts.

    Args:
        noisy: released counts, float64 [n].
        labels: classes of the images, int64 [n].
        counts: images to take of each class, int64 [K].

    Returns:
        Positions, int64 [sum of counts], class by class, the largest count first.
    """
    ranked = np.argsort(-noisy, kind="stable")
    return np.concatenate([ranked[labels[ranked] == label][:count] for label, count in enumerate(counts)])
