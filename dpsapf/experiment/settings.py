"""Every setting of a config file: one class per section, each key's type, range, unit and meaning declared once.

Privacy settings (they change the guarantee) stand in `PrivacyConfig` and `SaliencyConfig`, and `EvolutionConfig.iterations`;
`ComputeConfig` holds what changes only speed and memory.
"""

import functools
import typing
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from dpsapf.experiment.methods import FRAGILITY, TRAINING_AXES, NoiseMode, Optimizer, Positive, Precision, Sampler, Seed, Unit
from dpsapf.experiment.registries import DatasetEntry, ModelEntry, ProtocolEntry, load_registry
from dpsapf.experiment.runs import Name, RunSpec, Study, expand, external_run
from dpsapf.support.checked import Checked, parse, replace
from dpsapf.support.errors import UserError, UserErrors, one_of


class PrivacyConfig(Checked):
    """DP-SGD's and the plan's settings that enter the accounting."""

    steps: int = Field(description="DP-SGD steps [steps]", ge=1)
    expected_batch_size: int = Field(description="expected Poisson batch; the rate is this over N, at most 1 [units]", ge=1)
    clipping: typing.Literal["flat", "automatic"] = Field(
        "automatic", description="flat: g min(1, C/||g||); automatic: C g/(||g|| + 0.01)"
    )
    clipping_norm: float = Field(1.0, description="C, the bound on one unit's contribution to a step", gt=0)
    delta: float | None = Field(None, description="target delta; null: 1/(N ln N)", gt=0, le=0.1)
    unit: Unit = Field(
        "image", description="what is protected: image, or user: all images of one person (the dataset's entry names them)"
    )
    noise: NoiseMode = Field(
        "seed", description="seed: reproducible, for research; system: from the operating system's generator, for a release"
    )
    prior: tuple[Path, ...] = Field(
        (),
        description="ledgers or refusals' spend records of earlier releases of the dataset, which epsilon has to hold, too",
        json_schema_extra={"role": "reads"},
    )


class SaliencyConfig(Checked):
    """The noisy saliency release."""

    clipping_norm: Positive | typing.Literal["auto"] = Field(
        1.0,
        description="C_s, bound on one image's gradient over all candidates; scores energy, norm; auto: the median of the public "
        "model's own samples",
    )
    votes: int = Field(16, description="matrices that an image votes for; score vote [matrices]", ge=1)
    expected_batch_size: int = Field(
        50000, description="B_s, expected Poisson batch; the rate is this over N, at most 1 [units]", ge=1
    )


class UpdateConfig(Checked):
    """What turns private gradients into weights."""

    optimizer: Optimizer = Field(
        "adamw", description="AdamW; with 8-bit moments for tensors of 4,096 numbers or more (needs bitsandbytes)"
    )
    learning_rate_schedule: typing.Literal["constant", "linear", "cosine", "warm-up"] = Field(
        "constant", description="constant; falling from the peak to 0; or rising to it over the first third of the steps"
    )
    lora_rank: int = Field(4, description="LoRA rank", ge=1)
    lora_alpha: float = Field(4.0, description="LoRA alpha; the update is scaled by alpha/rank", gt=0)
    ema_decay: float = Field(0.0, description="decay of the weight average that is released; 0: none", ge=0, le=0.9999)


class AuditConfig(UpdateConfig):
    """What, beside the plan, says exactly which files a run leaves."""

    learning_rate: float | None = Field(
        None, description="peak learning rate if the run names none; rule noise-budget, rank auto", gt=0
    )
    count: int | None = Field(None, description="images that are published, of methods that let images evolve [images]", ge=2)
    generation: int | None = Field(None, description="images that evolve; omitted: so many; likewise [images]", ge=2)
    variants: int = Field(2, description="L, images of each chosen one; method aug-pe [images]", ge=2)


class FinetuneConfig(UpdateConfig):
    """DP-SGD's settings that do not enter the accounting."""

    learning_rate_lora: float = Field(description="AdamW learning rate for LoRA", gt=0)
    learning_rate_full: float = Field(description="AdamW learning rate when weights themselves are trained", gt=0)
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")
    noise_multiplicity: int = Field(
        1, description="(timestep, noise) pairs averaged per unit before clipping; a user's are each of an image drawn anew", ge=1
    )
    checkpoint_every: int = Field(50, description="steps between checkpoints [steps]", ge=1)


