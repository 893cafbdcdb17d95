"""evolve: images of the public model evolve by noisy votes of the private ones (Private Evolution; nothing is trained).

Everything private leaves through `dpsapf.evolution.votes.Electorate.vote`; images are made from votes and public things
alone. So votes and images are one file, and its digest is what was spent on: the audit passes that file or none, and
`dpsapf.evolution.publish` publishes images only out of a file that was passed.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dpsapf.datasets.prepared import read_part
from dpsapf.evaluation.features import extract_features, feature_batches
from dpsapf.evolution.api import ImageApi, image_api
from dpsapf.evolution.checkpoint import Evolution, contents, restored
from dpsapf.evolution.votes import Electorate, drawn, first
from dpsapf.experiment.fields import settings
from dpsapf.experiment.methods import method
from dpsapf.experiment.records import DatasetRecord, ModelRecord, Plan, Release, Spend
from dpsapf.experiment.registries import ProtocolEntry, entry
from dpsapf.experiment.stages import Evolve
from dpsapf.privacy.meter import Meter
from dpsapf.sampling.sample import fitted
from dpsapf.support.arrays import writing
from dpsapf.support.checkpoint import Checkpoint
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.measure import peak_memory_mb
from dpsapf.support.provenance import provenance
from dpsapf.support.randomness import numpy_generator
from dpsapf.support.records import read_record, write_record

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contest:
    """Who makes images, and who votes on them.

    Attributes:
        api: makes and varies images.
        electorate: the private images.
        features: what voters compare: of images uint8 [n, R, R, 3], fp32 [n, D].
        labels: classes of a generation, int64 [n], ascending.
    """

    api: ImageApi
    electorate: Electorate
    features: Callable[[np.ndarray], np.ndarray]
    labels: np.ndarray

    def seen(self, images: np.ndarray, labels: np.ndarray, degree: float, step: int) -> torch.Tensor:
        """Compute what voters see of each image: the mean features of k variations (lookahead), or its own if k is 0.

        Returns:
            fp32 [n, D].
        """
        count = self.api.options.lookahead
        varied = (self.api.variations(images, labels, degree, step, "lookahead", place) for place in range(count))
        return torch.from_numpy(sum(map(self.features, varied)) / count if count else self.features(images)).float()


def evolve(options: Evolve) -> None:
    """Write the population with the votes that made it, the spend record of the votes, and their private measures.

    The checkpoint, private too, stands beside the population until it is written.

    Raises:
        UserError: the plan has no votes; the archive is another than the plan's; there is a class without an image; or the
            last variation degree leaves no sampler step.
    """
    start = time.monotonic()
    torch.set_num_threads(options.threads)
    plan, release = _planned(options)
    dataset = read_record(options.dataset, DatasetRecord)
    _check(plan, dataset, options)
    protocol = entry(options.registry, options.protocol, ProtocolEntry)
    model, seed = read_record(options.model, ModelRecord), plan.run.seed
    electorate = _electorate(plan, release, protocol, options)
    api = image_api(model, wordings(plan.run.method, dataset, options.prompt_prefixes), seed, options)

    def features(images: np.ndarray) -> np.ndarray:
        return extract_features(fitted(images, dataset.resolution, dataset.channels), protocol, options.device)

    labels = np.sort(np.arange(options.generation or options.count, dtype=np.int64) % len(dataset.classes))
    advance = _next_drawn if method(plan.run.method).evolves == "drawn" else _next_first
    checkpoint = Checkpoint.beside(options.population, settings(options))
    state = _evolved(advance, Contest(api, electorate, features, labels), checkpoint, start)
    _write(options, dataset, np.stack(state.votes), enlarged(api, state.images, labels, options))
    write_record(options.private, electorate.meter.measured(time.monotonic() - state.started))
    write_record(options.spend, _spend(options, plan, electorate, len(state.votes[0])))
    checkpoint.remove()


def _evolved(
    advance: Callable[..., tuple[np.ndarray, np.ndarray]], contest: Contest, checkpoint: Checkpoint, start: float
) -> Evolution:
    """Go through all rounds, from where an interrupted run of the same settings was."""
    api, electorate = contest.api, contest.electorate
    if (saved := checkpoint.load()) is None:
        state = Evolution(api.images(contest.labels), electorate.meter, start)
    else:
        state = restored(electorate.meter, start, *saved)
        LOG.info("goes on after round %d, %s", len(state.votes), checkpoint.path)
    for degree in degrees(electorate.release.steps, api.options)[len(state.votes) :]:
        state.images, votes = advance(contest, state.images, degree, len(state.votes))
        state.votes.append(votes)
        checkpoint.save(*contents(state))
        LOG.info("round %d: degree %.2f, most votes %.1f", len(state.votes), degree, votes.max())
    return state


def _planned(options: Evolve) -> tuple[Plan, Release]:
    plan = read_record(options.plan, Plan)
    releases = [release for release in plan.releases if release.name == "pe-histogram"]
    if not releases:
        raise UserError("--plan", plan.run.method, "no image evolves by this method: use finetune or sample")
    return plan, releases[0]


def _check(plan: Plan, dataset: DatasetRecord, options: Evolve) -> None:
    if not sha256(options.archive) == dataset.id == plan.dataset_id:
        raise UserError("--archive", str(options.archive), "is not the archive of --dataset and --plan: run their stages again")
    key, images = ("generation", options.generation) if options.generation else ("count", options.count)
    if images < len(dataset.classes):
        raise UserError(key, images, f"{dataset.name} has {len(dataset.classes)} classes: make an image of each")
    if images > options.count:
        raise UserError(key, images, f"must be at most the images that are published: {options.count}")
    degree = min(options.first_degree, options.last_degree)
    if int(options.steps * degree) < 1:
        remedy = f"of {options.steps} sampler steps it leaves none: must be at least {1 / options.steps:.3g}, or take more steps"
        raise UserError("variation degree", degree, remedy)


def _electorate(plan: Plan, release: Release, protocol: ProtocolEntry, options: Evolve) -> Electorate:
    train = read_part(options.archive, "train")
    features = torch.from_numpy(np.concatenate(list(feature_batches(train, protocol, options.device))))
    users = train.users if plan.unit == "user" else None
    labels, meter = torch.from_numpy(train.labels), Meter(plan.population)
    return Electorate(features, labels, users, release, plan.noise, plan.run.seed, meter, options.device)


def wordings(name: str, dataset: DatasetRecord, prefixes: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the wordings of the classes' prompts: the prompts alone for pe, and with each prefix as well for aug-pe."""
    variants = prefixes if method(name).evolves == "first" else ()
    return [dataset.prompts, *(tuple(f"{prefix} {prompt}" for prompt in dataset.prompts) for prefix in variants)]


