"""Every JSON record that one stage leaves for another; `dpsapf.support.records` writes and reads them."""

import typing

from pydantic import Field, model_validator

from dpsapf.experiment.columns import FIDELITY
from dpsapf.experiment.methods import Adapter, NoiseMode, Unit
from dpsapf.experiment.registries import ModelSelection
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.settings import AuditConfig, UpdateConfig
from dpsapf.support.checked import Checked, gone
from dpsapf.support.names import Composed
from dpsapf.support.provenance import Provenance

Claim = typing.Literal["claimed, not audited by this suite"]  # what the epsilon of another group's images is
CLAIMED: Claim = "claimed, not audited by this suite"


class DatasetRecord(Checked):
    """What prepare-dataset made: dataset.json beside dataset.safetensors."""

    name: str
    loader: str
    source: str
    licence: str
    procedural: bool
    classes: tuple[Composed, ...]
    prompts: tuple[str, ...]
    resolution: int
    channels: int
    train: int
    validation: int
    test: int
    users: int | None = None  # persons that the training images are of; null: not told
    train_per_class: tuple[int, ...]
    id: str  # SHA-256 of dataset.safetensors, which holds 32 secret bytes: says nothing to whoever lacks the file
    provenance: Provenance


class ModelRecord(Checked):
    """What prepare-public-model resolved: model.json."""

    name: str
    family: str  # a key of dpsapf.public_models.families.FAMILIES
    path: str  # folder in diffusers layout; package:NAME: that of a packaged model, wherever the checkout lies
    vae_path: str
    resolution: int
    licence: str
    sha256: str | None
    denoiser_parameters: int
    candidates: int
    hub_id: str | None = None  # repository on the hub that it was downloaded from; null: a local or packaged folder
    revision: str | None = None  # commit of that repository
    vae_hub_id: str | None = None  # likewise of a VAE that replaces the model's own
    vae_revision: str | None = None
    provenance: Provenance


class Release(Checked):
    """One release of private information, under zeroing one unit out: N stays, the image (or the user) adds nothing.

    ``gaussian``: each step adds N(0, (noise_multiplier x sensitivity)^2) to a sum over a Poisson sample, in which one
    unit's contribution has an L2 norm of at most ``sensitivity``; steps compose numerically.
    ``exponential``, ``ptr``: the whole release is (epsilon, delta)-DP; what amplification by sampling would save is
    not claimed. ``none``: exact, without any guarantee.
    """

    name: typing.Literal["saliency", "dp-sgd", "pe-histogram"]
    mechanism: typing.Literal["gaussian", "exponential", "ptr", "none"] = "gaussian"
    noise_multiplier: float | None = Field(None, description="gaussian: noise standard deviation over sensitivity", gt=0)
    sensitivity: float | None = Field(description="bound on one unit's contribution; null: unbounded", gt=0)
    sampling_rate: float = Field(description="Poisson rate", gt=0, le=1)
    steps: int = Field(description="releases made", ge=1)
    noise: NoiseMode | None = Field(None, description="where the noise came from; null: no noise")
    epsilon: float | None = Field(None, description="exponential, ptr: epsilon of the whole release", gt=0)
    delta: float | None = Field(None, description="exponential, ptr: delta of the whole release", gt=0, le=1)


class Plan(Checked):
    """plan.json: everything that a run will release, before any of it is computed."""

    run: RunSpec
    unit: Unit  # what is protected: an image, or all images of a user
    population: int  # N, training images or users; treated as public
    target_epsilon: float | None  # null: without a guarantee (epsilon infinite), or nothing is trained
    without_guarantee: str | None = None  # why there is none, though DP-SGD has the noise of an epsilon; null: see above
    proxy_id: str | None = None  # of the other dataset, taken as public, whose scores choose; null: none
    delta: float
    relation: str
    public: tuple[str, ...]  # what is treated as public
    clipping: str
    clipping_norm: float
    noise: NoiseMode  # seed: reproducible; system: drawn from the operating system, no seed exists
    prior: tuple[Release, ...] = ()  # earlier releases of the same dataset that the target has to hold, too
    prior_keys: tuple[str, ...] = ()  # of each, the digest by which it is known again; empty: not told
    releases: tuple[Release, ...]
    reserved: tuple[()] = gone(())
    planned_epsilon: dict[str, float]  # accountant -> epsilon
    spends_less: str | None = None  # why clearly less than the target is planned; null: it is nearly all
    selection_epsilon: float | None  # PLD epsilon of the saliency release alone
    saliency_clipping_norm: float | None = None  # C_s of the saliency release; null: it has none, or no noise
    selection_kept: str | None = None  # what noise is expected to leave of the selection, by public samples; null: not told
    dp_sgd_noise_alone: float | None  # noise multiplier that DP-SGD would need without the selection; null: nothing is trained
    dataset_id: str
    provenance: Provenance


class Calibration(Checked):
    """A file of cache/calibrations, named by what it was found for: see `dpsapf.privacy.calibrations`."""

    noise_multiplier: float = Field(gt=0)
    provenance: Provenance


