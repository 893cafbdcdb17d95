"""Every setting: one frozen class per config section, the config file itself, the registries.

Privacy settings (they change the guarantee) stand in `PrivacyConfig` and `SaliencyConfig`;
`ComputeConfig` holds what changes only speed and memory.
"""

import functools
import json
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml

from dpsapf.errors import UserError
from dpsapf.fields import build, check, schema_of, setting
from dpsapf.methods import NoiseMode
from dpsapf.records import validate
from dpsapf.runs import RunSpec, Study, expand


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """DP-SGD's and the plan's settings that enter the accounting."""

    steps: int = setting("DP-SGD steps", unit="steps", low=1)
    expected_batch_size: int = setting("expected Poisson batch; the rate is this over N, at most 1", unit="images", low=1)
    clipping: typing.Literal["flat", "automatic"] = setting("flat: g min(1, C/||g||); automatic: C g/(||g|| + 0.01)", "automatic")
    clipping_norm: float = setting("C, the bound on one image's contribution to a step", 1.0, above=0)
    delta: float | None = setting("target delta; null: 1/(N ln N)", None, above=0, high=0.1)
    noise: NoiseMode = setting(
        "seed: reproducible, for research; system: from the operating system's generator, for a release", "seed"
    )


@dataclass(frozen=True, kw_only=True)
class SaliencyConfig:
    """The noisy saliency release."""

    clipping_norm: float = setting("C_s, bound on one image's gradient over all candidates; scores energy, norm", 1.0, above=0)
    votes: int = setting("matrices that an image votes for; score vote", 16, unit="matrices", low=1)
    expected_batch_size: int = setting(
        "B_s, expected Poisson batch; the rate is this over N, at most 1", 50000, unit="images", low=1
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """DP-SGD's settings that do not enter the accounting."""

    learning_rate_lora: float = setting("AdamW learning rate for LoRA", above=0)
    learning_rate_full: float = setting("AdamW learning rate when weights themselves are trained", above=0)
    optimizer: typing.Literal["adamw", "adamw-8bit"] = setting(
        "AdamW; with 8-bit moments for tensors of 4,096 numbers or more (needs bitsandbytes)", "adamw"
    )
    learning_rate_schedule: typing.Literal["constant", "linear", "cosine"] = setting(
        "constant, or falling from the peak to 0 over the steps", "constant"
    )
    precision: typing.Literal["fp32", "bf16"] = setting(
        "of the forward pass; trained parameters, clipping, sums and noise are fp32", "fp32"
    )
    gradient_checkpointing: bool = setting("recompute activations in the backward pass: less memory, more time", False)
    lora_rank: int = setting("LoRA rank", 4, low=1)
    lora_alpha: float = setting("LoRA alpha; the update is scaled by alpha/rank", 4.0, above=0)
    noise_multiplicity: int = setting("(timestep, noise) pairs averaged per image before clipping", 1, low=1)
    ema_decay: float = setting("decay of the weight average that is released; 0: none", 0.0, low=0, high=0.9999)
    checkpoint_every: int = setting("steps between checkpoints", 50, unit="steps", low=1)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How synthetic images are drawn."""

    count: int = setting("synthetic images, balanced over classes", unit="images", low=2)
    steps: int = setting("sampler steps", 25, unit="steps", low=1)
    guidance_scale: float = setting("classifier-free guidance; 1: none", 7.0, low=1)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How synthetic images are judged."""

    protocol: str = setting("a key of config/protocols.yaml")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Speed and memory only: no setting here may change a result beyond rounding."""

    device: typing.Literal["cpu", "cuda"] = setting("where tensors live", "cpu")
    micro_batch: int = setting("images per forward pass; memory grows with it", 64, unit="images", low=1)
    threads: int = setting("CPU threads of a torch process", 1, unit="threads", low=1)


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What a rule with a torch process asks Snakemake, and so a cluster, for."""

    gpus: int = setting("GPUs", 0, low=0)
    memory_mb: int = setting("memory", 4000, unit="MB", low=1)
    runtime_min: int = setting("run time", 60, unit="minutes", low=1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole experiment: config/*.yaml."""

    name: str = setting("results go to results/<name>")
    studies: dict[str, Study] = setting("named axes; their products are the runs")
    privacy: PrivacyConfig = setting("DP-SGD and the target")
    saliency: SaliencyConfig = setting("the saliency release")
    finetune: FinetuneConfig = setting("training settings outside the accounting")
    sampling: SamplingConfig = setting("sampling")
    evaluation: EvaluationConfig = setting("evaluation")
    compute: ComputeConfig = setting("speed and memory")
    resources: ResourcesConfig = setting("what torch processes ask a cluster for")
    datasets_file: str = setting("registry of sensitive datasets", "config/datasets.yaml")
    public_models_file: str = setting("registry of public models", "config/public_models.yaml")
    protocols_file: str = setting("registry of evaluation protocols", "config/protocols.yaml")

    @functools.cached_property
    def runs(self) -> list[RunSpec]:
        """The runs of all studies, each once."""
        return expand(self.studies)


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """One sensitive dataset of config/datasets.yaml."""

    loader: str = setting("a loader of dpsapf.datasets.loaders")
    source: str = setting("where the images come from; a path for loader image-folder")
    licence: str = setting("licence of the images")
    classes: tuple[str, ...] = setting("class names, in label order")
    prompts: tuple[str, ...] = setting("one prompt per class, treated as public")
    resolution: int = setting("side of the square images", unit="pixels", low=8)
    channels: typing.Literal[1, 3] = setting("1: grey, 3: RGB")
    validation: int = setting("images held out for validation; 0 if the source has its own split", unit="images", low=0)
    test: int = setting("images held out for test; 0 if the source has its own split", unit="images", low=0)
    split_seed: int = setting("seed of the split", 0, low=0)
    sha256: str | None = setting("digest of the source (file, or folder contents); null: not checked", None)
    procedural: bool = setting("True if the images are generated, not recorded", False)


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One public model of config/public_models.yaml."""

    path: str | None = setting("folder in diffusers layout; `package:NAME` for one that ships with dpsapf", None)
    hub_id: str | None = setting("repository on the Hugging Face hub, if there is no path", None)
    revision: str | None = setting("pinned commit of the hub repository", None)
    vae: str | None = setting("folder or hub repository of a VAE that replaces the model's own", None)
    vae_revision: str | None = setting("pinned commit of the VAE's hub repository", None)
    resolution: int = setting("side of the images that the model is given", unit="pixels", low=8)
    licence: str = setting("licence of the weights")
    sha256: str | None = setting("digest of the folder; null: not checked", None)


@dataclass(frozen=True, kw_only=True)
class ProtocolEntry:
    """One evaluation protocol of config/protocols.yaml: records that differ in it are never mixed."""

    feature_network: str = setting("`package:NAME` or `clean-fid:inception`")
    feature_sha256: str | None = setting("digest of a packaged feature network's weights; null: not checked", None)
    feature_resolution: int = setting("side of the images that the feature network is given", unit="pixels", low=8)
    resize: typing.Literal["lanczos", "bicubic"] = setting("filter for images that have another size than feature_resolution")
    neighbours: int = setting("k of precision and recall", 5, low=1)
    kid_subsets: int = setting("subsets of the KID estimate", 50, low=1)
    kid_subset_size: int = setting("images per KID subset", 200, unit="images", low=2)
    classifiers: tuple[str, ...] = setting("utility classifiers, names of dpsapf.evaluation.classifiers")
    classifier_steps: int = setting("steps of each classifier, whatever the number of images", unit="steps", low=1)
    classifier_batch: int = setting("batch of each classifier", 64, unit="images", low=1)
    classifier_learning_rate: float = setting("peak learning rate of each classifier", 2e-3, above=0)
    synthetic_validation: float = setting("share of the training images that selects the best state", 0.1, above=0, high=0.5)


def load_yaml(path: str | Path) -> dict:
    """Parse a YAML mapping.

    Raises:
        UserError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("config file", str(path), "does not exist") from error
    except yaml.YAMLError as error:
        raise UserError(str(path), "not YAML", str(error).replace("\n", " ")) from error
    if not isinstance(data, dict):
        raise UserError(str(path), data, "must be a mapping of keys to values")
    return data


def load_registry(path: str | Path, cls: type) -> dict[str, typing.Any]:
    """Read a registry: a mapping of names to entries of ``cls``, each checked.

    Raises:
        UserError: names the file, the entry, the key and what is expected.
    """
    entries = {}
    for name, data in load_yaml(path).items():
        validate(data, cls, f"{path}: {name}")
        entries[name] = build(cls, data)
        check(entries[name])
    return entries


def parse_config(data: dict, where: str = "config") -> Config:
    """Check a parsed config against its closed schema and its registries, and expand its runs.

    Raises:
        UserError: an unknown or missing key, a value out of range, a name that no registry has.
    """
    validate(data, Config, where)
    config = build(Config, data)
    if not config.runs:
        raise UserError("studies", "no runs", "name at least one study with a dataset, a public model and a method")
    for section in (config.privacy, config.saliency, config.finetune, config.sampling, config.compute, config.resources):
        check(section)
    _known(config, "dataset", load_registry(config.datasets_file, DatasetEntry))
    _known(config, "public_model", load_registry(config.public_models_file, ModelEntry))
    protocols = load_registry(config.protocols_file, ProtocolEntry)
    if config.evaluation.protocol not in protocols:
        raise UserError("evaluation.protocol", config.evaluation.protocol, f"must be one of {', '.join(protocols)}")
    return config


def _known(config: Config, axis: str, registry: dict) -> None:
    for run in config.runs:
        name = getattr(run, axis)
        if name not in registry:
            raise UserError(f"studies: {axis}", name, f"must be one of {', '.join(registry)}")


def entry(path: str | Path, name: str, cls: type) -> typing.Any:  # noqa: ANN401
    """Return one entry of a registry file.

    Raises:
        UserError: the registry has no such name.
    """
    registry = load_registry(path, cls)
    if name not in registry:
        raise UserError(f"entry of {path}", name, f"must be one of {', '.join(registry)}")
    return registry[name]


def schemas() -> dict[str, dict]:
    """Return the JSON schemas of the config files, by the stem of their file in workflow/schemas."""
    registries = {"datasets": DatasetEntry, "public_models": ModelEntry, "protocols": ProtocolEntry}
    files = {name: {"type": "object", "additionalProperties": schema_of(cls)} for name, cls in registries.items()}
    return {"config": schema_of(Config), **files}


def write_schemas(folder: Path) -> None:
    """Write every schema of `schemas` to ``folder``."""
    for name, schema in schemas().items():
        (folder / f"{name}.schema.json").write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_schemas(Path(__file__).parents[1] / "workflow" / "schemas")
