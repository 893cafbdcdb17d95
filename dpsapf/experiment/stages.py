"""The options of every stage, without a heavy import: what it reads, what sets it, what it writes."""

import typing
import warnings
from pathlib import Path

from pydantic import Field

from dpsapf.experiment.fields import source, target
from dpsapf.experiment.methods import (
    Candidates,
    Level,
    MechanismName,
    NoiseMode,
    Positive,
    Ratio,
    ScoreName,
    Seed,
    Unit,
)
from dpsapf.experiment.runs import Name, Treatment
from dpsapf.experiment.settings import (
    AuditConfig,
    ComputeConfig,
    EvolutionConfig,
    FinetuneConfig,
    PrecisionConfig,
    PrivacyConfig,
    SaliencyConfig,
    SamplingConfig,
    UpdateConfig,
    VariationConfig,
)
from dpsapf.support.checked import Checked


class FetchDataset(Checked):
    """Download a published dataset's files, or say which to put where."""

    name: str = Field(description="key of the dataset in the registry")
    registry: Path = source("registry of datasets", Path("config/datasets.yaml"))
    out: Path | None = target("list of what is there (.txt)", None)


class PrepareDataset(Checked):
    """Load, check and split a sensitive dataset."""

    name: str = Field(description="key of the dataset in the registry")
    registry: Path = source("registry of datasets", Path("config/datasets.yaml"))
    archive: Path = target("images, labels and splits (.safetensors)")
    record: Path = target("dataset.json")
    preview: Path = target("contact sheet of training images (.png)")
    threads: int = Field(1, description="CPU threads that decode images [threads]", ge=1)


class FetchPublicModel(Checked):
    """Download a public model from the hub, or say where to put it."""

    name: str = Field(description="key of the model in the registry")
    registry: Path = source("registry of public models", Path("config/public_models.yaml"))
    out: Path | None = target("list of what is there (.txt)", None)


class PreparePublicModel(Checked):
    """Resolve a public model, list its candidate matrices."""

    name: str = Field(description="key of the model in the registry")
    registry: Path = source("registry of public models", Path("config/public_models.yaml"))
    record: Path = target("model.json")
    candidates: Path = target("candidate matrices (.csv)")


class PretrainPublicModel(Checked):
    """Train public-mini on public images."""

    out: Path = target("folder of the public model, in diffusers layout; must not exist", kind="folder")
    feature_network: Path = target("weights of the demo protocol's feature network (.safetensors)")
    images: int = Field(150000, description="public images drawn [images]", ge=64)
    autoencoder_steps: int = Field(5000, description="steps of the VAE [steps]", ge=1)
    unet_steps: int = Field(20000, description="steps of UNet and text encoder [steps]", ge=1)
    feature_steps: int = Field(2500, description="steps of the feature network [steps]", ge=1)
    minutes: float | None = Field(
        None, description="end UNet and text encoder after this time, if steps are left [minutes]", gt=0
    )
    batch: int = Field(512, description="images per step [images]", ge=2)
    learning_rate: float = Field(1e-3, description="peak AdamW learning rate", gt=0)
    seed: Seed = Field(0, description="seed")
    device: typing.Literal["cpu", "cuda"] = Field("cpu", description="where to train")
    threads: int = Field(2, description="CPU threads and drawing processes [threads]", ge=1)


class EncodeDataset(ComputeConfig):
    """VAE latents of the training images, once per dataset and model."""

    archive: Path = source("dataset.safetensors")
    dataset: Path = source("dataset.json")
    model: Path = source("model.json")
    out: Path = target("latents (.safetensors)")


class EmbedPrompts(ComputeConfig):
    """Embeddings of a dataset's prompts, once per dataset and model."""

    dataset: Path = source("dataset.json, for its prompts only")
    model: Path = source("model.json")
    out: Path = target("prompt embeddings (.safetensors)")


