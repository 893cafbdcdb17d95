"""The sub-commands and their options, without a heavy import: one class per stage."""

import typing
from dataclasses import dataclass
from pathlib import Path

from dpsapf.config import ComputeConfig, FinetuneConfig, PrivacyConfig, SaliencyConfig, SamplingConfig
from dpsapf.fields import setting, source, target
from dpsapf.methods import Adapter, Candidates, Level, MechanismName, MethodName, NoiseMode, ScoreName


@dataclass(frozen=True, kw_only=True)
class PrepareDataset:
    """Options of prepare-dataset."""

    name: str = setting("key of the dataset in the registry")
    registry: Path = source("registry of datasets", Path("config/datasets.yaml"))
    archive: Path = target("images, labels and splits (.npz)")
    record: Path = target("dataset.json")
    preview: Path = target("contact sheet of training images (.png)")


@dataclass(frozen=True, kw_only=True)
class PreparePublicModel:
    """Options of prepare-public-model."""

    name: str = setting("key of the model in the registry")
    registry: Path = source("registry of public models", Path("config/public_models.yaml"))
    record: Path = target("model.json")
    candidates: Path = target("candidate matrices (.csv)")


@dataclass(frozen=True, kw_only=True)
class PretrainPublicModel:
    """Options of pretrain-public-model."""

    out: Path = target("folder of the public model, in diffusers layout; must not exist")
    feature_network: Path = target("weights of the demo protocol's feature network (.safetensors)")
    images: int = setting("public images drawn", 150000, unit="images", low=64)
    autoencoder_steps: int = setting("steps of the VAE", 5000, unit="steps", low=1)
    unet_steps: int = setting("steps of UNet and text encoder", 20000, unit="steps", low=1)
    feature_steps: int = setting("steps of the feature network", 2500, unit="steps", low=1)
    minutes: float | None = setting("end UNet and text encoder after this time, if steps are left", None, unit="minutes", above=0)
    batch: int = setting("images per step", 512, unit="images", low=2)
    learning_rate: float = setting("peak AdamW learning rate", 1e-3, above=0)
    seed: int = setting("seed", 0, low=0)
    device: typing.Literal["cpu", "cuda"] = setting("where to train", "cpu")
    threads: int = setting("CPU threads and drawing processes", 2, unit="threads", low=1)


@dataclass(frozen=True, kw_only=True)
class EncodeDataset(ComputeConfig):
    """Options of encode-dataset."""

    archive: Path = source("dataset.npz")
    dataset: Path = source("dataset.json")
    model: Path = source("model.json")
    out: Path = target("latents and prompt embeddings (.safetensors)")


@dataclass(frozen=True, kw_only=True)
class PlanPrivacy(PrivacyConfig):
    """Options of plan-privacy."""

    dataset: Path = source("dataset.json")
    public_model: str = setting("public model of the run")
    method: MethodName = setting("method of the run")
    level: Level | None = setting("what is ranked; only for methods that choose, like --ratio", None)
    ratio: float | None = setting("fraction of the ranked units that is kept", None, above=0, high=1)
    score: ScoreName | None = setting("what an image contributes to the saliency scores; omitted: energy", None)
    mechanism: MechanismName | None = setting("how the scores, or what they select, are released; omitted: gaussian", None)
    sigma_s: float | None = setting("noise multiplier of the saliency release, or that of equal zCDP cost", None, above=0)
    candidates: Candidates | None = setting("matrices to choose from; omitted: attention", None)
    adapter: Adapter | None = setting("adapter that is trained; omitted: lora", None)
    epsilon: float | None = setting("target epsilon; omitted if nothing is trained, or without a guarantee", None, above=0)
    seed: int = setting("seed of the run", 0, low=0)
    candidate_table: Path = source("candidates.csv")
    saliency_clipping_norm: float = setting("C_s of the saliency release; scores energy, norm", 1.0, above=0)
    saliency_votes: int = setting("matrices that an image votes for; score vote", 16, unit="matrices", low=1)
    saliency_expected_batch_size: int = setting("B_s, expected Poisson batch of the saliency pass", 50000, unit="images", low=1)
    out: Path = target("plan.json")


@dataclass(frozen=True, kw_only=True)
class ScoreSaliency(SaliencyConfig, ComputeConfig):
    """Options of score-saliency."""

    dataset: Path = source("dataset.json")
    model: Path = source("model.json")
    candidate_table: Path = source("candidates.csv")
    latents: Path = source("latents.safetensors")
    candidates: Candidates = setting("matrices that are scored", "attention")
    score: ScoreName = setting("what an image contributes", "energy")
    mechanism: MechanismName | None = setting("how the scores are released; omitted: exactly, without a guarantee", None)
    sigma_s: float | None = setting("noise multiplier, or that of equal zCDP cost; given with a mechanism", None, above=0)
    level: Level | None = setting("what is ranked; for exponential and ptr", None)
    ratio: float | None = setting("fraction that is kept; for exponential and ptr", None, above=0, high=1)
    delta: float | None = setting("target delta of the run; omitted: 1/(N ln N)", None, above=0, high=0.1)
    noise: NoiseMode = setting("where privacy noise is drawn from", "seed")
    seed: int = setting("seed of timesteps, noise and release", 0, low=0)
    scores: Path = target("noisy scores (.csv)")
    spend: Path = target("spend.json")