class VariationConfig(Checked):
    """How images vary and are chosen, for methods pe and aug-pe: nothing here changes what is spent.

    Defaults are Lin et al.'s (2024, arXiv 2305.15560): degrees and lookahead of their Stable Diffusion experiments, the
    threshold of those on CIFAR-10 and Camelyon17; and the smaller L of Xie et al. (2024, arXiv 2403.01749).
    """

    first_degree: float = Field(1.0, description="variation degree of the first round: image-to-image strength", gt=0, le=1)
    last_degree: float = Field(0.4, description="variation degree of the last round; between, it falls linearly", gt=0, le=1)
    threshold: float = Field(
        1.4,
        description="H, taken off every noisy count, over the noise's standard deviation; below 0 counts as 0; method pe",
        ge=0,
    )
    generation: int | None = Field(
        None,
        description="images that evolve; the last of them are varied until there are sampling.count; null: so many [images]",
        ge=2,
    )
    lookahead: int = Field(
        8, description="k, variations whose mean features stand for an image when votes are cast; 0: its own [images]", ge=0
    )
    variants: int = Field(
        2, description="L, images of each chosen one, itself and L - 1 variations; method aug-pe [images]", ge=2
    )
    prompt_prefixes: tuple[str, ...] = Field(
        ("a photo of", "a picture that shows"),
        description="put before a class's prompt, in a part of its images; public; method aug-pe",
    )


class EvolutionConfig(VariationConfig):
    """Private Evolution, methods pe and aug-pe: images evolve by votes, and nothing is trained."""

    iterations: int = Field(17, description="T, rounds of votes; each is a release [rounds]", ge=1)


class SamplingConfig(Checked):
    """How synthetic images are drawn."""

    count: int = Field(description="synthetic images, balanced over classes [images]", ge=2)
    steps: int = Field(25, description="sampler steps [steps]", ge=1)
    sampler: Sampler = Field("model", description="model: the scheduler that the public model was published with; or ddim")
    guidance_scale: float = Field(7.0, description="classifier-free guidance; 1: none", ge=1)


def check_evolving(variation: VariationConfig, sampling: SamplingConfig, dataset: str, classes: int) -> None:
    """Check that images can evolve as the settings say.

    Args:
        variation: how images vary.
        sampling: how many are published, and in how many steps they are drawn.
        dataset: its name, for errors.
        classes: how many it has.

    Raises:
        UserError: there are fewer images than classes, or more than are published; or a variation has no sampler step.
    """
    key, images = ("generation", variation.generation) if variation.generation else ("count", sampling.count)
    if images < classes:
        raise UserError(key, images, f"{dataset} has {classes} classes: make an image of each")
    if images > sampling.count:
        raise UserError(key, images, f"must be at most the images that are published: {sampling.count}")
    degree = min(variation.first_degree, variation.last_degree)
    if int(sampling.steps * degree) < 1:
        remedy = (
            f"of {sampling.steps} sampler steps it leaves none: must be at least {1 / sampling.steps:.3g}, or take more steps"
        )
        raise UserError("variation degree", degree, remedy)


class PrecisionConfig(Checked):
    """How exactly the denoiser multiplies, in scoring, training and sampling alike."""

    precision: Precision = Field(
        "fp32", description="of the denoiser's passes; all parameters, the VAE, norms, clipping, sums and noise are fp32"
    )


class EvaluationConfig(Checked):
    """How synthetic images are judged."""

    protocol: str = Field(description="a key of config/protocols.yaml")


class ExternalRun(Checked):
    """One set of images that another group made."""

    dataset: str = Field(description="sensitive dataset, a key of config/datasets.yaml")
    images: str = Field(description="folder of class folders, .zip of it, or .npz; see docs/sharing.md")
    epsilon: Positive | None = Field(description="epsilon that its authors claim, not audited by this suite; null: none claimed")
    delta: float | None = Field(None, description="delta that its authors claim", gt=0, le=0.1)
    seed: Seed = Field(0, description="seed of their run, and of the classifiers")
    public_model: str | None = Field(
        None, description="whose runs it stands beside in tables; null: the first that a study has on the dataset"
    )