class PlanPrivacy(Treatment, PrivacyConfig):
    """Plan every release of a run and calibrate its noise."""

    dataset: Path = source("dataset.json")
    archive: Path | None = source(
        "dataset.safetensors, with noise system: by its images the record of spends knows what was spent on them", None
    )
    candidate_table: Path = source("candidates.csv")
    proxy_dataset: Path | None = source("dataset.json of the other dataset whose scores choose, for method proxy", None)
    proxy_archive: Path | None = source("its dataset.safetensors, with noise system: to see that no image is in both", None)
    gradients: Path | None = source(
        "gradients.csv, where clipping_norm of the saliency release is auto; and to tell how much of a selection noise leaves",
        None,
    )
    saliency: SaliencyConfig = Field(SaliencyConfig(), description="the saliency release")
    evolution: EvolutionConfig = Field(EvolutionConfig(), description="methods pe and aug-pe")
    out: Path = target("plan.json")
    calibrations: Path | None = target("folder of noise multipliers, which plans of equal releases share", None, kind="folder")


class ScoreSaliency(SaliencyConfig, PrecisionConfig, ComputeConfig):
    """Release noisy saliency scores of the candidate matrices."""

    dataset: Path = source("dataset.json")
    model: Path = source("model.json")
    candidate_table: Path = source("candidates.csv")
    latents: Path = source("latents.safetensors")
    prompts: Path = source("prompts.safetensors")
    candidates: Candidates = Field("attention", description="matrices that are scored")
    score: ScoreName = Field("energy", description="what an image contributes")
    mechanism: MechanismName | None = Field(
        None, description="how the scores are released; omitted: exactly, without a guarantee"
    )
    sigma_s: Positive | None = Field(None, description="noise multiplier, or that of equal zCDP cost; given with a mechanism")
    plan: Path | None = source("plan.json of a run that uses the scores: says C_s and sigma_s where they are auto", None)
    level: Level | None = Field(None, description="what is ranked; for exponential and ptr")
    ratio: Ratio | None = Field(None, description="fraction that is kept; for exponential and ptr")
    delta: float | None = Field(None, description="target delta of the run; omitted: 1/(N ln N)", gt=0, le=0.1)
    unit: Unit = Field("image", description="what is protected; as in the plans of the runs that use the scores")
    noise: NoiseMode = Field(description="where privacy noise is drawn from; as in the plans of the runs that use the scores")
    seed: Seed = Field(0, description="seed of timesteps, noise and release")
    scores: Path = target("noisy scores (.csv)")
    spend: Path = target("spend.json")
    private: Path = target("private.json: what was measured; never published")


class CompareScores(SaliencyConfig, ComputeConfig):
    """How far noise changes each score's order (outside the guarantee)."""

    clipping_norm: Positive = Field(
        1.0, description="C_s, bound on one image's gradient over all candidates; scores energy, norm"
    )
    dataset: Path = source("dataset.json")
    model: Path = source("model.json")
    candidate_table: Path = source("candidates.csv")
    latents: Path = source("latents.safetensors")
    prompts: Path = source("prompts.safetensors")
    candidates: Candidates = Field("attention", description="matrices that are scored")
    score: tuple[ScoreName, ...] = Field(("energy", "norm", "vote", "share", "signal"), description="scores to compare")
    sigma_s: tuple[Positive, ...] = Field((1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0), description="noise multipliers")
    ratio: float = Field(0.3, description="fraction of matrices whose selection is compared", gt=0, le=1)
    draws: int = Field(20, description="draws of the noise", ge=1)
    seed: Seed = Field(0, description="seed of timesteps and noise")
    out: Path = target("saliency_agreement.csv")