class Measured(Checked):
    """private.json: what `dpsapf.privacy.meter` saw while a release was made. Private: never published.

    The audit reads it; `Spend` names its digest, which says nothing because of ``salt``.
    """

    salt: str
    batches: tuple[int, ...]  # units drawn at each step
    participation: tuple[int, ...]  # entry t: units that took part in t steps
    strangers: int  # images read, over all steps, of units that were not in the step's batch
    surplus: int  # units that were added up in a step beyond those in its batch; the most of all steps
    secret: NoiseMode | None  # where batches and pairs were drawn from: seed if one of them was; null: none was drawn
    largest_contribution: float  # largest L2 norm that one unit was seen to add to a sum
    not_additive: float  # largest difference of some units' sum from the sum of each alone, over the sum of their norms
    sizes: tuple[int, ...]  # noise draws of a step, by tensor
    squares: tuple[float, ...]  # of each step the sum of the squares of the standardised noise that was added
    parts: tuple[float, ...]  # likewise of each tensor, over all steps
    sums: tuple[float, ...]  # of each tensor, and of all together: squares of its noise's sum over its size, over all steps
    looked_at: int  # places of a step's noise that were looked at one by one
    cells: tuple[int, ...]  # of these, over all steps: numbers in each interval of equal chance
    sum_squares: float  # of these: squares of the sum of all steps' noise, over the number of steps
    repetition: float  # smallest chance, over all pairs of steps, of noise so alike, or so like the sum of all before
    seconds: float
    peak_memory_mb: float


class Spend(Checked):
    """What a stage did release, as measured: scores/.../spend.json or runs/.../spend.json."""

    subject: str  # id of the run, or of the scores that runs share
    release: Release
    unit: Unit
    population: int  # N, images or users that were drawn from
    dataset_id: str  # of the latents that were read
    made_from: dict[str, str]  # what was read -> SHA-256
    digest: str  # SHA-256 of the released file
    numbers: int  # numbers that a step, or the one release, gave noise to
    trainable_parameters: int  # 0 where nothing is trained
    private: str  # SHA-256 of private.json
    provenance: Provenance


class Selection(Checked):
    """selection.json: which scores a selection was made from."""

    run: RunSpec
    scores: str | None  # SHA-256 of scores.csv; null for methods that do not select by scores
    digest: str  # SHA-256 of selection.csv
    provenance: Provenance


class WeightsHeader(UpdateConfig):
    """In the metadata of weights.safetensors: with what they were trained, so that nobody has to know it to use them.

    Public, as the weights may be: a run's own values stand in the place of its config's.
    """

    adapter: Adapter | None  # null: the denoiser's own parameters were trained


class Ledger(Checked):
    """ledger.json: the audit's verdict; exists only if the spend is within the target."""

    run: RunSpec
    target_epsilon: float | None
    delta: float
    relation: str
    unit: Unit
    noise: NoiseMode
    not_for_release: str | None  # why nothing of this run may be published as private; null: it may
    dataset_id: str
    prior: tuple[Release, ...]
    prior_keys: tuple[str, ...] = ()  # as the plan's
    releases: tuple[Release, ...]
    reserved: tuple[()] = gone(())
    spent_epsilon: dict[str, float]  # accountant -> composed epsilon; empty without a guarantee
    digests: dict[str, str]  # model, latents, scores, selection, population -> SHA-256
    weights_digest: str | None
    held_against: AuditConfig | None = None  # settings that the files were held against; null: an older audit, or none
    provenance: Provenance

    @property
    def released_digest(self) -> str | None:
        """SHA-256 of what the run itself released: weights, or an evolved population; None if nothing."""
        return self.weights_digest or self.digests.get("population")


class Composition(Checked):
    """composition.json: several released runs of one dataset together."""

    dataset_id: str
    unit: Unit
    delta: float
    records: tuple[str, ...]
    releases: tuple[Release, ...]
    spent_epsilon: dict[str, float]  # accountant -> composed epsilon; an accountant without a finite one is left out
    provenance: Provenance


class Timing(Checked):
    """timing.json: what sampling, or publishing a population, cost, and which ledger allowed which images."""

    ledger: str  # SHA-256 of ledger.json
    samples: str  # SHA-256 of samples.npz
    seconds: float
    peak_memory_mb: float


class External(Checked):
    """external.json: images that another group made. Nothing of them was planned, trained or audited: there is no ledger."""

    run: RunSpec
    label: str  # what tables and figures call the method
    claim: Claim = CLAIMED
    claimed_epsilon: float | None
    claimed_delta: float | None
    images: int
    source: str  # SHA-256 of the folder, .zip or .npz that was taken in
    samples: str  # SHA-256 of samples.npz
    dataset_id: str  # of the dataset that says what classes and resolution they have
    provenance: Provenance


