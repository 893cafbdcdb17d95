"""evolve: images of the public model evolve by noisy votes of the private ones (Private Evolution; nothing is trained).

Everything private leaves through `dpsapf.evolution.votes.Electorate.vote`; images are made from votes and public things
alone. So votes and images are one file, and its digest is what was spent on: the audit passes that file or none, and
`dpsapf.evolution.publish` publishes images only out of a file that was passed.
"""

import logging
import math
import time
from collections.abc import Callable
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
from dpsapf.experiment.settings import check_evolving
from dpsapf.experiment.stages import Evolve
from dpsapf.privacy.kept import Once
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.spends import check_planned
from dpsapf.privacy.values import only_released
from dpsapf.sampling.sample import fitted
from dpsapf.support.arrays import Partial
from dpsapf.support.checkpoint import Checkpoint, State
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
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

    The checkpoint, private too, stands beside the population until it is written. What was released with real noise is put
    back, and not made again (`dpsapf.privacy.kept`).

    Raises:
        UserError: the plan has no votes; the archive is another than the plan's; there is a class without an image; or the
            last variation degree leaves no sampler step.
    """
    start = time.monotonic()
    torch.set_num_threads(options.threads)
    plan, release = _planned(options)
    once = Once(options, release.name, release.noise and plan.noise, plan.run.id, plan.dataset_id)
    if once.put_back():
        return
    check_planned(plan)
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
    checkpoint = Checkpoint.beside(options.population, settings(options), options.checkpoint_minutes)
    state = _evolved(advance, Contest(api, electorate, features, labels), checkpoint, start)
    population = _enlarged(api, state, labels, dataset, options, checkpoint)
    with once.making() as there:
        population.finish(there.population)
        write_record(there.private, electorate.meter.measured(time.monotonic() - state.started, options.device))
        write_record(there.spend, _spend(there, plan, electorate, len(state.votes[0])))
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
    check_evolving(options, options, dataset.name, len(dataset.classes))


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
    votes = _voted(contest, images, labels, degree, step)
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
    votes = _voted(contest, images, everyones, degree, step)
    return images[first(votes, everyones, np.bincount(labels))], votes


def _voted(contest: Contest, images: np.ndarray, labels: np.ndarray, degree: float, step: int) -> np.ndarray:
    """Release a round's votes, float64 [n]."""
    released = contest.electorate.vote(contest.seen(images, labels, degree, step), torch.from_numpy(labels), step)
    return only_released(released).values[0].numpy()


def copies(labels: np.ndarray, count: int) -> list[np.ndarray]:
    """Say which images of the last generation are varied how often, so that there are ``count`` with the generation itself.

    Args:
        labels: of the generation, int64 [n], ascending.
        count: images in all, n or more.

    Returns:
        Rows int64 [m] of the generation: all of them first, then those of each copy; over all, classes are as even as they can
        be.
    """
    sizes = np.bincount(labels)
    wanted = np.bincount(np.arange(count) % len(sizes))
    place = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[labels]
    number = math.ceil((wanted / sizes).max())
    return [np.flatnonzero(copy * sizes[labels] + place < wanted[labels]) for copy in range(number)]


def _enlarged(
    api: ImageApi, state: Evolution, labels: np.ndarray, dataset: DatasetRecord, options: Evolve, checkpoint: Checkpoint
) -> Partial:
    """Write votes, the last generation, and variations of it on which no vote is cast (Lin et al. 2024).

    It goes on from where an interrupted run was.
    """
    votes, side = np.stack(state.votes), dataset.resolution
    arrays = {
        "votes": ("F32", votes.shape),
        "images": ("U8", (options.count, side, side, 3)),
        "labels": ("I64", (options.count,)),
    }
    population, parts = Partial.beside(options.population, arrays), copies(labels, options.count)
    if not (state.written and population.exists):
        population.create()
        state.written = 0
    with population.open() as writer:

        def kept() -> State:
            writer.flush()
            return contents(state)

        writer.put("votes", 0, votes)
        start = sum(map(len, parts[: state.written]))
        for copy in checkpoint.kept(range(state.written, len(parts)), kept):
            rows = parts[copy]
            images = api.variations(state.images[rows], labels[rows], options.last_degree, "more", copy) if copy else state.images
            writer.put("images", start, fitted(images, side, dataset.channels))
            writer.put("labels", start, labels[rows])
            start, state.written = start + len(rows), copy + 1
    return population


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
        private=sha256(options.private),
        provenance=provenance(),
    )
