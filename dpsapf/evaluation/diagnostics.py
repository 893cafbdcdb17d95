"""diagnose: do synthetic images copy private ones, and who can tell a training image by them? Outside the guarantee."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import stats
from sklearn.metrics import roc_curve

from dpsapf.datasets.images import resize
from dpsapf.datasets.prepared import read_held_out, read_part
from dpsapf.evaluation.features import BATCH, Pixels, feature_batches
from dpsapf.evaluation.predictions import check_private_name
from dpsapf.experiment.registries import ProtocolEntry, entry
from dpsapf.experiment.stages import Diagnose
from dpsapf.support.checked import Checked
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic, sha256
from dpsapf.support.provenance import Provenance, provenance
from dpsapf.support.randomness import numpy_generator
from dpsapf.support.records import write_record

LOG = logging.getLogger(__name__)
PIXEL_SIDE = 32  # larger images are compared in pixels at this side
QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9)
FALSE_POSITIVES = 0.01
CONFIDENCE = 0.95
TILE, GAP, FONT_SIZE = 96, 6, 15  # of the sheet [pixels]
Interval = tuple[float, float]
Points = Callable[[Pixels], Iterator[np.ndarray]]


class Diagnosis(Checked):
    """Distances between synthetic and private images in one space.

    ``copying`` is P(d(synthetic, training) < d(test, training)) over nearest training images, ties half: 1 - Delta of Meehan,
    Chaudhuri and Dasgupta 2020 (arXiv 2004.05675). Copies of training images give 1, images as new as test images 1/2.
    ``closer_to_training`` is the share of synthetic images that are nearer to a training than to a test image, of equally many
    of both: 1/2 for new images. Membership is guessed by the distance to the nearest synthetic image; members are the training
    images, the others the test images: an area of 1/2 is a guess by chance. Intervals of 95 % are over the images that are
    compared, while those that they are compared with stay the same.
    """

    copying: float
    copying_interval: Interval
    closer_to_training: float
    closer_to_training_interval: Interval
    distances_to_training: tuple[float, ...]  # quantiles 0, 0.01, 0.1, 0.5, 0.9; of as many training as test images at most
    distances_to_test: tuple[float, ...]  # likewise
    membership_auc: float
    membership_auc_interval: Interval
    membership_true_positives: float | None  # rate at 1 % false positives; null: fewer than 100 test images
    membership_true_positives_interval: Interval | None


class Diagnostics(Checked):
    """diagnostics.json. Computed on private training and test images, outside the guarantee."""

    protocol: str
    spaces: dict[str, Diagnosis]  # features (of the protocol's network), pixels
    synthetic_images: int
    train_images: int
    test_images: int
    compared_images: int  # training, and test images, to which distances are compared
    samples: str  # SHA-256 of the synthetic images' file
    outside_the_guarantee: bool
    provenance: Provenance


def diagnose(options: Diagnose) -> None:
    """Write diagnostics.json and, as a picture, the synthetic images that are nearest to training images.

    Raises:
        UserError: the picture's name does not begin with ``private``, or there are fewer than two images of a kind.
    """
    check_private_name(options.sheet)
    torch.set_num_threads(options.threads)
    protocol = entry(options.registry, options.protocol, ProtocolEntry)
    train, test = read_part(options.archive, "train"), read_held_out(options.archive, "test", "diagnose")
    with np.load(options.synthetic, allow_pickle=False) as archive:
        synthetic = archive["images"]
    for kind, images in (("training", train), ("test", test), ("synthetic", synthetic)):
        if len(images) < 2:
            raise UserError(f"{kind} images", len(images), "must be at least 2")
    spaces = {
        space: measure(points, synthetic, train, test, options.seed, options.device)
        for space, points in (
            ("features", lambda images: feature_batches(images, protocol, options.device)),
            ("pixels", pixel_batches),
        )
    }
    diagnostics = Diagnostics(
        protocol=options.protocol,
        spaces={space: diagnosis(found, options.draws, options.seed) for space, found in spaces.items()},
        synthetic_images=len(synthetic),
        train_images=len(train),
        test_images=len(test),
        compared_images=min(len(train), len(test)),
        samples=sha256(options.synthetic),
        outside_the_guarantee=True,
        provenance=provenance(),
    )
    with atomic(options.sheet) as temporary:
        sheet(spaces, synthetic, train, options.pairs).save(temporary)
    write_record(options.out, diagnostics)
    LOG.info("copying %s", {space: round(found.copying, 3) for space, found in diagnostics.spaces.items()})


class Search:
    """Nearest neighbours between some points, which come in batches, and others.

    Neighbours are found by matrix products, and their distances computed from the differences, in fp64: those of equal images
    are 0.

    Args:
        centres: the others, fp32 [M, D].
        device: where products are computed.
    """

    def __init__(self, centres: np.ndarray, device: str) -> None:
        self._centres, self._mean = centres, centres.mean(0)
        self._points = torch.from_numpy(centres - self._mean).to(device)
        self._squares = self._points.square().sum(1)
        self._count, self._found = 0, []
        self._best = torch.full((len(centres),), torch.inf, device=device)
        self.distances = np.full(len(centres), np.inf)  # of each of the others to the nearest point, float64 [M]
        self.nearest = np.zeros(len(centres), np.int64)  # position of that point [M]

    def add(self, rows: np.ndarray) -> None:
        """Search with the next points, fp32 [b, D]."""
        if not len(rows):
            return
        points = torch.from_numpy(rows - self._mean).to(self._points.device)
        squares = torch.addmm(self._squares, points, self._points.T, alpha=-2) + points.square().sum(1)[:, None]
        self._found.append(_lengths(rows, self._centres[squares.argmin(1).cpu().numpy()]))
        least, places = squares.min(0)
        better = least < self._best
        self._best[better] = least[better]
        improved, places = better.cpu().numpy(), places.cpu().numpy()
        self.distances[improved] = _lengths(rows[places[improved]], self._centres[improved])
        self.nearest[improved] = self._count + places[improved]
        self._count += len(rows)

    @property
    def of_points(self) -> np.ndarray:
        """Distance of each point to the nearest of the others, float64 [points]."""
        return np.concatenate(self._found)


def _lengths(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows.astype(np.float64) - others, axis=1)


@dataclass(frozen=True)
class Distances:
    """Distances to nearest neighbours in one space, float64.

    Attributes:
        to_train: of each synthetic image, to training images [M].
        nearest: position of that training image, int64 [M].
        to_some_train: of each synthetic image, to as many training as test images at most [M].
        to_some_test: likewise, to test images [M].
        test_to_train: of each test image, to training images [test].
        train_to_synthetic: of each training image, to synthetic ones [train].
        test_to_synthetic: of each test image, to synthetic ones [test].
    """

    to_train: np.ndarray
    nearest: np.ndarray
    to_some_train: np.ndarray
    to_some_test: np.ndarray
    test_to_train: np.ndarray
    train_to_synthetic: np.ndarray
    test_to_synthetic: np.ndarray


def measure(points: Points, synthetic: Pixels, train: Pixels, test: Pixels, seed: int, device: str) -> Distances:
    """Search for nearest neighbours among images, the training images a batch at a time.

    Args:
        points: gives images' points in a space, a batch at a time, fp32 [b, D].
        synthetic: uint8 [M, H, W, 3]; so are train and test.
        train: training images.
        test: test images.
        seed: of which are compared, where there are more training than test images, or fewer.
        device: where products are computed.
    """
    held, tests = (np.concatenate(list(points(images))) for images in (synthetic, test))
    searches = {name: Search(held, device) for name in ("train", "some train", "some test", "test")}
    between, compared = Search(tests, device), min(len(train), len(test))
    kept, others = (_some(len(images), compared, seed) for images in (train, test))
    start = 0
    for batch in points(train):
        searches["train"].add(batch)
        searches["some train"].add(batch[kept[start : start + len(batch)]])
        between.add(batch)
        start += len(batch)
    for first in range(0, len(tests), BATCH):
        searches["test"].add(tests[first : first + BATCH])
    searches["some test"].add(tests[others])
    return Distances(
        to_train=searches["train"].distances,
        nearest=searches["train"].nearest,
        to_some_train=searches["some train"].distances,
        to_some_test=searches["some test"].distances,
        test_to_train=between.distances,
        train_to_synthetic=searches["train"].of_points,
        test_to_synthetic=searches["test"].of_points,
    )


def _some(count: int, wanted: int, seed: int) -> np.ndarray:
    """Mark so many of some images at random, bool [count]."""
    marked = np.zeros(count, bool)
    marked[numpy_generator(seed, "diagnose", "compared").permutation(count)[:wanted]] = True
    return marked


def pixel_batches(images: Pixels) -> Iterator[np.ndarray]:
    """Give images' pixels in [0, 1], at `PIXEL_SIDE` if they are larger: fp32 [b, D]."""
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        small = resize(batch, min(PIXEL_SIDE, batch.shape[1]))
        yield small.reshape(len(small), -1).astype(np.float32) / 255


