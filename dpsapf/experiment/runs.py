"""Studies expand to runs; a run has a readable, stable id. The only place that knows ids."""

import itertools
import typing

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from dpsapf.experiment.methods import (
    AXES,
    COUNTS_ITSELF,
    FRAGILITY,
    WALKING,
    WEIGHS_NOISE,
    Adapter,
    AnyMethod,
    Candidates,
    Level,
    MechanismName,
    MethodName,
    Optimizer,
    Positive,
    Ratio,
    Rule,
    ScoreName,
    Seed,
    method,
)
from dpsapf.support.checked import Checked, replace
from dpsapf.support.errors import UserError, UserErrors

Value = typing.TypeVar("Value")
Count = typing.Annotated[int, Field(ge=1)]
AutoRatio = typing.Annotated[
    Ratio | None,
    BeforeValidator(lambda value: None if value == "auto" else value),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1}, {"const": "auto"}]}),
]
AutoRank = Count | typing.Literal["auto"]
AutoSigma = Positive | typing.Literal["auto"]
AutoRate = Positive | typing.Literal["auto"]
SHORT = {"learning_rate": "lr", "training_steps": "t", "batch_size": "b", "lora_rank": "k"}  # in ids
Axis = typing.Annotated[tuple[Value, ...], Field(min_length=1)]


Name = typing.Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]


class _OnDataset(Checked):
    dataset: str = Field(description="sensitive dataset, a key of config/datasets.yaml")


class Treatment(Checked):
    """What is done to a dataset. Axes that the method ignores are null."""

    public_model: str = Field(description="public diffusion model, a key of config/public_models.yaml")
    method: MethodName = Field(description="what is selected and trained")
    level: Level | None = Field(None, description="what is ranked: matrices, attention modules or blocks")
    ratio: Ratio | None = Field(None, description="fraction of the ranked units that is kept; null: the rule finds it")
    score: ScoreName | None = Field(None, description="what an image contributes to the saliency scores")
    mechanism: MechanismName | None = Field(None, description="how the scores, or what they select, are released")
    sigma_s: AutoSigma | None = Field(
        None,
        description="noise multiplier of the saliency release, or that of equal zCDP cost; auto: the least that raises DP-SGD's "
        "by at most 1 %",
    )
    rule: Rule | None = Field(
        None, description="how scores choose: top or least salient, random, to the largest gap, or by signal and noise"
    )
    proxy: str | None = Field(
        None,
        description="what method proxy selects by: a dataset, whose scores without noise choose, as if it were public; or "
        "fragility, what noise in a matrix of the public model breaks",
    )
    candidates: Candidates | None = Field(None, description="matrices to choose from")
    adapter: Adapter | None = Field(None, description="adapter that is trained on the chosen matrices")
    epsilon: Positive | None = Field(None, description="target epsilon; null if nothing is trained, or without a guarantee")
    learning_rate: AutoRate | None = Field(None, description="peak learning rate; auto: what noise allows; null: the config's")
    training_steps: Count | None = Field(None, description="DP-SGD steps; null: the config's [steps]")
    batch_size: Count | None = Field(None, description="expected Poisson batch; null: the config's [units]")
    lora_rank: AutoRank | None = Field(
        None, description="rank of the adapter; auto: one a matrix, by what noise breaks; null: the config's"
    )
    optimizer: Optimizer | None = Field(None, description="optimizer; null: the config's")
    seed: Seed = Field(0, description="seed of everything random in the run")


