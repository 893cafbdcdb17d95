"""Studies expand to runs; a run has a readable, stable id. The only place that knows ids and paths."""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path

from dpsapf.errors import UserError
from dpsapf.fields import check, setting
from dpsapf.methods import AXES, Adapter, Candidates, Level, MechanismName, MethodName, ScoreName, method


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run: what differs between the rows of a table. Axes that the method ignores are null."""

    dataset: str = setting("sensitive dataset, a key of config/datasets.yaml")
    public_model: str = setting("public diffusion model, a key of config/public_models.yaml")
    method: MethodName = setting("what is selected and trained")
    level: Level | None = setting("what is ranked: matrices, attention modules or blocks", None)
    ratio: float | None = setting("fraction of the ranked units that is kept", None, above=0, high=1)
    score: ScoreName | None = setting("what an image contributes to the saliency scores", None)
    mechanism: MechanismName | None = setting("how the scores, or what they select, are released", None)
    sigma_s: float | None = setting("noise multiplier of the saliency release, or that of equal zCDP cost", None, above=0)
    candidates: Candidates | None = setting("matrices to choose from", None)
    adapter: Adapter | None = setting("adapter that is trained on the chosen matrices", None)
    epsilon: float | None = setting("target epsilon; null if nothing is trained, or without a guarantee", None, above=0)
    seed: int = setting("seed of everything random in the run", 0, low=0)

    @property
    def id(self) -> str:
        """Readable, stable name, e.g. ``mnist5k--public-mini--dp-sapf-matrix-r30-share-s10--eps10--seed0``."""
        ranked = [self.level, self.ratio and f"r{number(100 * self.ratio)}"]
        changed = [self.candidates != "attention" and self.candidates, self.adapter != "lora" and self.adapter]
        name = "-".join(filter(None, [self.method, *ranked, *self._scored, *changed]))
        epsilon = [f"eps{number(self.epsilon)}"] if self.epsilon is not None else []
        return "--".join([self.dataset, self.public_model, name, *epsilon, f"seed{self.seed}"])

    @property
    def scores_id(self) -> str:
        """Name of the saliency release that the run uses; a ratio or epsilon sweep shares noisy scores."""
        parts = [self.released_from, *self._scored]
        if self.mechanism not in (None, "gaussian"):
            parts += [self.level, f"r{number(100 * self.ratio)}"]
        return "--".join([self.dataset, self.public_model, "-".join(filter(None, parts)), f"seed{self.seed}"])

    @property
    def released_from(self) -> Candidates:
        """Candidate set that scores are computed over."""
        return self.candidates or method(self.method).candidates or "attention"

    @property
    def _scored(self) -> list[str | None]:
        noise = f"s{number(self.sigma_s)}" if self.sigma_s is not None else None
        mechanism = self.mechanism if self.mechanism != "gaussian" else None
        return [self.score, mechanism, noise]


def number(value: float) -> str:
    """Write a number for a file name: ``10.0`` as ``10``, ``0.5`` as ``0.5``; 12 significant digits."""
    return f"{value:.12g}"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Axes whose product is a set of runs; a method ignores the axes that cannot change its result."""

    dataset: tuple[str, ...] = setting("sensitive datasets")
    public_model: tuple[str, ...] = setting("public models", ("public-mini",))
    method: tuple[MethodName, ...] = setting("methods")
    level: tuple[Level, ...] = setting("selection levels", ("matrix",))
    ratio: tuple[float, ...] = setting("selection ratios in (0, 1]", (0.3,), above=0, high=1)
    score: tuple[ScoreName, ...] = setting("saliency scores", ("energy",))
    mechanism: tuple[MechanismName, ...] = setting("mechanisms of the saliency release", ("gaussian",))
    sigma_s: tuple[float, ...] = setting("noise multipliers of the saliency release", (5.0,), above=0)
    candidates: tuple[Candidates, ...] = setting("candidate sets", ("attention",))
    adapter: tuple[Adapter, ...] = setting("adapters", ("lora",))
    epsilon: tuple[float, ...] = setting("target epsilons", (10.0,), above=0)
    seed: tuple[int, ...] = setting("seeds", (0,), low=0)


def normalise(spec: RunSpec) -> RunSpec:
    """Set the axes that the run's method ignores to null, so that equal runs have equal ids."""
    return dataclasses.replace(spec, **dict.fromkeys(AXES - method(spec.method).uses))


def expand(studies: dict[str, Study]) -> list[RunSpec]:
    """Expand studies to their runs: ordered as written, each run once however many studies share it.

    Raises:
        UserError: a study has an empty axis or a value out of range.
    """
    runs: dict[str, RunSpec] = {}
    for name, study in studies.items():
        axes = dataclasses.asdict(study)
        for axis, values in axes.items():
            if not values:
                raise UserError(f"studies.{name}.{axis}", values, "needs at least one value")
        check(study)
        for values in itertools.product(*axes.values()):
            spec = normalise(RunSpec(**dict(zip(axes, values, strict=True))))
            runs[spec.id] = spec
    return list(runs.values())


@dataclass(frozen=True)
class Layout:
    """Where everything lives below ``results/<config name>``."""

    root: Path

    def dataset(self, dataset: str, file: str) -> str:
        """Path of a prepared dataset's file."""
        return f"{self.root}/cache/datasets/{dataset}/{file}"

    def model(self, public_model: str, file: str) -> str:
        """Path of a resolved public model's file."""
        return f"{self.root}/cache/public_models/{public_model}/{file}"

    def latents(self, dataset: str, public_model: str, file: str) -> str:
        """Path of a dataset's latents and prompt embeddings under a model."""
        return f"{self.root}/cache/latents/{dataset}--{public_model}/{file}"

    def scores(self, scores_id: str, file: str) -> str:
        """Path of a noisy saliency release's file."""
        return f"{self.root}/cache/scores/{scores_id}/{file}"

    def reference(self, dataset: str, protocol: str, file: str) -> str:
        """Path of a dataset's reference features under an evaluation protocol."""
        return f"{self.root}/cache/reference/{dataset}--{protocol}/{file}"

    def run(self, run: str, file: str) -> str:
        """Path of a run's file."""
        return f"{self.root}/runs/{run}/{file}"

    def table(self, file: str) -> str:
        """Path of an aggregated table."""
        return f"{self.root}/tables/{file}"

    @property
    def figures(self) -> str:
        """Folder of figures."""
        return f"{self.root}/figures"

    def log(self, stage: str, name: str) -> str:
        """Path of a stage's log."""
        return f"{self.root}/logs/{stage}/{name}.log"

    def benchmark(self, stage: str, name: str) -> str:
        """Path of a stage's Snakemake benchmark."""
        return f"{self.root}/benchmarks/{stage}/{name}.tsv"