def diagnosis(distances: Distances, draws: int, seed: int) -> Diagnosis:
    """Compare distances; see `Diagnosis`.

    Args:
        distances: in one space.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """
    generator, several = numpy_generator(seed, "diagnose", "bootstrap"), len(distances.to_train)
    closer = _before(distances.to_some_train, distances.to_some_test)
    share = stats.binomtest(round(closer * several), several).proportion_ci(CONFIDENCE, "wilson")
    copying = _with_interval(area, distances.to_train, distances.test_to_train, draws, generator)
    attacked = distances.train_to_synthetic, distances.test_to_synthetic
    auc = _with_interval(area, *attacked, draws, generator)
    enough = len(attacked[1]) * FALSE_POSITIVES >= 1
    found = _with_interval(true_positives, *attacked, draws, generator) if enough else (None, None)
    return Diagnosis(
        copying=copying[0],
        copying_interval=copying[1],
        closer_to_training=closer,
        closer_to_training_interval=(float(share.low), float(share.high)),
        distances_to_training=tuple(map(float, np.quantile(distances.to_some_train, QUANTILES))),
        distances_to_test=tuple(map(float, np.quantile(distances.to_some_test, QUANTILES))),
        membership_auc=auc[0],
        membership_auc_interval=auc[1],
        membership_true_positives=found[0],
        membership_true_positives_interval=found[1],
    )