class CompareRankings(SaliencyConfig, ComputeConfig):
    """What else than noise moves the order of each score (outside the guarantee)."""

    clipping_norm: Positive = Field(
        1.0, description="C_s, bound on one image's gradient over all candidates; scores energy, norm"
    )
    dataset: Path = source("dataset.json")
    model: Path = source("model.json")
    candidate_table: Path = source("candidates.csv")
    latents: Path = source("latents.safetensors")
    prompts: Path = source("prompts.safetensors")
    candidates: Candidates = Field("attention", description="matrices that are scored")
    score: tuple[ScoreName, ...] = Field(("energy", "norm", "vote", "share", "signal"), description="scores to compare")
    sigma_s: Positive = Field(10.0, description="noise multiplier of the noisy orders")
    ratio: float = Field(0.3, description="fraction of matrices whose selection is compared", gt=0, le=1)
    clipping_factors: tuple[Positive, ...] = Field((0.1, 0.3, 1.0, 3.0, 10.0), description="bounds, over the config's")
    images: tuple[Ratio, ...] = Field((0.1, 0.3, 1.0), description="shares of the images")
    draws: int = Field(20, description="draws of the noise", ge=1)
    repeats: int = Field(3, description="draws of timesteps and diffusion noise", ge=2)
    seed: Seed = Field(0, description="seed of timesteps and noise")
    out: Path = target("ranking_stability.csv")


class MeasureFragility(ComputeConfig):
    """Measure what noise in each matrix of the public model breaks."""

    dataset: Path = source("dataset.json, for its prompts only")
    model: Path = source("model.json")
    candidate_table: Path = source("candidates.csv")
    candidates: Candidates = Field("attention", description="matrices that are measured")
    lora_rank: int = Field(4, description="LoRA rank", ge=1)
    lora_alpha: float = Field(4.0, description="LoRA alpha; the update is scaled by alpha/rank", gt=0)
    samples: int = Field(64, description="own samples in a draw [images]", ge=2)
    draws: int = Field(4, description="draws of samples, timesteps and noise, whose spread is the error", ge=2)
    deviation: float = Field(0.1, description="standard deviation of the noise in LoRA's B", gt=0)
    seed: Seed = Field(0, description="seed of samples and noise")
    out: Path = target("fragility.csv")


class MeasureGradients(ComputeConfig):
    """Measure gradient norms of the public model's own samples."""

    dataset: Path = source("dataset.json, for its prompts only")
    model: Path = source("model.json")
    candidate_table: Path = source("candidates.csv")
    candidates: Candidates = Field("attention", description="matrices that are measured")
    samples: int = Field(64, description="own samples [images]", ge=2)
    draws: int = Field(4, description="timesteps and noises of each sample", ge=1)
    seed: Seed = Field(0, description="seed of samples, timesteps and noise")
    out: Path = target("gradients.csv")


class SelectMatrices(UpdateConfig):
    """Select matrices from released scores (post-processing)."""

    plan: Path = source("plan.json")
    candidate_table: Path = source("candidates.csv")
    scores: Path | None = source("scores, for methods that select by them", None)
    fragility: Path | None = source("fragility.csv, for rules noise-aware and noise-budget, proxy fragility, and rank auto", None)
    learning_rate: float | None = Field(
        None, description="peak learning rate if the run names none; rule noise-budget, rank auto", gt=0
    )
    out: Path = target("selection.csv")
    record: Path = target("selection.json")


class Finetune(FinetuneConfig, PrecisionConfig, ComputeConfig):
    """Fine-tune with DP-SGD; resumes from its checkpoint."""

    plan: Path = source("plan.json")
    model: Path = source("model.json")
    selection: Path = source("selection.csv")
    latents: Path = source("latents.safetensors")
    prompts: Path = source("prompts.safetensors")
    fragility: Path | None = source("fragility.csv, for learning rate auto", None)
    weights: Path = target("trained parameters (.safetensors)")
    training_log: Path = target("per-step log (.csv); never published")
    spend: Path = target("spend.json")
    private: Path = target("private.json: what was measured; never published")


class Evolve(VariationConfig, SamplingConfig, PrecisionConfig, ComputeConfig):
    """Let images of the public model evolve by noisy votes of the private ones."""

    plan: Path = source("plan.json")
    model: Path = source("model.json")
    archive: Path = source("dataset.safetensors")
    dataset: Path = source("dataset.json")
    protocol: str = Field(description="key of the protocol in the registry; its feature network says which image is nearest")
    registry: Path = source("registry of protocols", Path("config/protocols.yaml"))
    population: Path = target("noisy votes, images and labels (.safetensors); published only by publish-population")
    spend: Path = target("spend.json")
    private: Path = target("private.json: what was measured; never published")