class ExternalMethod(Checked):
    """Another group's method, of which there are only images."""

    label: str = Field(description="what tables and figures call it, in one line, not beginning with -", pattern=r"^[^\s-].*$")
    runs: tuple[ExternalRun, ...] = Field(description="its images: one entry for each dataset, epsilon and seed", min_length=1)


class ComputeConfig(Checked):
    """Speed and memory only: no setting here may change a result beyond rounding."""

    device: typing.Literal["cpu", "cuda"] = Field("cpu", description="where tensors live")
    micro_batch: int = Field(64, description="images per forward pass; memory grows with it [images]", ge=1)
    threads: int = Field(1, description="CPU threads of a torch process [threads]", ge=1)
    checkpoint_minutes: float = Field(10.0, description="between checkpoints of a long stage, at most [minutes]", gt=0)


class ResourcesConfig(Checked):
    """What a rule with a torch process asks Snakemake, and so a cluster, for."""

    gpus: int = Field(0, description="GPUs of a job that shares its work between processes; other torch jobs get one", ge=0)
    memory_mb: int = Field(4000, description="memory of a job, at most [MB]", ge=1)
    runtime_min: int = Field(60, description="run time of a job, at most [minutes]", ge=1)
    tflops: float | None = Field(
        None,
        description="what one GPU, or without one a process, does in practice, from which run times are estimated; null: every "
        "torch job asks for runtime_min [TFLOP/s]",
        gt=0,
    )


class Config(PrecisionConfig):
    """A whole experiment: config/*.yaml."""

    name: str = Field(description="results go to results/<name>", pattern=r"^[A-Za-z0-9][\w.-]*$")
    studies: dict[str, Study] = Field(description="named axes; their products are the runs")
    external: dict[Name, ExternalMethod] = Field({}, description="other groups' methods, of which images are evaluated")
    privacy: PrivacyConfig = Field(description="DP-SGD and the target")
    saliency: SaliencyConfig = Field(description="the saliency release")
    finetune: FinetuneConfig = Field(description="training settings outside the accounting")
    evolution: EvolutionConfig = Field(EvolutionConfig(), description="methods pe and aug-pe")
    sampling: SamplingConfig = Field(description="sampling")
    evaluation: EvaluationConfig = Field(description="evaluation")
    compute: ComputeConfig = Field(description="speed and memory")
    resources: ResourcesConfig = Field(description="what torch processes ask a cluster for")
    compare_scores: tuple[str, ...] = Field(
        (), description="datasets, of those with runs, on which scores are compared under noise, outside the guarantee"
    )
    compare_rankings: tuple[str, ...] = Field(
        (), description="datasets, of those with runs, on which it is measured what else moves the scores' order, likewise"
    )
    measure_fragility: tuple[str, ...] = Field(
        (), description="datasets, of those with runs, whose runs are set beside what noise alone is predicted to break"
    )
    datasets_file: str = Field("config/datasets.yaml", description="registry of sensitive datasets")
    public_models_file: str = Field("config/public_models.yaml", description="registry of public models")
    protocols_file: str = Field("config/protocols.yaml", description="registry of evaluation protocols")

    @functools.cached_property
    def runs(self) -> list[RunSpec]:
        """The runs of all studies, each once; an axis of training at the config's own value is null. Then external ones."""
        return [*self._studied, *(run for run, _, _ in self.made_elsewhere.values())]

    @functools.cached_property
    def _studied(self) -> list[RunSpec]:
        return list({run.id: run for run in self.matching(expand(self.studies))}.values())

    @functools.cached_property
    def made_elsewhere(self) -> dict[str, tuple[RunSpec, ExternalMethod, ExternalRun]]:
        """Every set of images that another group made, by the id of its run.

        Raises:
            UserError: two are of one method, dataset, public model, epsilon and seed, or two methods have one label.
        """
        known: dict[str, tuple[RunSpec, ExternalMethod, ExternalRun]] = {}
        for name, row in self.external.items():
            if row.label in {other.label for key, other in self.external.items() if key != name}:
                raise UserError(f"external.{name}.label", row.label, "two methods have it: tables could not tell them apart")
            for place, images in enumerate(row.runs):
                run = external_run(name, images.dataset, self._beside(images), images.epsilon, images.seed)
                if run.id in known:
                    raise UserError(f"external.{name}.runs.{place}", run.id, "is there already: give each its own seed")
                known[run.id] = run, row, images
        return known

    def _beside(self, images: ExternalRun) -> str:
        models = [run.public_model for run in self._studied if run.dataset == images.dataset]
        return images.public_model or next(iter(models), Study.model_fields["public_model"].default[0])

    def matching(self, runs: Iterable[RunSpec]) -> list[RunSpec]:
        """Set the axes of training to null in which runs have the config's own values."""
        return [replace(run, **self._own_axes(run)) for run in runs]

    def _own_axes(self, run: RunSpec) -> dict[str, None]:
        rate = self.finetune.learning_rate_lora if run.adapter else self.finetune.learning_rate_full
        own = (rate, self.privacy.steps, self.privacy.expected_batch_size, self.finetune.lora_rank, self.finetune.optimizer)
        return {axis: None for axis, value in zip(TRAINING_AXES, own, strict=True) if getattr(run, axis) == value}


