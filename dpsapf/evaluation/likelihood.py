"""Feature likelihood divergence (FLD): the likelihood of unseen real images under a density around the synthetic ones.

The paper is Jiralerspong et al. 2023, arXiv 2302.04440. What is computed follows the authors' public program (marcojira/fld at
245ac7c) and its constants:

1. Features are moved and scaled so that the test images have mean 0 and standard deviation 1 in each of D features.
2. At most 10,000 synthetic images are taken. Around each is an isotropic Gaussian; all have the same weight.
3. Their variances are fitted to the training images by maximum likelihood. A start: the squared distance to the nearest training
   image, plus 0.001, over D. Then 50 epochs of Adam on the logarithms, rate 0.5, 10,000 images a step, logarithms within
   -40 to 20. While they are fitted there is one Gaussian more, of weight 1, around the training mean, to which distances
   are 0.9 of what they are, with a variance of its own from 1 on: it gives every image some likelihood.
4. The score of real images is -100 / D times their mean log-likelihood, without that Gaussian.
5. FLD is the test images' score less the score of the same test images under Gaussians around as many training images, at most
   half of them, fitted to the other half. So a model that copies gets narrow Gaussians, and a large FLD.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from dpsapf.evaluation.gaussians import Features, finite
from dpsapf.evaluation.neighbours import full_precision
from dpsapf.support.errors import UserError
from dpsapf.support.progress import track
from dpsapf.support.randomness import numpy_generator

MOST_CENTRES = 10_000
EPOCHS, RATE, BATCH = 50, 0.5, 10_000
LOWEST, HIGHEST = -40.0, 20.0  # logarithms of variances
NEAREST = 1e-3  # is added to the squared distance that a variance starts at
BACKGROUND = 0.9**2  # what squared distances to the training mean are multiplied by

CHUNK = 1_000  # real images whose distances to all centres are held at once; divides BATCH
KEPT = 1.5e9  # bytes of distances that are kept over the epochs; more are computed again in each


@dataclass(frozen=True)
class Likelihood:
    """What synthetic features say about real ones.

    Attributes:
        divergence: FLD; lower is better, 0 is as good as training images in their place.
        gap: the training images' score less the test images'; far below 0 where training images were copied.
    """

    divergence: float
    gap: float


def feature_likelihood(
    train: Features, test: Features, synthetic: Features, device: str, seed: int, subtracted: float | None = None
) -> float:
    """Return FLD; see `likelihood`."""
    return likelihood(train, test, synthetic, device, seed, subtracted).divergence


def likelihood(
    train: Features, test: Features, synthetic: Features, device: str, seed: int, subtracted: float | None = None
) -> Likelihood:
    """Return FLD and the gap between training and test images.

    Args:
        train: features of the real images that Gaussians are fitted to, fp32 [N, D].
        test: features of real images that nothing was trained on, fp32 [T, D].
        synthetic: fp32 [M, D].
        device: "cpu" or "cuda".
        seed: of the images that are drawn where there are more than 10,000, and of the order of training images.
        subtracted: what `baseline` returned for these real images and as many synthetic ones; None: compute it.

    Raises:
        UserError: there are fewer than two test or four training images, or no synthetic one.
    """
    for name, features, least in (("training", train, 4), ("test", test, 2), ("synthetic", synthetic, 1)):
        if len(features) < least:
            raise UserError(f"{name} images", len(features), f"FLD needs {least} or more")
    scale, size = _Scale.of(test), min(len(synthetic), MOST_CENTRES)
    drawn = np.sort(numpy_generator(seed, "likelihood", "synthetic").choice(len(synthetic), size, replace=False))
    order = numpy_generator(seed, "likelihood", "train").permutation(len(train))
    mixture = _Mixture(_Part(synthetic, drawn, scale, device), _Part(train, order, scale, device))
    mixture.fit()
    score = mixture.score(_Part.whole(test, scale, device))
    if subtracted is None:
        subtracted = baseline(train, test, len(synthetic), device, seed)
    return Likelihood(score - subtracted, mixture.score(_Part.whole(train, scale, device)) - score)


def baseline(train: Features, test: Features, size: int, device: str, seed: int) -> float:
    """Return what FLD subtracts: the test images' score under Gaussians around training images.

    Args:
        train: fp32 [N, D].
        test: fp32 [T, D].
        size: number of synthetic images; as many training images stand in their place, at most 10,000 and half of all.
        device: "cpu" or "cuda".
        seed: of the halves.
    """
    scale, order = _Scale.of(test), numpy_generator(seed, "likelihood", "halves").permutation(len(train))
    size = min(size, MOST_CENTRES, len(train) // 2)
    mixture = _Mixture(_Part(train, order[:size], scale, device), _Part(train, order[size:], scale, device))
    mixture.fit()
    return mixture.score(_Part.whole(test, scale, device))


@dataclass(frozen=True)
class _Scale:
    """Mean and standard deviation of every feature, fp32 [D]; the deviation of a constant feature is 1."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, features: Features) -> "_Scale":
        chunks = [slice(start, start + CHUNK) for start in range(0, len(features), CHUNK)]
        mean = sum(features[chunk].sum(0, dtype=np.float64) for chunk in chunks) / len(features)
        variance = sum(np.square(features[chunk] - mean).sum(0) for chunk in chunks) / (len(features) - 1)
        return cls(mean.astype(np.float32), np.sqrt(np.where(variance > 0, variance, 1)).astype(np.float32))