class AuditPrivacy(AuditConfig):
    """Compose what was released; fail if it, or what leaves, exceeds the plan."""

    plan: Path = source("plan.json")
    spends: tuple[Path, ...] = source("spend records of the run", ())
    privates: tuple[Path, ...] = source("private.json of each spend record, in their order", ())
    scores: Path | None = source("scores.csv, for methods that select", None)
    proxy_spend: Path | None = source("spend.json of another dataset's scores, for method proxy", None)
    selection: Path | None = source("selection.csv, for methods that train", None)
    selection_record: Path | None = source("selection.json, for methods that train", None)
    weights: Path | None = source("trained parameters, for methods that train", None)
    population: Path | None = source("noisy votes and images, for methods that evolve", None)
    model: Path | None = source("model.json, for methods that train", None)
    candidate_table: Path | None = source("candidates.csv, for methods that train", None)
    fragility: Path | None = source("fragility.csv, if the selection read it", None)
    dataset: Path | None = source("dataset.json, for methods that evolve", None)
    out: Path = target("ledger.json")


class ComposeReleases(Checked):
    """What several released runs on one dataset cost together."""

    records: tuple[Path, ...] = source("ledger.json of every released run, and spend records of refusals and of further counts")
    delta: float = Field(description="delta at which epsilon is told", gt=0, lt=1)
    out: Path = target("composition.json")


class SpendAgain(Checked):
    """Let a run be released once more; what it spent stays on record."""

    run: str = Field(description="id of the run, or of scores that runs share, as the refusal names it")


class Sample(SamplingConfig, PrecisionConfig, ComputeConfig):
    """Draw synthetic images from an audited run."""

    ledger: Path = source("ledger.json; without a passed audit nothing is sampled")
    dataset: Path = source("dataset.json")
    model: Path = source("model.json")
    prompts: Path = source("prompts.safetensors")
    selection: Path | None = source("selection.csv, for methods that train", None)
    weights: Path | None = source("trained parameters, for methods that train", None)
    archive: Path = target("synthetic images and labels (.npz)")
    contact_sheet: Path = target("contact sheet (.png)")
    timing: Path = target("seconds and peak memory (.json)")


class PublishPopulation(Checked):
    """Publish the evolved images of an audited run."""

    ledger: Path = source("ledger.json; without a passed audit nothing is published")
    dataset: Path = source("dataset.json")
    population: Path = source("noisy votes, images and labels")
    archive: Path = target("synthetic images and labels (.npz)")
    contact_sheet: Path = target("contact sheet (.png)")
    timing: Path = target("seconds and peak memory (.json)")


class FetchEvaluationWeights(Checked):
    """Download the weights of a protocol's feature network, or say where to put them."""

    protocol: str = Field(description="key of the protocol in the registry")
    registry: Path = source("registry of protocols", Path("config/protocols.yaml"))
    out: Path | None = target("list of what is there (.txt)", None)


class ImportImages(Checked):
    """Take in images that another group made; nothing of them is audited."""

    images: Path = source("folder of class folders, .zip of it, or .npz; see docs/sharing.md", kind="file or folder")
    dataset: Path = source("dataset.json")
    external: Name = Field(description="name of the method, as in the config")
    label: str = Field(description="what tables and figures call it, in one line", pattern=r"^\S.*$")
    public_model: str = Field(description="public model whose runs it stands beside in tables")
    epsilon: Positive | None = Field(None, description="epsilon that its authors claim; omitted: none claimed")
    delta: float | None = Field(None, description="delta that its authors claim", gt=0, le=0.1)
    seed: Seed = Field(0, description="seed of their run")
    threads: int = Field(1, description="CPU threads that decode images [threads]", ge=1)
    archive: Path = target("the images and labels (.npz)")
    contact_sheet: Path = target("contact sheet (.png)")
    record: Path = target("external.json")