class RunSpec(Treatment, _OnDataset):
    """One run: what differs between the rows of a table."""

    method: AnyMethod = Field(description="what is selected and trained; external: images of another group")
    external: Name | None = Field(None, description="method external: its key in the config; its epsilon is what is claimed")

    @model_validator(mode="after")
    def _named_if_external(self) -> "RunSpec":
        if (self.method == "external") != (self.external is not None):
            raise ValueError("method external, and no other, has a name in external")
        return self

    def adapter_rank(self, configured: int) -> int:
        """Return the rank of the adapter; where each matrix has its own, the one that sets its scale, alpha/rank."""
        return configured if self.lora_rank in (None, "auto") else self.lora_rank

    @property
    def id(self) -> str:
        """Readable, stable name, e.g. ``mnist5k--public-mini--dp-sapf-matrix-r30-share-s10--eps10--seed0``."""
        ranked = [self.level, f"r{number(100 * self.ratio)}" if self.ratio else self.level and "auto"]
        rule = self.rule if self.rule != "top" else None
        changed = [self.candidates != "attention" and self.candidates, self.adapter != "lora" and self.adapter]
        name = "-".join(filter(None, [self.method, self.external, *ranked, rule, self.proxy, *self._scored, *changed]))
        epsilon = [f"eps{number(self.epsilon)}"] if self.epsilon is not None else []
        trained = ["-".join(self._trained)] if self._trained else []
        return "--".join([self.dataset, self.public_model, name, *trained, *epsilon, f"seed{self.seed}"])

    @property
    def scores_id(self) -> str:
        """Name of the saliency release that the run uses; a ratio or epsilon sweep shares noisy scores.

        With sigma_s auto an epsilon has its own, as has what else of the run decides sigma_s.
        """
        parts = [self.released_from, *self._scored]
        if self.mechanism not in (None, "gaussian"):
            parts += [self.level, f"r{number(100 * self.ratio)}"]
        if self.sigma_s == "auto":
            parts += [f"eps{number(self.epsilon)}", *self._changed("training_steps", "batch_size")]
        dataset = self.scored_dataset or self.dataset
        return "--".join([dataset, self.public_model, "-".join(filter(None, parts)), f"seed{self.seed}"])

    @property
    def uses(self) -> frozenset[str]:
        """Axes that change the run's result, besides dataset, public model and seed."""
        used = method(self.method).uses
        return used - {"score"} if "proxy" in used and self.proxy == FRAGILITY else used

    @property
    def scored_dataset(self) -> str | None:
        """Dataset by whose scores the run selects; None: no scores choose."""
        if method(self.method).selection == "proxy":
            return None if self.proxy == FRAGILITY else self.proxy
        return self.dataset if method(self.method).selects else None

    @property
    def selects(self) -> bool:
        """True if scores of the private images themselves choose, with noise or without."""
        return self.scored_dataset == self.dataset

    @property
    def target_epsilon(self) -> float | None:
        """Epsilon that everything holds which is learnt from the private images; None without a guarantee.

        Where method proxy selects by the private images themselves, DP-SGD's noise is that of the run's epsilon, and nothing is
        guaranteed: the selection has no noise.
        """
        return None if method(self.method).selection == "proxy" and self.selects else self.epsilon

    @property
    def released_from(self) -> Candidates:
        """Candidate set that scores are computed over."""
        return self.candidates or method(self.method).candidates or "attention"

    @property
    def _trained(self) -> list[str]:
        return [*self._changed(*SHORT), *([self.optimizer] if self.optimizer else [])]

    def _changed(self, *axes: str) -> list[str]:
        """Write the values of some axes of training, but those that are the config's own."""
        return [SHORT[axis] + written(getattr(self, axis)) for axis in axes if getattr(self, axis) is not None]

    @property
    def _scored(self) -> list[str | None]:
        noise = f"s{written(self.sigma_s)}" if self.sigma_s is not None else None
        mechanism = self.mechanism if self.mechanism != "gaussian" else None
        return [self.score, mechanism, noise]


def external_run(name: str, dataset: str, public_model: str, epsilon: float | None, seed: int) -> RunSpec:
    """Name images of another group as a run.

    Args:
        name: of the method, its key in the config.
        dataset: that the images are in place of.
        public_model: whose runs it stands beside.
        epsilon: what its authors claim; None if they claim none.
        seed: of their run.
    """
    return RunSpec(dataset=dataset, public_model=public_model, method="external", external=name, epsilon=epsilon, seed=seed)


def written(value: float | str) -> str:
    """Write a number, or a word in its place, for a file name."""
    return value if isinstance(value, str) else number(value)


def number(value: float) -> str:
    """Write a number for a file name: ``10.0`` as ``10``, ``0.5`` as ``0.5``; 12 significant digits."""
    return f"{value:.12g}"


class Study(Checked):
    """Axes whose product is a set of runs; a method ignores the axes that cannot change its result."""

    dataset: Axis[str] = Field(description="sensitive datasets")
    public_model: Axis[str] = Field(("public-mini",), description="public models")
    method: Axis[MethodName] = Field(description="methods")
    level: Axis[Level] = Field(("matrix",), description="selection levels")
    ratio: Axis[AutoRatio] = Field((0.3,), description="selection ratios in (0, 1]; auto: the rule finds it")
    score: Axis[ScoreName] = Field(("energy",), description="saliency scores")
    mechanism: Axis[MechanismName] = Field(("gaussian",), description="mechanisms of the saliency release")
    sigma_s: Axis[AutoSigma] = Field(
        (5.0,), description="noise multipliers of the saliency release; auto: the least that raises DP-SGD's by at most 1 %"
    )
    rule: Axis[Rule] = Field(("top",), description="how scores choose")
    proxy: Axis[str] = Field((FRAGILITY,), description="datasets by whose scores method proxy selects, or fragility")
    candidates: Axis[Candidates] = Field(("attention",), description="candidate sets")
    adapter: Axis[Adapter] = Field(("lora",), description="adapters")
    epsilon: Axis[Positive] = Field((10.0,), description="target epsilons")
    learning_rate: Axis[AutoRate | None] = Field(
        (None,), description="peak learning rates; auto: what the noise allows; null: the config's"
    )
    training_steps: Axis[Count | None] = Field((None,), description="numbers of DP-SGD steps; null: the config's [steps]")
    batch_size: Axis[Count | None] = Field((None,), description="expected Poisson batches; null: the config's [units]")
    lora_rank: Axis[AutoRank | None] = Field(
        (None,), description="ranks of the adapter; auto: one a matrix, by what noise breaks; null: the config's"
    )
    optimizer: Axis[Optimizer | None] = Field((None,), description="optimizers; null: the config's")
    seed: Axis[Seed] = Field((0,), description="seeds")