@dataclass(frozen=True, kw_only=True)
class CompareScores(SaliencyConfig, ComputeConfig):
    """Options of compare-scores."""

    dataset: Path = source("dataset.json")
    model: Path = source("model.json")
    candidate_table: Path = source("candidates.csv")
    latents: Path = source("latents.safetensors")
    candidates: Candidates = setting("matrices that are scored", "attention")
    score: tuple[ScoreName, ...] = setting("scores to compare", ("energy", "norm", "vote", "share"))
    sigma_s: tuple[float, ...] = setting("noise multipliers", (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0), above=0)
    ratio: float = setting("fraction of matrices whose selection is compared", 0.3, above=0, high=1)
    draws: int = setting("draws of the noise", 20, low=1)
    seed: int = setting("seed of timesteps and noise", 0, low=0)
    out: Path = target("saliency_agreement.csv")


@dataclass(frozen=True, kw_only=True)
class SelectMatrices:
    """Options of select-matrices."""

    plan: Path = source("plan.json")
    candidate_table: Path = source("candidates.csv")
    scores: Path | None = source("noisy scores, for methods that select", None)
    out: Path = target("selection.csv")


@dataclass(frozen=True, kw_only=True)
class Finetune(FinetuneConfig, ComputeConfig):
    """Options of finetune."""

    plan: Path = source("plan.json")
    model: Path = source("model.json")
    selection: Path = source("selection.csv")
    latents: Path = source("latents.safetensors")
    weights: Path = target("trained parameters (.safetensors)")
    training_log: Path = target("per-step log (.csv)")
    spend: Path = target("spend.json")


@dataclass(frozen=True, kw_only=True)
class AuditPrivacy:
    """Options of audit-privacy."""

    plan: Path = source("plan.json")
    spends: tuple[Path, ...] = source("spend records of the run", ())
    out: Path = target("ledger.json")


@dataclass(frozen=True, kw_only=True)
class Sample(SamplingConfig, ComputeConfig):
    """Options of sample."""

    ledger: Path = source("ledger.json; without a passed audit nothing is sampled")
    dataset: Path = source("dataset.json")
    model: Path = source("model.json")
    latents: Path = source("latents.safetensors, for its prompt embeddings only")
    selection: Path | None = source("selection.csv, for methods that train", None)
    weights: Path | None = source("trained parameters, for methods that train", None)
    archive: Path = target("synthetic images and labels (.npz)")
    lora_rank: int = setting("LoRA rank of the weights", 4, low=1)
    lora_alpha: float = setting("LoRA alpha of the weights", 4.0, above=0)
    contact_sheet: Path = target("contact sheet (.png)")
    timing: Path = target("seconds and peak memory (.json)")