class ReferenceFeatures(Checked):
    """Features of real images; classifiers trained on real images."""

    archive: Path = source("dataset.safetensors")
    dataset: Path = source("dataset.json")
    protocol: str = Field(description="key of the protocol in the registry")
    registry: Path = source("registry of protocols", Path("config/protocols.yaml"))
    seed: Seed = Field(0, description="seed of the classifiers")
    threads: int = Field(1, description="CPU threads [threads]", ge=1)
    device: typing.Literal["cpu", "cuda"] = Field("cpu", description="where tensors live")
    features: Path = target("features of real images, their moments and radii (.safetensors)")
    ceiling: Path = target("utility of classifiers trained on real images (.json)")


class Evaluate(Checked):
    """Fidelity and utility of synthetic images (outside the guarantee)."""

    what: tuple[typing.Literal["fidelity", "utility"], ...] = Field(("fidelity", "utility"), description="what to compute")
    synthetic: Path = source("synthetic images: .npz, or a folder of class folders, or a .zip of it", kind="file or folder")
    archive: Path = source("dataset.safetensors")
    dataset: Path = source("dataset.json")
    features: Path = source("features of real images, their moments and radii (.safetensors)")
    protocol: str = Field(description="key of the protocol in the registry")
    registry: Path = source("registry of protocols", Path("config/protocols.yaml"))
    seed: Seed = Field(0, description="seed of the classifiers")
    threads: int = Field(1, description="CPU threads [threads]", ge=1)
    device: typing.Literal["cpu", "cuda"] = Field("cpu", description="where tensors live")
    fidelity: Path | None = target("fidelity.json", None)
    utility: Path | None = target("utility.json", None)
    predictions: Path | None = target("private*.csv: what classifiers say of each test image; never published", None)


class Diagnose(Checked):
    """Look for copies of training images, guess membership (outside the guarantee)."""

    synthetic: Path = source("synthetic images (.npz)")
    archive: Path = source("dataset.safetensors")
    protocol: str = Field(description="key of the protocol in the registry; for its feature network")
    registry: Path = source("registry of protocols", Path("config/protocols.yaml"))
    pairs: int = Field(12, description="nearest pairs that are drawn [pairs]", ge=1)
    draws: int = Field(200, description="draws of the bootstrap intervals", ge=20)
    seed: Seed = Field(0, description="seed of the bootstrap, and of which images are compared")
    threads: int = Field(1, description="CPU threads [threads]", ge=1)
    device: typing.Literal["cpu", "cuda"] = Field("cpu", description="where tensors live")
    out: Path = target("diagnostics.json")
    sheet: Path = target("private*.png: synthetic images beside the nearest training images; never published")


class CollectMetrics(Checked):
    """Gather one run's records."""

    plan: Path = source("plan.json")
    ledger: Path = source("ledger.json")
    candidate_table: Path = source("candidates.csv")
    selection: Path | None = source("selection.csv, for methods that train", None)
    spend: Path | None = source("spend.json of DP-SGD or of votes, for methods that train or evolve", None)
    private: Path | None = source("private.json of DP-SGD or of votes, for methods that train or evolve", None)
    training_log: Path | None = source("per-step log, for methods that train", None)
    weights: Path | None = source("trained parameters; with fragilities, for their header", None)
    fragility: Path | None = source("fragility.csv, to predict what noise breaks", None)
    timing: Path = source("seconds and peak memory of sampling")
    fidelity: Path = source("fidelity.json")
    utility: Path = source("utility.json")
    ceiling: Path = source("utility of classifiers trained on real images")
    out: Path = target("metrics.json")


class CollectExternal(Checked):
    """Gather the records of images that another group made."""

    external: Path = source("external.json")
    fidelity: Path = source("fidelity.json")
    utility: Path = source("utility.json")
    ceiling: Path = source("utility of classifiers trained on real images")
    out: Path = target("metrics.json")


class Aggregate(Checked):
    """Tidy tables over all runs."""

    metrics: tuple[Path, ...] = source("metrics.json of every run")
    configfile: Path | None = source("config whose runs without metrics become rows that say so; omitted: none", None)
    runs: Path = target("one row per run (.csv)")
    summary: Path = target("mean, spread and interval over seeds (.csv)")
    selections: Path = target("one row per run and candidate matrix (.csv)")