@dataclass(frozen=True)
class _Part:
    """Some scaled features, read a few at a time.

    Attributes:
        features: [N, D].
        positions: of the rows that are meant, in their order.
        scale: what they are scaled by.
        device: where they are put.
    """

    features: Features
    positions: np.ndarray
    scale: _Scale
    device: str

    @classmethod
    def whole(cls, features: Features, scale: _Scale, device: str) -> "_Part":
        return cls(features, np.arange(len(features)), scale, device)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: slice) -> torch.Tensor:
        found = (self.features[self.positions[rows]] - self.scale.mean) / self.scale.deviation
        return torch.from_numpy(found).to(self.device)


class _Mixture:
    """Isotropic Gaussians around some features, fitted to others."""

    def __init__(self, centres: _Part, fitted: _Part) -> None:
        self._centres, self._fitted = centres[slice(None)], fitted
        self._norms, self._dimensions = self._centres.square().sum(1), self._centres.shape[1]
        mean = (sum(fitted[rows].double().sum(0) for rows in _chunks(0, len(fitted))) / len(fitted)).float()
        self._from_mean = torch.cat([(fitted[rows] - mean).square().sum(1) for rows in _chunks(0, len(fitted))])
        self._kept: dict[int, torch.Tensor] = {}
        self._keep = len(fitted) * len(centres) * self._norms.element_size() <= KEPT
        nearest = torch.full_like(self._norms, torch.inf)
        for rows in _chunks(0, len(fitted)):
            nearest = torch.minimum(nearest, self._distances(rows).amin(0))
        self._logarithms, self._background = ((nearest + NEAREST) / self._dimensions).log(), torch.zeros_like(nearest[:1])

    def fit(self) -> None:
        """Fit the variances by Adam."""
        optimizer = torch.optim.Adam([self._logarithms, self._background], lr=RATE)
        for _ in track(range(EPOCHS), "feature likelihood", "epoch"):
            for start in range(0, len(self._fitted), BATCH):
                self._logarithms.grad, self._background.grad = self._gradient(start, min(start + BATCH, len(self._fitted)))
                optimizer.step()
                self._logarithms.clamp_(LOWEST, HIGHEST)
        self._kept.clear()

    def score(self, images: _Part) -> float:
        """Return -100 / D times the mean log-likelihood."""
        total = 0.0
        for rows in _chunks(0, len(images)):
            total += self._terms(_squares(images[rows], self._centres, self._norms)).logsumexp(1).double().sum().item()
        return float(finite(np.float64(-100 / self._dimensions * total / len(images))))

    def _gradient(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of a batch's score / 100 by the logarithms of variances [M], and of the background's [1].

        With r the share of a Gaussian in an image's likelihood: the sum of r (1 - d^2 / (D variance)) / 2 over images, over
        their number.
        """
        shares, weighted = torch.zeros_like(self._norms), torch.zeros_like(self._norms)
        share, far = torch.zeros_like(self._background), torch.zeros_like(self._background)
        for rows in _chunks(start, stop):
            squares, distant = self._distances(rows), BACKGROUND * self._from_mean[rows]
            terms, background = self._terms(squares), _log_density(distant, self._background, self._dimensions)
            total = torch.logaddexp(terms.logsumexp(1), background)
            parts, part = terms.sub_(total[:, None]).exp_(), (background - total).exp_()
            shares, share = shares + parts.sum(0), share + part.sum()
            weighted, far = weighted + parts.mul_(squares).sum(0), far + (part * distant).sum()
        return self._slope(shares, weighted, self._logarithms, stop - start), self._slope(
            share, far, self._background, stop - start
        )

    def _slope(self, shares: torch.Tensor, weighted: torch.Tensor, logarithms: torch.Tensor, count: int) -> torch.Tensor:
        return (shares - weighted / self._dimensions * (-logarithms).exp()) / (2 * count)

    def _terms(self, squares: torch.Tensor) -> torch.Tensor:
        """Return what each Gaussian adds to each image's likelihood, its logarithm [n, M]."""
        return _log_density(squares, self._logarithms, self._dimensions).sub_(math.log(len(self._centres)))

    def _distances(self, rows: slice) -> torch.Tensor:
        """Return the squared distances of some fitted images to all centres [n, M]; they are kept if there are few."""
        found = self._kept.get(rows.start)
        if found is None:
            found = _squares(self._fitted[rows], self._centres, self._norms)
            if self._keep:
                self._kept[rows.start] = found
        return found


def _chunks(start: int, stop: int) -> list[slice]:
    return [slice(first, min(first + CHUNK, stop)) for first in range(start, stop, CHUNK)]


def _log_density(squares: torch.Tensor, logarithms: torch.Tensor, dimensions: int) -> torch.Tensor:
    """Return the logarithm of an isotropic Gaussian's density, from squared distances and the logarithm of the variance."""
    return (squares * (-0.5 * (-logarithms).exp())).sub_(dimensions / 2 * (logarithms + math.log(2 * math.pi)))


def _squares(points: torch.Tensor, centres: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """Return squared distances, fp32 [n, M]."""
    with full_precision():
        return torch.addmm(norms, points, centres.T, alpha=-2).add_(points.square().sum(1, keepdim=True)).clamp_(0)