def normalise(spec: RunSpec) -> RunSpec:
    """Set the axes that the run's method ignores to null, so that equal runs have equal ids."""
    return replace(spec, **dict.fromkeys(AXES - spec.uses))


def check_rule(run: RunSpec) -> None:
    """Check that a run's rule of selection can do what is asked of it.

    Raises:
        UserError: the ratio is to be found, by a rule or for a release that needs to know it; or the rule weighs noise, and
            the scores are not the signal's; or it asks what noise in an adapter breaks, and none is trained, or one of which
            that is not known; or ranks are to be found for such an adapter; or sigma_s for another mechanism than gaussian.
    """
    row = method(run.method)
    if "ratio" in row.uses and run.ratio is None and (run.rule not in COUNTS_ITSELF or run.mechanism in ("exponential", "ptr")):
        remedy = f"needs a rule that finds it, of {', '.join(COUNTS_ITSELF)}, and noisy scores (mechanism gaussian)"
        raise UserError("ratio", "auto", remedy)
    if run.rule in WEIGHS_NOISE and (run.score != "signal" or run.mechanism in ("exponential", "ptr")):
        raise UserError("rule", run.rule, f"needs score signal, noisy (mechanism gaussian), and has {run.score}, {run.mechanism}")
    if run.rule == "noise-aware" and row.trained != "adapter":
        raise UserError(
            "rule", run.rule, f"needs a method that trains an adapter, whose noise is measured; {run.method} does not"
        )
    for key, value in (("rule", run.rule), ("learning_rate", run.learning_rate)):
        if value in ("noise-budget", "auto") and (run.adapter not in WALKING or run.lora_rank):
            remedy = f"needs adapter {' or '.join(WALKING)} of the config's rank, whose noise is measured"
            raise UserError(key, value, f"{remedy}; {run.method} has {run.adapter}, rank {run.lora_rank}")
    if run.lora_rank == "auto" and run.adapter not in WALKING:
        remedy = f"needs adapter {' or '.join(WALKING)}, whose noise is measured; {run.method} has {run.adapter}"
        raise UserError("lora_rank", "auto", remedy)
    if run.sigma_s == "auto" and run.mechanism != "gaussian":
        raise UserError("sigma_s", "auto", f"needs mechanism gaussian, whose noise it is; the run has {run.mechanism}")
    if run.rule == "noise-budget" and run.ratio is None and run.learning_rate == "auto":
        raise UserError("learning_rate", "auto", "needs a ratio: rule noise-budget finds it from the learning rate")


def check_noise(run: RunSpec, noise: str) -> None:
    """Check that nothing is trained for a release whose selection the private images make without noise.

    Args:
        run: what is planned.
        noise: where privacy noise is drawn from; ``system`` is for a release.

    Raises:
        UserError: the run selects so, and noise is for a release.
    """
    if noise == "system" and run.target_epsilon != run.epsilon:
        told = f"is the private dataset of {run.id}: it selects without noise, and such a run is never for release"
        raise UserError("proxy", run.proxy, f"{told}; use privacy.noise seed, or another proxy")


def expand(studies: dict[str, Study]) -> list[RunSpec]:
    """Expand studies to their runs: ordered as written, each run once however many studies share it.

    Raises:
        UserErrors: what `check_rule` says of them, a line for each mistake and study.
    """
    runs: dict[str, RunSpec] = {}
    wrong: dict[str, UserError] = {}
    for name, study in studies.items():
        axes = dict(study)
        for values in itertools.product(*axes.values()):
            spec = normalise(RunSpec(**dict(zip(axes, values, strict=True))))
            runs[spec.id] = spec
            try:
                check_rule(spec)
            except UserError as error:
                wrong[f"{name}: {error}"] = UserError(f"studies.{name}.{error.key}", error.value, error.remedy)
    if wrong:
        raise UserErrors(list(wrong.values()))
    return list(runs.values())
