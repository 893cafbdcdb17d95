"""What a config's jobs compute and write: TFLOP and bytes, from the architectures' operations and the config alone.

It is an estimate. `LEFT_OUT` says what is not counted.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from dpsapf.experiment.methods import method
from dpsapf.experiment.registries import PACKAGED, DatasetEntry, ModelEntry, ProtocolEntry, Recipe, entry
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.settings import Config
from dpsapf.experiment.work import CLASSIFIERS_SIDE, Work, architectures, classifiers
from dpsapf.support.checked import replace

HEAVY = ("encode_dataset", "reference_features", "score_saliency", "finetune", "evolve", "sample", "evaluate")
SHARED = ("score_saliency", "finetune", "sample")
"""Rules whose work is shared by as many processes as there are GPUs."""
GROUPED = ("sample", "evaluate")
"""Rules of which a cluster gets one job for both, whose times add up."""
FP32 = ("reference_features", "evaluate")
"""Rules whose networks compute in fp32, whatever the config's precision is."""
SLOWER = (
    27 / 180
)  # what is left of a GPU's speed in bf16 in fp32: an H100 in practice, as in config/paper.yaml and paper-lite.yaml
START = 5  # minutes in which a job starts: Snakemake twice, torch, the model's weights
SPARE = 2.0  # times the estimate, for slower nodes and busy disks
TRIES = 3  # of a job on a cluster: retries of slurm/config.yaml, and the first
LEFT_OUT = "text encoders (a pass for each prompt), metrics beyond their features, comparisons of scores, reading and writing"
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
    if run.scored_dataset:
        yield from _scored(config, replace(run, dataset=run.scored_dataset))
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


def _scored(config: Config, run: RunSpec) -> Iterator[Job]:
    """List what scores need: those of another dataset need its images, too."""
    pair, sizes = f"{run.dataset}--{run.public_model}", Sizes.of(config, run)
    yield Job("prepare_dataset", run.dataset, run, 0.0, _pixels(sizes, sizes.images or 0))
    yield Job("encode_dataset", pair, run, _images(sizes, "encode", sizes.images), _latents(sizes))
    yield Job("embed_prompts", pair, run)
    yield Job("score_saliency", run.scores_id, run, score(config, sizes))


def _evaluated(config: Config, run: RunSpec, sizes: Sizes, collect: str) -> Iterator[Job]:
    features = sizes.images and sizes.images * FEATURES * 4 / 1e9
    yield Job("reference_features", run.dataset, run, sizes.images and evaluate(config, sizes, sizes.images), features or 0.0)
    yield Job("evaluate", run.id, run, evaluate(config, sizes, config.sampling.count))
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


def evaluate(config: Config, sizes: Sizes, images: int) -> float:
    """Count features of some images, and the training of the protocol's classifiers on them [TFLOP]."""
    side = sizes.dataset.resolution
    network, recipe = _protocol(config.protocols_file, config.evaluation.protocol, side)
    held_out = recipe.validation_share if recipe.selection == "synthetic" else 0.0
    seen = recipe.repeats * (recipe.steps * recipe.batch if recipe.steps else recipe.epochs * (1 - held_out) * images)
    each = sum(classifiers().get(name, 0.0) for name in recipe.classifiers)
    return images * network + seen * each * (side / CLASSIFIERS_SIDE) ** 2


@functools.cache
def _protocol(file: str, name: str, side: int) -> tuple[float, Recipe]:
    """Look up what an image costs a protocol's feature network, as Inception if it is published [TFLOP]; and its recipe."""
    protocol = entry(file, name, ProtocolEntry)
    return 0.0 if protocol.feature_network.startswith(PACKAGED) else INCEPTION, protocol.recipe(side)


def gpu_seconds(config: Config, job: Job, tflops: float | None) -> float | None:
    """Estimate how long one GPU computes for a job; None where its work or the speed is not known.

    Args:
        config: the whole experiment.
        job: one of its `jobs`.
        tflops: what one GPU does in practice at the config's precision [TFLOP/s].
    """
    if tflops is None or job.tflop is None or job.rule not in HEAVY:
        return None
    slower = SLOWER if job.rule in FP32 and config.precision == "bf16" else 1.0
    return job.tflop / (tflops * slower)


def minutes_asked(config: Config, job: Job, tflops: float | None) -> float | None:
    """Return how much time the first try of a job would ask for, were there no limit; None as in `gpu_seconds` [minutes]."""
    taken = gpu_seconds(config, job, tflops)
    gpus = max(1, config.resources.gpus) if job.rule in SHARED else 1
    return None if taken is None else START + SPARE * taken / gpus / 60


@dataclass(frozen=True)
class Overlong:
    """The jobs of a rule of which one try may be too short.

    Attributes:
        rule: its name.
        jobs: how many they are.
        hours: the shortest and the longest of them take, by estimate.
        limit: of a try: resources.runtime_min [minutes].
        tries: that the longest needs at that limit, with time to spare.
        enough: the least limit at which `TRIES` tries are enough [minutes].
    """

    rule: str
    jobs: int
    hours: tuple[float, float]
    limit: int
    tries: int
    enough: int

    @property
    def ends(self) -> bool:
        """Say whether as many tries are made."""
        return self.tries <= TRIES

    def __str__(self) -> str:
        """Tell it in one line, with the remedy."""
        hours = " to ".join(dict.fromkeys(f"{number:.0f}" for number in self.hours))
        told = f"{self.rule}: {self.jobs} jobs take {hours} hours by estimate, and may take {SPARE:g} times that. "
        told += f"A try may take {self.limit / 60:.0f} (resources.runtime_min = {self.limit}), and the next goes on from there: "
        if self.ends:
            return f"{told}{self.tries} of {TRIES} tries"
        return f"{told}{self.tries} tries are needed, {TRIES} are made. Set runtime_min to {self.enough} or more, or make less"


def overlong(config: Config, tflops: float | None) -> list[Overlong]:
    """List the rules whose jobs do not fit into the time that one try may take."""
    limit, by_rule = config.resources.runtime_min, {}
    for rule, needed in _submitted(config, tflops).items():
        if START + needed > limit:
            by_rule.setdefault(rule[0], []).append(needed)
    found = []
    for rule, needed in by_rule.items():
        hours = min(needed) / SPARE / 60, max(needed) / SPARE / 60
        tries, enough = math.ceil(max(needed) / max(1, limit - START)), math.ceil(START + max(needed) / TRIES)
        found.append(Overlong(rule, len(needed), hours, limit, tries, enough))
    return found


def _submitted(config: Config, tflops: float | None) -> dict[tuple[str, str], float]:
    """Map rule and subject of each job that a cluster gets to the time that it needs but for its start [minutes]."""
    needed = {(job.rule, job.subject): minutes_asked(config, job, tflops) for job in jobs(config)}
    needed = {key: minutes - START for key, minutes in needed.items() if minutes is not None}
    first, second = GROUPED
    both = [subject for rule, subject in needed if rule == first and (second, subject) in needed]
    for subject in both:
        needed[f"{first}+{second}", subject] = needed.pop((first, subject)) + needed.pop((second, subject))
    return needed


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