def parse_config(data: dict, where: str = "config") -> Config:
    """Check a parsed config against its closed model and its registries, and expand its runs.

    Raises:
        UserErrors: a line for every unknown or missing key, value out of range, and name that no registry has; or the
            protocol compares another number of images.
    """
    errors: list[UserError] = []
    try:
        config = parse(Config, data, where)
    except UserErrors as error:
        errors += error.errors
    errors += [UserError(f"{where}: {key}", name, one_of(name, known)) for key, name, known in _names(data) if name not in known]
    if errors:
        raise UserErrors(errors)
    protocol = load_registry(config.protocols_file, ProtocolEntry)[config.evaluation.protocol]
    if protocol.synthetic_images not in (None, config.sampling.count):
        remedy = f"protocol {config.evaluation.protocol} compares exactly {protocol.synthetic_images}: draw so many"
        raise UserError(f"{where}: sampling.count", config.sampling.count, remedy)
    if config.saliency.clipping_norm == "auto" and (config.compare_scores or config.compare_rankings):
        remedy = "is found by plans, which compare_scores and compare_rankings read none of: give a number, or leave those out"
        raise UserError(f"{where}: saliency.clipping_norm", "auto", remedy)
    if not config.runs:
        raise UserError(f"{where}: studies", {}, "no runs: name at least one study with a dataset and a method")
    return config


def _names(data: dict) -> typing.Iterator[tuple[str, object, list[str]]]:
    """List the names in a config that a registry must have, with their keys and that registry's names."""
    datasets, models, protocols = (_registry(data, field, cls) for field, cls in REGISTRIES.items())
    studies = data.get("studies")
    for study, axes in studies.items() if isinstance(studies, dict) else ():
        for axis, known in (("dataset", datasets), ("public_model", models), ("proxy", [FRAGILITY, *datasets])):
            values = axes.get(axis) if isinstance(axes, dict) else None
            for index, name in enumerate(values if isinstance(values, list) else ()):
                yield f"studies.{study}.{axis}.{index}", name, known
    yield from _external_names(data.get("external"), datasets, models)
    for key in ("compare_scores", "compare_rankings", "measure_fragility"):
        named = data.get(key)
        for index, name in enumerate(named if isinstance(named, list) else ()):
            yield f"{key}.{index}", name, datasets
    evaluation = data.get("evaluation")
    if isinstance(evaluation, dict) and "protocol" in evaluation:
        yield "evaluation.protocol", evaluation["protocol"], protocols


def _external_names(methods: object, datasets: list[str], models: list[str]) -> typing.Iterator[tuple[str, object, list[str]]]:
    for name, row in methods.items() if isinstance(methods, dict) else ():
        runs = row.get("runs") if isinstance(row, dict) else None
        for place, images in enumerate(runs if isinstance(runs, list) else ()):
            for key, known in (("dataset", datasets), ("public_model", models)):
                if isinstance(images, dict) and images.get(key) is not None:
                    yield f"external.{name}.runs.{place}.{key}", images[key], known


def _registry(data: dict, field: str, cls: type[Checked]) -> list[str]:
    return list(load_registry(data.get(field, Config.model_fields[field].default), cls))


REGISTRIES = {"datasets_file": DatasetEntry, "public_models_file": ModelEntry, "protocols_file": ProtocolEntry}