def degrees(rounds: int, options: Evolve) -> np.ndarray:
    """Return the variation degree of each round, falling linearly, float64 [T]."""
    return np.linspace(options.first_degree, options.last_degree, rounds)


def _next_drawn(contest: Contest, images: np.ndarray, degree: float, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Let all images be drawn by votes and varied (Lin et al. 2024).

    Returns:
        Images of the next round, uint8 [n, R, R, 3]; and noisy votes, float64 [n].
    """
    api, labels, release = contest.api, contest.labels, contest.electorate.release
    votes = contest.electorate.vote(contest.seen(images, labels, degree, step), torch.from_numpy(labels), step)
    threshold = api.options.threshold * release.noise_multiplier * release.sensitivity
    chosen = drawn(votes, labels, np.bincount(labels), threshold, numpy_generator(api.seed, "evolve", step, "draw"))
    return api.variations(images[chosen], labels, degree, step, "vary"), votes


def _next_first(contest: Contest, images: np.ndarray, degree: float, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Let the first by votes stay, of the images and L - 1 variations of each (Xie et al. 2024).

    Returns:
        Images of the next round, uint8 [n, R, R, 3]; and noisy votes, float64 [L n].
    """
    api, labels, variants = contest.api, contest.labels, contest.api.options.variants
    more = [api.variations(images, labels, degree, step, "vary", place) for place in range(1, variants)]
    images, everyones = np.concatenate([images, *more]), np.tile(labels, variants)
    votes = contest.electorate.vote(contest.seen(images, everyones, degree, step), torch.from_numpy(everyones), step)
    return images[first(votes, everyones, np.bincount(labels))], votes


def enlarged(api: ImageApi, images: np.ndarray, labels: np.ndarray, options: Evolve) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give the last generation, then variations of it until there are ``count``: no vote is cast (Lin et al. 2024).

    Yields:
        Images, uint8 [m, R, R, 3], and their classes, int64 [m]; over all, classes are as even as they can be.
    """
    sizes = np.bincount(labels)
    wanted = np.bincount(np.arange(options.count) % len(sizes))
    place = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[labels]
    yield images, labels
    for copy in range(1, math.ceil((wanted / sizes).max())):
        rows = np.flatnonzero(copy * sizes[labels] + place < wanted[labels])
        yield api.variations(images[rows], labels[rows], options.last_degree, "more", copy), labels[rows]


def _write(options: Evolve, dataset: DatasetRecord, votes: np.ndarray, parts: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
    pixels = (options.count, dataset.resolution, dataset.resolution, 3)
    arrays = {"votes": ("F32", votes.shape), "images": ("U8", pixels), "labels": ("I64", pixels[:1])}
    start = 0
    with writing(options.population, arrays) as writer:
        writer.put("votes", 0, votes)
        for images, labels in parts:
            writer.put("images", start, fitted(images, dataset.resolution, dataset.channels))
            writer.put("labels", start, labels)
            start += len(labels)


def _spend(options: Evolve, plan: Plan, electorate: Electorate, numbers: int) -> Spend:
    return Spend(
        subject=plan.run.id,
        release=electorate.meter.release(electorate.release),
        unit=plan.unit,
        population=electorate.meter.population,
        dataset_id=plan.dataset_id,
        made_from={name: sha256(getattr(options, name)) for name in ("plan", "model", "archive")},
        digest=sha256(options.population),
        numbers=numbers,
        trainable_parameters=0,
        peak_memory_mb=peak_memory_mb(options.device),
        private=sha256(options.private),
        provenance=provenance(),
    )