def _before(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of pairs in which the first is less; equal ones count half."""
    return float(((one < other) + 0.5 * (one == other)).mean())


def area(near: np.ndarray, far: np.ndarray) -> float:
    """Return P(one of ``near`` < one of ``far``), ties half: the area under the curve of telling them apart by size."""
    return 1 - float(stats.mannwhitneyu(near, far).statistic) / (len(near) * len(far))


def true_positives(members: np.ndarray, others: np.ndarray) -> float:
    """Return the largest share of members that a distance tells as such with at most 1 % of the others."""
    labels = np.repeat([True, False], [len(members), len(others)])
    false, true, _ = roc_curve(labels, -np.concatenate([members, others]), drop_intermediate=False)
    return float(true[false <= FALSE_POSITIVES].max())


def _with_interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    one: np.ndarray,
    other: np.ndarray,
    draws: int,
    generator: np.random.Generator,
) -> tuple[float, Interval]:
    """Return a statistic of two samples and its bootstrap interval, both resampled."""
    drawn = stats.bootstrap(
        (one, other),
        lambda *samples: statistic(*samples),
        n_resamples=draws,
        vectorized=False,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=generator,
    ).confidence_interval
    return statistic(one, other), (float(drawn.low), float(drawn.high))


def nearest_pairs(distances: Distances, pairs: int) -> list[tuple[int, int, float]]:
    """Return the synthetic images that are nearest to a training image: their positions, that image's, and the distance."""
    order = np.argsort(distances.to_train, kind="stable")[:pairs]
    return [(int(row), int(distances.nearest[row]), float(distances.to_train[row])) for row in order]


def sheet(spaces: Mapping[str, Distances], synthetic: np.ndarray, train: Pixels, pairs: int) -> Image.Image:
    """Draw the nearest pairs of each space: synthetic images above, the training images nearest to them below."""
    font = ImageFont.load_default(FONT_SIZE)
    width, line, row = pairs * (TILE + GAP) + GAP, FONT_SIZE + 2 * GAP, 2 * (FONT_SIZE + TILE + 3 * GAP)
    lines = ["private: shows training images; outside the guarantee", "above: synthetic; below: its nearest training image"]
    width = max(width, int(font.getlength(max(lines, key=len))) + 2 * GAP)
    picture = Image.new("RGB", (width, 2 * line + len(spaces) * (row + line)), "white")
    draw, top = ImageDraw.Draw(picture), GAP
    for colour, text in zip(("red", "black"), lines, strict=True):
        draw.text((GAP, top), text, colour, font)
        top += line
    for space, distances in spaces.items():
        draw.text((GAP, top), f"nearest in {space}", "black", font)
        top += line
        for place, (row_of, nearest, distance) in enumerate(nearest_pairs(distances, pairs)):
            left = GAP + place * (TILE + GAP)
            for number, pixels in enumerate((synthetic[row_of], train[np.array([nearest])][0])):
                tile = Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.NEAREST)
                picture.paste(tile, (left, top + number * (TILE + GAP)))
            draw.text((left, top + 2 * (TILE + GAP)), f"{distance:.3g}", "black", font)
        top += row
    return picture
