"""Find a run's files by its layout, and check that they are the audited ones."""

import dataclasses
import math
import typing
from pathlib import Path

from pydantic import ConfigDict

from dpsapf.experiment.layout import Layout
from dpsapf.experiment.methods import method
from dpsapf.experiment.records import DatasetRecord, Ledger, ModelRecord, Plan, Spend, Timing, WeightsHeader
from dpsapf.experiment.run_files import audit_files
from dpsapf.experiment.settings import SamplingConfig
from dpsapf.experiment.stages import AuditPrivacy, Release
from dpsapf.finetune.weights import read_header
from dpsapf.privacy.accounting import PRV_ERROR
from dpsapf.privacy.audit import verdict
from dpsapf.support.checked import Checked
from dpsapf.support.errors import UserError, one_of
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record

AGAIN = "run its stage again, and the stages after it"
RESAMPLE = "audit again, then sample again"


class _Drawn(SamplingConfig):
    model_config = ConfigDict(extra="ignore")


class _Saved(Checked):
    """What `dpsapf.cli.main` saves beside the images: of their options those that say how they were drawn."""

    model_config = ConfigDict(extra="ignore")
    options: _Drawn


@dataclasses.dataclass(frozen=True)
class Found:
    """A run that its audit passed, and whose images are those that the audit allowed.

    Attributes:
        layout: of the results folder.
        ledger: the audit's verdict.
        plan: what was to be released.
        dataset: the private images' record.
        model: the public model's record.
        sampling: how images were drawn.
        trained: how the weights were trained; None where nothing was.
        images_digest: SHA-256 of samples.npz.
    """

    layout: Layout
    ledger: Ledger
    plan: Plan
    dataset: DatasetRecord
    model: ModelRecord
    sampling: SamplingConfig
    trained: WeightsHeader | None
    images_digest: str

    @property
    def archive(self) -> Path:
        """The synthetic images."""
        return Path(self.layout.run(self.ledger.run.id, "samples.npz"))

    @property
    def weights(self) -> Path | None:
        """The trained parameters; None where nothing was trained."""
        trained = self.ledger.weights_digest is not None
        return Path(self.layout.run(self.ledger.run.id, "weights.safetensors")) if trained else None


def find(options: Release) -> Found:
    """Read a run, and audit it again.

    Raises:
        UserError: there is no such run; it has no passed audit, or one that forbids a release; a file is another than its
            record says; images were drawn under another ledger.
    """
    layout, name = place(options)
    ledger = _audited(layout, name)
    samples = _images_digest(layout, ledger)
    return Found(
        layout=layout,
        ledger=ledger,
        plan=read_record(layout.run(name, "plan.json"), Plan),
        dataset=_dataset(layout, ledger),
        model=_model(layout, ledger),
        sampling=_sampling(layout, ledger),
        trained=read_header(Path(layout.run(name, "weights.safetensors"))) if ledger.weights_digest else None,
        images_digest=samples,
    )


def place(options: Release) -> tuple[Layout, str]:
    """Return the results folder and the id of the run that options name.

    Raises:
        UserError: no folder is named, or it has no such run; names those that it has.
    """
    path = Path(options.run)
    if options.results is None and path.is_dir() and path.resolve().parent.name == "runs":
        return Layout(path.resolve().parent.parent), path.resolve().name
    if options.results is None:
        remedy = "is no run's folder, results/NAME/runs/RUN; if it is an id, add --results results/NAME"
        raise UserError("--run", options.run, remedy)
    known = sorted(folder.name for folder in (options.results / "runs").glob("*/"))
    if options.run not in known:
        raise UserError("--run", options.run, f"no such run in {options.results}: {one_of(options.run, known)}")
    return Layout(options.results), options.run


