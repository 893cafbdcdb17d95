"""What a config's jobs compute and write: TFLOP and bytes, from the architectures' operations and the config alone.

It is an estimate. Left out: classifiers, text encoders and metrics, which are small beside the rest at the paper's scale.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from dpsapf.experiment.methods import method
from dpsapf.experiment.registries import DatasetEntry, ModelEntry, entry
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.settings import Config
from dpsapf.experiment.work import Work, architectures

HEAVY = ("encode_dataset", "reference_features", "score_saliency", "finetune", "evolve", "sample", "evaluate")
INCEPTION = 0.0114264  # TFLOP an image of Inception-v3 at 299 x 299, by torch's counter as `dpsapf.bench.work` counts
FEATURES = 2048


@dataclass(frozen=True)
class Job:
    """One job of the DAG.

    Attributes:
        rule: its name.
        subject: what it is for, once in a config.
        run: the first run that needs it.
        tflop: what it computes; None if the dataset's size or the model's architecture is not told in its registry.
        gigabytes: what it writes and leaves.
    """

    rule: str
    subject: str
    run: RunSpec
    tflop: float | None = 0.0
    gigabytes: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """What the cost of a run's jobs depends on.

    Attributes:
        dataset: the entry.
        images: N; None if it is not told.
        work: of the model's architecture, at its resolution; None if it is not told.
    """

    dataset: DatasetEntry
    images: int | None
    work: Work | None

    @classmethod
    def of(cls, config: Config, run: RunSpec) -> "Sizes":
        """Look a run's dataset and model up."""
        return _sizes(config.datasets_file, run.dataset, config.public_models_file, run.public_model)


@functools.cache
def _sizes(datasets_file: str, dataset: str, models_file: str, public_model: str) -> Sizes:
    images, model = entry(datasets_file, dataset, DatasetEntry), entry(models_file, public_model, ModelEntry)
    work = architectures().get(model.architecture) if model.architecture else None
    return Sizes(images, images.train or images.images, work and work.at(model.resolution))


def jobs(config: Config) -> Iterator[Job]:
    """List every job that the runs of a config need, each once; those that only write records, too."""
    seen = set()
    for run in config.runs:
        for job in _jobs(config, run, Sizes.of(config, run)):
            if (job.rule, job.subject) not in seen:
                seen.add((job.rule, job.subject))
                yield job


def _jobs(config: Config, run: RunSpec, sizes: Sizes) -> Iterator[Job]:
    row, pair = method(run.method), f"{run.dataset}--{run.public_model}"
    yield Job("prepare_dataset", run.dataset, run, 0.0, _pixels(sizes, sizes.images or 0))
    if row.made_elsewhere:
        yield Job("import_images", run.id, run, 0.0, _pixels(sizes, config.sampling.count))
        yield from _evaluated(config, run, sizes, "collect_external")
        return
    yield Job("prepare_public_model", run.public_model, run)
    yield Job("plan_privacy", run.id, run)
    if row.trains:
        yield Job("encode_dataset", pair, run, _images(sizes, "encode", sizes.images), _latents(sizes))
    if not row.evolves:
        yield Job("embed_prompts", pair, run)
    if row.selects:
        yield Job("score_saliency", run.scores_id, run, score(config, sizes))
    if row.trains:
        yield Job("select_matrices", run.id, run)
        yield Job("finetune", run.id, run, finetune(config, run, sizes), _weights(run, sizes))
    if row.evolves:
        yield Job("evolve", run.id, run, evolve(config, run, sizes), _pixels(sizes, config.sampling.count))
    yield Job("audit_privacy", run.id, run)
    samples = _pixels(sizes, config.sampling.count)
    if row.evolves:
        yield Job("publish_population", run.id, run, 0.0, samples)
    else:
        yield Job("sample", run.id, run, sample(config, sizes), samples)
    yield from _evaluated(config, run, sizes, "collect_metrics")


def _evaluated(config: Config, run: RunSpec, sizes: Sizes, collect: str) -> Iterator[Job]:
    features = sizes.images and sizes.images * FEATURES * 4 / 1e9
    yield Job("reference_features", run.dataset, run, sizes.images and sizes.images * INCEPTION, features or 0.0)
    yield Job("evaluate", run.id, run, config.sampling.count * INCEPTION)
    yield Job(collect, run.id, run)


def score(config: Config, sizes: Sizes) -> float | None:
    """Count one pass through the frozen model over a Poisson batch of the images [TFLOP]."""
    batch = sizes.images and min(sizes.images, config.saliency.expected_batch_size)
    return _images(sizes, "frozen", batch)


def finetune(config: Config, run: RunSpec, sizes: Sizes) -> float | None:
    """Count DP-SGD's passes; where more than adapters is trained, as if everything were [TFLOP]."""
    steps = run.training_steps or config.privacy.steps
    batch = run.batch_size or config.privacy.expected_batch_size
    kind = "frozen" if method(run.method).trained == "adapter" else "full"
    return _images(sizes, kind, steps * batch * config.finetune.noise_multiplicity)


def sample(config: Config, sizes: Sizes) -> float | None:
    """Count the sampler's steps, twice with guidance, and the decoder [TFLOP]."""
    return sizes.work and config.sampling.count * _drawn(config, sizes.work)


def evolve(config: Config, run: RunSpec, sizes: Sizes) -> float | None:
    """Count the first generation, what is voted on in each round, its variations, and the last ones [TFLOP]."""
    settings, work = config.evolution, sizes.work
    if work is None:
        return None
    generation = settings.generation or config.sampling.count
    voted, rounds = generation, settings.iterations
    if method(run.method).evolves == "first":
        voted = settings.variants * generation
    varied = rounds * (voted * max(1, settings.lookahead) + generation) + config.sampling.count - generation
    degree = (settings.first_degree + settings.last_degree) / 2
    return generation * _drawn(config, work) + varied * (_drawn(config, work, degree) + work.encode)


def _drawn(config: Config, work: Work, degree: float = 1.0) -> float:
    passes = 2 if config.sampling.guidance_scale > 1 else 1
    return config.sampling.steps * degree * passes * work.forward + work.decode


def _images(sizes: Sizes, kind: str, images: int | None) -> float | None:
    return None if sizes.work is None or images is None else images * getattr(sizes.work, kind)


def _pixels(sizes: Sizes, images: int) -> float:
    return images * sizes.dataset.resolution**2 * 3 / 1e9


def _latents(sizes: Sizes) -> float:
    """Return the size of means and deviations in fp16, an eighth of the image's side and four channels."""
    return (sizes.images or 0) * 4 * ((sizes.work.resolution if sizes.work else 0) // 8) ** 2 * 2 * 2 / 1e9


def _weights(run: RunSpec, sizes: Sizes) -> float:
    whole = method(run.method).trained in ("unet", "attention", "weights")
    return sizes.work.parameters * 4 / 1e9 if whole and sizes.work else 0.0