class Merge(Checked):
    """Join results of several machines: one protocol, every run once."""

    results: tuple[Path, ...] = source("folders of results, with runs/ in them; two or more", kind="folder")
    out: Path = target("folder for the joined results; must not exist", kind="folder")


class Check(Checked):
    """Verify a folder of results; a line for each finding, and nothing is changed."""

    results: Path = source("folder of one config's results, or of merged ones", kind="folder")
    configfile: Path | None = source("the config, to find runs that are missing", None)


class DrawFigures(Checked):
    """Tables and figures from the tidy tables."""

    results: Path = source("folder of one config's results, with tables/ in it", kind="folder")
    figures: Path = target("folder for figures; each as .pdf, .png and the .csv it was drawn from", kind="folder")


class WriteReport(Checked):
    """One HTML page of a results folder, which works offline."""

    results: Path = source("folder of one config's results, with tables/ in it", kind="folder")
    configfile: Path | None = source("the config, for its studies; omitted: a section per dataset", None)
    captions: Path = source("captions of figures (.rst, a template)", Path("workflow/report/figure.rst"))
    report: Path = target("the page (.html)")


warnings.filterwarnings("ignore", 'Field name "register" in "Release"')  # that is a method of pydantic's metaclass, too


class Release(Checked):
    """Publish a run's images with a datasheet and a privacy statement."""

    run: str = Field(
        description="id of the run in --results, or the path of its folder, results/NAME/runs/RUN; --run may be left out"
    )
    results: Path | None = source("results folder of the run's config; omitted: RUN is a path", None, kind="folder")
    hyperparameters: typing.Literal["public", "paper", "accounted"] = Field(
        description="how they were chosen; public: on other, public images; paper: as published, before the private images were "
        "seen; accounted: by what other runs on them released, all of which are counted, never by metrics computed on them"
    )
    compose: tuple[Path, ...] = source("ledger.json and spend records of other runs on the same images, to be counted", ())
    register: Path | None = target(
        "what was published of these images so far (.jsonl); omitted: results/NAME/DATASET.releases.jsonl", None
    )
    weights: bool = Field(False, description="publish the trained parameters, too")
    out: Path = target("folder to publish; must not exist", kind="folder")


class CompareWithPaper(Checked):
    """Verdicts: which of the paper's claims some results reproduce."""

    results: tuple[Path, ...] = source("results folders, each of one config, with tables/ in it", kind="folder")
    out: Path = target("verdicts, claim by claim (.csv); for a reader the same as .md beside it")


class Estimate(Checked):
    """What a config would cost: jobs, GPU-hours, disk, money."""

    configfile: Path = source("the config")
    tflops: float | None = Field(
        None, description="what one GPU does in practice; omitted: the config's resources.tflops [TFLOP/s]", gt=0
    )
    price: float | None = Field(None, description="of an hour of a GPU, in any currency", ge=0)
    records: Path | None = source("results folder whose measured seconds a job count instead of operations", None, kind="folder")
    out: Path | None = target("table (.csv)", None)


class Bench(PrecisionConfig):
    """Time saliency, DP-SGD and sampling against plain ones; no data."""

    comparisons: tuple[typing.Literal["saliency", "adapters", "full", "opacus", "logical-batches", "sampling"], ...] = Field(
        ("saliency", "adapters", "full", "opacus", "logical-batches", "sampling"), description="what is timed"
    )
    architecture: typing.Literal["public-mini", "sd-v1-5"] = Field(
        "public-mini", description="packaged weights at 32x32, or Stable Diffusion v1-5's UNet with random weights at 256x256"
    )
    batch: int = Field(64, description="images per micro-batch [images]", ge=1)
    logical_batch: int | None = Field(None, description="images of a training step; omitted: one micro-batch [images]", ge=1)
    repeats: int = Field(9, description="pairs of timings per comparison", ge=1)
    threads: int = Field(2, description="CPU threads [threads]", ge=1)
    device: typing.Literal["cpu", "cuda"] = Field("cpu", description="where to run")
    out: Path = target("one row per comparison (.csv)")