class Merged(Checked):
    """merged.json: results of several machines, joined."""

    protocol: str
    parts: tuple[str, ...]  # names of the folders that were joined, in their order
    runs: dict[str, str]  # id -> SHA-256 of its metrics.json
    differences: tuple[str, ...]  # what is not the same in all of them, and was told
    provenance: Provenance


class Fidelity(Checked):
    """fidelity.json. Computed on private images, outside the guarantee; what the protocol does not ask for is null."""

    protocol: str
    protocol_digest: str  # of the protocol's entry, so that a changed meaning is seen
    reference: str  # SHA-256 of the real images' features, which hold salt: says nothing to whoever lacks the dataset
    fid: float
    fid_low: float | None = None  # bootstrap interval of fid over the synthetic images, 95 %
    fid_high: float | None = None
    fid_infinity: float | None = None  # fid for infinitely many synthetic images
    kid: float
    kid_spread: float | None = None  # standard deviation over subsets
    precision: float
    recall: float
    density: float | None = None
    coverage: float | None = None
    inception_score: float | None = None
    inception_score_spread: float | None = None  # standard deviation over splits
    fld: float | None = None
    synthetic_images: int
    real_images: int
    test_images: int | None = None  # of fld
    outside_the_guarantee: bool
    provenance: Provenance


class ClassifierScores(Checked):
    """A classifier on the test images, averaged over its trainings, entry by entry."""

    accuracy: float  # in [0, 1]
    macro_f1: float  # mean of the classes' F1, over those with a test image
    calibration_error: float | None  # expected calibration error, 15 bins of equal width; null: it gives no probabilities
    per_class_accuracy: tuple[float | None, ...]  # null: the class has no test image
    confusion: tuple[tuple[float, ...], ...]  # images of a true class (row) that are predicted as a class (column)


class Utility(Checked):
    """utility.json. Tested on private test images, outside the guarantee."""

    protocol: str
    protocol_digest: str | None = None  # of the protocol's entry; the stages set it
    trained_on: typing.Literal["synthetic", "real"]
    selection: ModelSelection  # which state of each classifier was tested
    counts: None = gone(None)
    accuracy: float  # mean over classifiers, in [0, 1]
    macro_f1: float  # likewise
    calibration_error: float | None  # likewise, over those that give probabilities; null: none does
    per_classifier: dict[str, float]  # accuracy
    classifiers: dict[str, ClassifierScores]
    train_images: int
    test_images: int
    outside_the_guarantee: bool
    provenance: Provenance


class Metrics(Checked):
    """metrics.json: one run, complete."""

    run_id: str
    run: RunSpec
    protocol: str
    protocol_digest: str  # of the protocol's entry
    reference: str  # SHA-256 of the real images' features
    accuracy: float
    macro_f1: float  # mean over classifiers
    calibration_error: float | None  # likewise, over those that give probabilities
    per_classifier: dict[str, float]
    fid: float
    fid_low: float | None = None
    fid_high: float | None = None
    fid_infinity: float | None = None
    kid: float
    kid_spread: float | None = None
    precision: float
    recall: float
    density: float | None = None
    coverage: float | None = None
    inception_score: float | None = None
    inception_score_spread: float | None = None
    fld: float | None = None
    synthetic_images: int  # that fid and its like were computed from
    real_images: int
    ceiling_accuracy: float  # the same classifiers trained on real images
    target_epsilon: float | None
    delta: float | None
    spent_epsilon: dict[str, float]
    not_for_release: str | None
    selection_epsilon: float | None  # PLD epsilon of the saliency release alone
    noise_multiplier: float | None  # of DP-SGD, or of the votes that images evolve by
    noise_multiplier_without_selection: float | None  # what DP-SGD alone would have needed
    used_learning_rate: float | None  # peak, of the run's axis or else the config's; null: nothing is trained
    predicted_rise: float | None = None  # R at that rate, of all matrices; null: not asked for, or no LoRA
    used_steps: int | None  # DP-SGD steps done, or rounds of votes
    used_batch: float | None  # expected Poisson batch [units]: the rate times N
    trainable_parameters: int | None  # null: made elsewhere, not known
    selected_matrices: int | None
    finetune_seconds: float | None  # of fine-tuning, or of evolving
    sample_seconds: float | None
    peak_memory_mb: float | None
    label: str | None = None  # what tables call a method whose images were made elsewhere
    claim: Claim | None = None  # what the epsilon of images made elsewhere is; null: a ledger audited it
    outside_the_guarantee: tuple[str, ...] = (
        "accuracy",
        "macro_f1",
        "calibration_error",
        "per_classifier",
        *FIDELITY,
        "ceiling_accuracy",
    )

    @model_validator(mode="after")
    def _audited_or_claimed(self) -> "Metrics":
        """What no ledger audited never looks as if one had."""
        elsewhere = self.run.method == "external"
        if elsewhere != (self.claim is not None) or (elsewhere and (self.spent_epsilon or not self.not_for_release)):
            raise ValueError(f"images made elsewhere, and no others, have an epsilon that is {CLAIMED}")
        return self