@dataclass(frozen=True, kw_only=True)
class ReferenceFeatures:
    """Options of reference-features."""

    archive: Path = source("dataset.npz")
    dataset: Path = source("dataset.json")
    protocol: str = setting("key of the protocol in the registry")
    registry: Path = source("registry of protocols", Path("config/protocols.yaml"))
    seed: int = setting("seed of the classifiers", 0, low=0)
    threads: int = setting("CPU threads", 1, unit="threads", low=1)
    device: typing.Literal["cpu", "cuda"] = setting("where tensors live", "cpu")
    features: Path = target("features of the real training images (.npz)")
    ceiling: Path = target("utility of classifiers trained on real images (.json)")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Options of evaluate."""

    what: tuple[typing.Literal["fidelity", "utility"], ...] = setting("what to compute", ("fidelity", "utility"))
    synthetic: Path = source("synthetic images (.npz)")
    archive: Path = source("dataset.npz")
    dataset: Path = source("dataset.json")
    features: Path = source("features of the real training images (.npz)")
    protocol: str = setting("key of the protocol in the registry")
    registry: Path = source("registry of protocols", Path("config/protocols.yaml"))
    seed: int = setting("seed of the classifiers", 0, low=0)
    threads: int = setting("CPU threads", 1, unit="threads", low=1)
    device: typing.Literal["cpu", "cuda"] = setting("where tensors live", "cpu")
    fidelity: Path | None = target("fidelity.json", None)
    utility: Path | None = target("utility.json", None)


@dataclass(frozen=True, kw_only=True)
class CollectMetrics:
    """Options of collect-metrics."""

    plan: Path = source("plan.json")
    ledger: Path = source("ledger.json")
    candidate_table: Path = source("candidates.csv")
    selection: Path | None = source("selection.csv, for methods that train", None)
    spend: Path | None = source("spend.json of DP-SGD, for methods that train", None)
    training_log: Path | None = source("per-step log, for methods that train", None)
    timing: Path = source("seconds and peak memory of sampling")
    fidelity: Path = source("fidelity.json")
    utility: Path = source("utility.json")
    ceiling: Path = source("utility of classifiers trained on real images")
    out: Path = target("metrics.json")


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """Options of aggregate."""

    metrics: tuple[Path, ...] = source("metrics.json of every run")
    runs: Path = target("one row per run (.csv)")
    summary: Path = target("mean, spread and interval over seeds (.csv)")
    selections: Path = target("one row per run and candidate matrix (.csv)")


@dataclass(frozen=True, kw_only=True)
class DrawFigures:
    """Options of draw-figures."""

    results: Path = source("folder of one config's results, with tables/ in it")
    figures: Path = target("folder for figures; each as .pdf, .png and the .csv it was drawn from")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Options of bench."""

    architecture: typing.Literal["public-mini", "sd-v1-5"] = setting(
        "packaged weights at 32x32, or Stable Diffusion v1-5's UNet with random weights at 256x256", "public-mini"
    )
    batch: int = setting("images per micro-batch", 64, unit="images", low=1)
    repeats: int = setting("pairs of timings per comparison", 9, low=1)
    threads: int = setting("CPU threads", 2, unit="threads", low=1)
    device: typing.Literal["cpu", "cuda"] = setting("where to run", "cpu")
    out: Path = target("one row per comparison (.csv)")


@dataclass(frozen=True)
class Command:
    """A sub-command: its name, the function that it calls (``module:function``), its options, one line of help."""

    name: str
    entry: str
    options: type
    help: str


_ROWS = (
    Command(
        "prepare-dataset", "dpsapf.datasets.prepare:prepare_dataset", PrepareDataset, "load, check and split a sensitive dataset"
    ),
    Command(
        "prepare-public-model",
        "dpsapf.public_models.prepare:prepare_public_model",
        PreparePublicModel,
        "resolve a public model, list its candidate matrices",
    ),
    Command(
        "pretrain-public-model",
        "dpsapf.public_models.pretrain:pretrain_public_model",
        PretrainPublicModel,
        "train public-mini on public images",
    ),
    Command(
        "encode-dataset",
        "dpsapf.public_models.encode:encode_dataset",
        EncodeDataset,
        "VAE latents and prompt embeddings, once per dataset and model",
    ),
    Command(
        "plan-privacy", "dpsapf.privacy.plan:plan_privacy", PlanPrivacy, "plan every release of a run and calibrate its noise"
    ),
    Command(
        "score-saliency",
        "dpsapf.saliency.score:score_saliency",
        ScoreSaliency,
        "release noisy saliency scores of the candidate matrices",
    ),
    Command(
        "compare-scores",
        "dpsapf.saliency.agreement:compare_scores",
        CompareScores,
        "how far noise changes each score's order (outside the guarantee)",
    ),
    Command(
        "select-matrices",
        "dpsapf.saliency.select:select_matrices",
        SelectMatrices,
        "select matrices from released scores (post-processing)",
    ),
    Command("finetune", "dpsapf.finetune.train:finetune", Finetune, "fine-tune with DP-SGD; resumes from its checkpoint"),
    Command(
        "audit-privacy",
        "dpsapf.privacy.audit:audit_privacy",
        AuditPrivacy,
        "compose what was released; fail if it exceeds the plan",
    ),
    Command("sample", "dpsapf.sampling.sample:sample", Sample, "draw synthetic images from an audited run"),
    Command(
        "reference-features",
        "dpsapf.evaluation.reference:reference_features",
        ReferenceFeatures,
        "features of real images; classifiers trained on real images",
    ),
    Command(
        "evaluate",
        "dpsapf.evaluation.evaluate:evaluate",
        Evaluate,
        "fidelity and utility of synthetic images (outside the guarantee)",
    ),
    Command("collect-metrics", "dpsapf.aggregation.collect:collect_metrics", CollectMetrics, "gather one run's records"),
    Command("aggregate", "dpsapf.aggregation.aggregate:aggregate", Aggregate, "tidy tables over all runs"),
    Command("bench", "dpsapf.bench:bench", Bench, "time saliency and DP-SGD against plain training; needs no data"),
    Command("draw-figures", "paper_figures.draw:draw_figures", DrawFigures, "tables and figures from the tidy tables"),
)
COMMANDS: dict[str, Command] = {row.name: row for row in _ROWS}
