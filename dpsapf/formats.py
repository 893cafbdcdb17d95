"""Every record that one stage leaves for another, and the names of columns and arrays.

JSON records are closed: `dpsapf.records` checks them on every write and read. Image archives are
``.npz`` files without pickles: ``images`` uint8 [N, H, W, 3] and ``labels`` int64 [N].
"""

import typing
from dataclasses import dataclass, field

from dpsapf.fields import setting
from dpsapf.runs import RunSpec

SPLITS = ("train", "validation", "test")

# selection.csv and candidates.csv, one row per candidate matrix
MATRIX = "matrix"  # dotted module name in the UNet
LAYER = "layer"  # dotted name of the module that holds it, e.g. an attention module
BLOCK = "block"  # e.g. down_blocks.0
PROJECTION = "projection"  # to_q, to_k, to_v or to_out.0; the module's own name if it is no attention projection
CANDIDATES = "candidates"  # smallest candidate set that has it: attention, attention+ffn or all-params
PARAMETERS = "parameters"  # entries of the matrix
LORA_PARAMETERS = "lora_parameters_per_rank"  # rows + columns of the matrix; a convolution's columns are inputs x kernel
SCORE = "noisy_score"  # released score; empty if nothing was released
SELECTED = "selected"  # True if the run trains on it

# runs.csv: one row per run, the scalar fields of Metrics under their own names, and of its dictionaries:
CLASSIFIER_PREFIX = "accuracy_of_"  # accuracy_of_<classifier>
SPENT_PREFIX = "spent_epsilon_"  # spent_epsilon_<accountant>

# summary.csv: one row per setting, over its seeds; of each metric <metric>_mean, <metric>_sd, <metric>_interval95
SPREAD_METRICS = ("accuracy", "fid", "kid", "precision", "recall")
SEEDS = "n"  # runs in the group
MEAN, SD, INTERVAL = "_mean", "_sd", "_interval95"  # half width of the 95 % t-interval; sd and interval empty if n = 1


# saliency_agreement.csv: one row per score, noise, ratio and draw of the noise; computed outside the guarantee
RANK_CORRELATION = "rank_correlation"  # Spearman's, of the noisy with the noiseless order
OVERLAP = "overlap"  # share of the noiseless top k that is in the noisy top k
AGREEMENT_COLUMNS = ("dataset", "public_model", "score", "sigma_s", "ratio", "seed", RANK_CORRELATION, OVERLAP)


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """What prepare-dataset made: dataset.json beside dataset.npz."""

    name: str
    loader: str
    source: str
    licence: str
    procedural: bool
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    resolution: int
    channels: int
    train: int
    validation: int
    test: int
    train_per_class: tuple[int, ...]
    sha256: str  # of dataset.npz
    provenance: dict


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """What prepare-public-model resolved: model.json."""

    name: str
    path: str  # folder in diffusers layout
    vae_path: str
    resolution: int
    licence: str
    sha256: str | None
    unet_parameters: int
    candidates: int
    provenance: dict


@dataclass(frozen=True, kw_only=True)
class Release:
    """One release of private information, under adding or removing one image.

    ``gaussian``: each step adds N(0, (noise_multiplier x sensitivity)^2) to a sum over a Poisson sample, in which one
    image's contribution has an L2 norm of at most ``sensitivity``; steps compose numerically.
    ``exponential``, ``ptr``: the whole release is (epsilon, delta)-DP; what amplification by sampling would save is
    not claimed. ``none``: exact, without any guarantee.
    """

    name: typing.Literal["saliency", "dp-sgd"]
    mechanism: typing.Literal["gaussian", "exponential", "ptr", "none"] = "gaussian"
    noise_multiplier: float | None = setting("gaussian: noise standard deviation over sensitivity", None, above=0)
    sensitivity: float | None = setting("bound on one image's contribution; null: unbounded", above=0)
    sampling_rate: float = setting("Poisson rate", above=0, high=1)
    steps: int = setting("releases made", low=1)
    epsilon: float | None = setting("exponential, ptr: epsilon of the whole release", None, above=0)
    delta: float | None = setting("exponential, ptr: delta of the whole release", None, above=0, high=1)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """plan.json: everything that a run will release, before any of it is computed."""

    run: RunSpec
    images: int  # N, training images; treated as public
    target_epsilon: float | None  # null: without a guarantee (epsilon infinite), or nothing is trained
    delta: float
    relation: str
    unit: str
    public: tuple[str, ...]  # what is treated as public
    clipping: str
    clipping_norm: float
    noise: str  # seed: reproducible; system: drawn from the operating system, no seed exists
    releases: tuple[Release, ...]
    planned_epsilon: dict[str, float]  # accountant -> epsilon
    selection_epsilon: float | None  # PLD epsilon of the saliency release alone
    dp_sgd_noise_alone: float | None  # noise multiplier that DP-SGD would need without the selection
    dataset_sha256: str
    provenance: dict


@dataclass(frozen=True, kw_only=True)
class Spend:
    """What a stage did release: scores/.../spend.json or runs/.../spend.json."""

    release: Release
    images: int
    dataset_sha256: str
    realised_batches: tuple[int, ...]  # images drawn at each step: private, never published with the weights
    digest: str  # SHA-256 of the released file
    trainable_parameters: int  # 0 for the saliency release
    seconds: float
    peak_memory_mb: float
    provenance: dict


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """ledger.json: the audit's verdict; exists only if the spend is within the target."""

    run: RunSpec
    target_epsilon: float | None
    delta: float
    relation: str
    unit: str
    noise: str
    releases: tuple[Release, ...]
    spent_epsilon: dict[str, float]  # accountant -> composed epsilon; empty without a guarantee
    weights_digest: str | None
    provenance: dict


@dataclass(frozen=True, kw_only=True)
class Timing:
    """timing.json: what sampling cost."""

    seconds: float
    peak_memory_mb: float


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """fidelity.json. Computed on private training images, outside the guarantee."""

    protocol: str
    fid: float
    kid: float
    precision: float
    recall: float
    synthetic_images: int
    real_images: int
    outside_the_guarantee: bool
    provenance: dict


@dataclass(frozen=True, kw_only=True)
class Utility:
    """utility.json. Tested on private test images, outside the guarantee."""

    protocol: str
    trained_on: typing.Literal["synthetic", "real"]
    accuracy: float  # mean over classifiers, in [0, 1]
    per_classifier: dict[str, float]
    train_images: int
    test_images: int
    outside_the_guarantee: bool
    provenance: dict


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """metrics.json: one run, complete."""

    run_id: str
    run: RunSpec
    protocol: str
    accuracy: float
    per_classifier: dict[str, float]
    fid: float
    kid: float
    precision: float
    recall: float
    ceiling_accuracy: float  # the same classifiers trained on real images
    target_epsilon: float | None
    delta: float | None
    spent_epsilon: dict[str, float]
    selection_epsilon: float | None  # PLD epsilon of the saliency release alone
    noise_multiplier: float | None
    noise_multiplier_without_selection: float | None  # what DP-SGD alone would have needed
    trainable_parameters: int
    selected_matrices: int
    finetune_seconds: float | None
    sample_seconds: float
    peak_memory_mb: float
    outside_the_guarantee: tuple[str, ...] = field(
        default=("accuracy", "per_classifier", "fid", "kid", "precision", "recall", "ceiling_accuracy")
    )