def _audited(layout: Layout, name: str) -> Ledger:
    path, elsewhere = (Path(layout.run(name, file)) for file in ("ledger.json", "external.json"))
    if elsewhere.exists():
        raise UserError(str(elsewhere), name, "was made elsewhere: its epsilon is claimed only, so it is not ours to publish")
    if not path.exists():
        raise UserError(str(path), None, "the audit is missing: without a passed audit nothing is published; run audit-privacy")
    ledger = read_record(path, Ledger)
    if ledger.run.id != name:
        raise UserError(f"{path}: run", ledger.run.id, f"is not the folder's run {name}: {AGAIN}")
    _check_permitted(path, ledger.not_for_release)
    files = audit_files(layout, ledger.run)
    for file in (file for value in files.values() for file in ([value] if isinstance(value, str) else value)):
        _there(Path(file))
    held = {} if ledger.held_against is None else {key: value for key, value in ledger.held_against if value is not None}
    fresh = verdict(AuditPrivacy(**files, **held, out=path))
    _check_permitted(path, fresh.not_for_release)
    for key in Ledger.model_fields:
        if key not in ("provenance", "spent_epsilon") and getattr(fresh, key) != getattr(ledger, key):
            raise UserError(f"{path}: {key}", _short(getattr(ledger, key)), f"is not what the records say: {RESAMPLE}")
    _check_epsilon(path, ledger, fresh)
    return ledger


def _check_permitted(path: Path, reason: str | None) -> None:
    if reason is not None:
        remedy = "nothing of this run may be published: train one with privacy.noise system and a finite epsilon"
        raise UserError(f"{path}: not_for_release", reason, f"{remedy}, in a results folder of its own")


def _check_epsilon(path: Path, ledger: Ledger, fresh: Ledger) -> None:
    for name, value in fresh.spent_epsilon.items():
        told = ledger.spent_epsilon.get(name, math.nan)
        if not math.isclose(told, value, rel_tol=0, abs_tol=PRV_ERROR):
            raise UserError(f"{path}: spent_epsilon.{name}", told, f"the releases compose to {value:.4f}: {RESAMPLE}")


def _images_digest(layout: Layout, ledger: Ledger) -> str:
    """Check that the images were drawn under this ledger, and are those that were; return their digest."""
    archive, timing_path = (Path(layout.run(ledger.run.id, file)) for file in ("samples.npz", "timing.json"))
    timing = _read(timing_path, Timing)
    if timing.ledger != sha256(layout.run(ledger.run.id, "ledger.json")):
        raise UserError(f"{timing_path}: ledger", timing.ledger[:12], "the images were drawn under another ledger: sample again")
    digest = sha256(_there(archive))
    if digest != timing.samples:
        raise UserError(str(archive), digest[:12], f"are not the images that were drawn, {timing.samples[:12]}: sample again")
    return digest


def _sampling(layout: Layout, ledger: Ledger) -> SamplingConfig:
    """Read how images were drawn from the options that the stage left beside them."""
    row = method(ledger.run.method)
    path = _there(Path(layout.run(ledger.run.id, f"{'evolve' if row.evolves else 'sample'}.options.json")))
    told = read_record(path, _Saved).options
    return SamplingConfig(**{key: getattr(told, key) for key in SamplingConfig.model_fields})


def _dataset(layout: Layout, ledger: Ledger) -> DatasetRecord:
    path = layout.dataset(ledger.run.dataset, "dataset.json")
    record = _read(path, DatasetRecord)
    if record.id != ledger.dataset_id:
        remedy = f"the run was trained on {ledger.dataset_id[:12]}, before the dataset was prepared again: train it again"
        raise UserError(f"{path}: id", record.id[:12], remedy)
    return record


def _model(layout: Layout, ledger: Ledger) -> ModelRecord:
    path = layout.model(ledger.run.public_model, "model.json")
    record, spend = _read(path, ModelRecord), Path(layout.run(ledger.run.id, "spend.json"))
    trained_on = read_record(spend, Spend).made_from.get("model") if spend.exists() else None
    if trained_on not in (None, sha256(path)):
        raise UserError(path, sha256(path)[:12], f"the run was trained on a model with record {trained_on[:12]}: train it again")
    return record


def _read(path: str | Path, cls: type) -> typing.Any:  # noqa: ANN401 - a record of cls
    return read_record(_there(Path(path)), cls)


def _there(path: Path) -> Path:
    if not path.exists():
        raise UserError(str(path), None, f"is missing: {AGAIN}")
    return path


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:57] + "..."
