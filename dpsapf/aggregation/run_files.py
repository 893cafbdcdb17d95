"""One run's folder, verified: every record fits its class, is of this run, and every file is the one that records name."""

import functools
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dpsapf.experiment.layout import Layout
from dpsapf.experiment.methods import method
from dpsapf.experiment.records import (
    DatasetRecord,
    External,
    Fidelity,
    Ledger,
    Measured,
    Metrics,
    Plan,
    Selection,
    Spend,
    Timing,
    Utility,
)
from dpsapf.experiment.run_files import OWN
from dpsapf.experiment.runs import RunSpec
from dpsapf.support.checked import Checked
from dpsapf.support.errors import UserError, UserErrors
from dpsapf.support.files import sha256
from dpsapf.support.records import as_json, read_record

RECORDS: dict[str, type[Checked]] = {
    "plan.json": Plan,
    "ledger.json": Ledger,
    "selection.json": Selection,
    "spend.json": Spend,
    "private.json": Measured,
    "timing.json": Timing,
    "external.json": External,
    "fidelity.json": Fidelity,
    "utility.json": Utility,
    "metrics.json": Metrics,
}
EVALUATED = ("fidelity.json", "utility.json", "metrics.json")
HEAVY = ("samples.npz", "weights.safetensors", "population.safetensors")
PRIVATE = ("private.json", "private_log.csv")
ITS_OWN = {"outside_the_guarantee", "provenance", "peak_memory_mb", "delta", "run"}
"""Fields of one name and several meanings, and the run, which is compared apart."""
OWN_FILES = {"plan": "plan.json"} | {name: file for name, (file, _) in OWN.items()}
KNOWN = {*OWN_FILES, "latents", "model", "candidate_table", "archive", "scores"}
"""What records name without a path."""
Named = tuple[Path, str, str]
"""A file, the SHA-256 that it must have, and the record that says so."""


def needed(run: RunSpec, *, evaluated: bool, joined: bool) -> list[str]:
    """List the files that a finished run has in its folder.

    Args:
        run: what was run.
        evaluated: it was meant to be; what is sampled and released needs no evaluation.
        joined: in a folder of joined results, which has neither images nor weights nor anything private.
    """
    row = method(run.method)
    if row.made_elsewhere:
        files = ["external.json", "samples.npz"]
    else:
        files = ["plan.json", "ledger.json", "timing.json", "samples.npz"]
        files += [file for file, left_if in OWN.values() if getattr(row, left_if)]
    files += EVALUATED if evaluated else ()
    return [file for file in files if not (joined and file in (*HEAVY, *PRIVATE))]


@dataclass
class Digests:
    """SHA-256 of files, each computed once however many records name it."""

    known: dict[Path, str] = field(default_factory=dict)

    def of(self, path: Path) -> str:
        """Return a file's digest."""
        if path not in self.known:
            self.known[path] = sha256(path)
        return self.known[path]


def read_records(folder: Path, classes: dict[str, type[Checked]]) -> tuple[dict[str, typing.Any], list[UserError]]:
    """Read the records that a folder has.

    Args:
        folder: where they are.
        classes: file name -> what it must fit.

    Returns:
        Those that fit, by file name, and a finding for every mistake in the others.
    """
    found, wrong = {}, []
    for name, cls in classes.items():
        if (folder / name).exists():
            try:
                found[name] = read_record(folder / name, cls)
            except UserErrors as error:
                wrong += error.errors
            except UserError as error:
                wrong.append(error)
    return found, wrong


@dataclass(frozen=True)
class RunFiles:
    """What stands in one run's folder.

    Attributes:
        folder: the run's; its name is the run's id.
        layout: of the results that it belongs to.
        records: those that fit their class, by file name.
        wrong: a finding for every mistake in the others.
        joined: as of `needed`.
    """

    folder: Path
    layout: Layout
    records: dict[str, typing.Any]
    wrong: tuple[UserError, ...]
    joined: bool

    @classmethod
    def read(cls, folder: Path, layout: Layout, *, joined: bool) -> "RunFiles":
        """Read a run's records."""
        records, wrong = read_records(folder, RECORDS)
        return cls(folder, layout, records, tuple(wrong), joined)

    @functools.cached_property
    def run(self) -> RunSpec | None:
        """What was run, by the first record that tells it; None if none does."""
        told = [record.run for record in self.records.values() if hasattr(record, "run")]
        return next((run for run in told if run.id == self.folder.name), next(iter(told), None))

    @functools.cached_property
    def own(self) -> dict[str, typing.Any]:
        """The records that are of this run; what others say is not compared with its files."""
        return {name: record for name, record in self.records.items() if _subjects(record) <= {self.folder.name}}

    def needed(self, *, joined: bool) -> list[str]:
        """List the files that the run has if it is whole (see `needed`)."""
        return needed(self.run, evaluated=joined or self.evaluated, joined=joined)

    @property
    def evaluated(self) -> bool:
        """Whether an evaluation left a record, or the run is for nothing else."""
        return method(self.run.method).made_elsewhere or any((self.folder / name).exists() for name in EVALUATED)

    def findings(self, digests: Digests) -> list[UserError]:
        """List what is wrong: an unreadable, missing or foreign record, another file than the records name, another number."""
        if self.run is None:
            return [*self.wrong, UserError(str(self.folder), "no record", "none says what run this is; make it again")]
        found = [*self.wrong, *self._missing(), *self._unknown(), *self._foreign(), *self._other_data(), *self._other_numbers()]
        return [*found, *changed(self.named(), digests)]

    def _missing(self) -> Iterator[UserError]:
        for name in self.needed(joined=self.joined):
            if not (self.folder / name).exists():
                yield UserError(str(self.folder / name), "missing", "make the run again, or take it out")

    def _unknown(self) -> Iterator[UserError]:
        """Find names in records of which it is not known where their files are: they cannot be verified."""
        for name, key in (("spend.json", "made_from"), ("ledger.json", "digests")):
            for what in sorted(set(getattr(self.records.get(name), key, {})) - KNOWN):
                yield UserError(f"{self.folder / name}: {key}", what, f"must be one of {', '.join(sorted(KNOWN))}")

    def _foreign(self) -> Iterator[UserError]:
        """Find records of another run than the folder's, and a run of images made elsewhere that looks audited."""
        for name, record in self.records.items():
            for run in sorted(_subjects(record) - {self.folder.name}):
                yield UserError(f"{self.folder / name}: run", run, f"the folder is of {self.folder.name}: swapped or copied")
        spend, ledger = self.own.get("spend.json"), self.own.get("ledger.json")
        if spend and ledger and spend.release not in ledger.releases:
            yield UserError(f"{self.folder / 'spend.json'}: release", spend.release.name, "is not what ledger.json audited")
        if method(self.run.method).made_elsewhere:
            for name in ("plan.json", "ledger.json", "spend.json"):
                if (self.folder / name).exists():
                    yield UserError(str(self.folder / name), "there", "nothing made elsewhere was planned or audited: remove it")

    def _other_data(self) -> Iterator[UserError]:
        """Find records of another dataset than dataset.json's, or, without one, than the first record's."""
        ids = {name: record.dataset_id for name, record in self.records.items() if hasattr(record, "dataset_id")}
        prepared, _ = read_records(Path(self.layout.dataset(self.run.dataset, "")), {"dataset.json": DatasetRecord})
        right = prepared["dataset.json"].id if prepared else next(iter(ids.values()), None)
        for name, found in ids.items():
            if found != right:
                yield UserError(
                    f"{self.folder / name}: dataset_id", found[:12], f"the dataset is {right[:12]}: made on other data"
                )

    def _other_numbers(self) -> Iterator[UserError]:
        """Find numbers of metrics.json that are not those of the records that it was gathered from."""
        metrics = self.own.get("metrics.json")
        for source, values in self._sources() if metrics else ():
            for key, value in values.items():
                if getattr(metrics, key) != value:
                    remedy = f"{source} has {value!r}: one of them was changed; collect the metrics again"
                    yield UserError(f"{self.folder / 'metrics.json'}: {key}", getattr(metrics, key), remedy)

    def _sources(self) -> Iterator[tuple[str, dict[str, object]]]:
        """Give the records beside metrics.json, and what fields of it must be by each."""
        for name, record in self.own.items():
            if name != "metrics.json":
                shared = (set(type(record).model_fields) & set(Metrics.model_fields)) - ITS_OWN
                yield name, {key: getattr(record, key) for key in sorted(shared)} | _renamed(record)
        protocol = getattr(self.records.get("fidelity.json"), "protocol", "")
        ceiling = self.layout.reference(self.run.dataset, protocol, "ceiling.json")
        found, _ = read_records(Path(ceiling).parent, {"ceiling.json": Utility})
        if found:
            yield ceiling, {"ceiling_accuracy": found["ceiling.json"].accuracy}

    def named(self) -> Iterator[Named]:
        """Give every file whose digest one of the run's records names."""
        timing, spend, selection = (self.own.get(f"{name}.json") for name in ("timing", "spend", "selection"))
        ledger, external = self.own.get("ledger.json"), self.own.get("external.json")
        if timing:
            yield self.folder / "ledger.json", timing.ledger, "timing.json"
            yield self.folder / "samples.npz", timing.samples, "timing.json"
        if external:
            yield self.folder / "samples.npz", external.samples, "external.json"
        if selection:
            yield self.folder / "selection.csv", selection.digest, "selection.json"
        if selection and selection.scores:
            yield self._at("scores"), selection.scores, "selection.json"
        if spend:
            yield self._at("population" if method(self.run.method).evolves else "weights"), spend.digest, "spend.json"
            yield self.folder / "private.json", spend.private, "spend.json"
            yield from ((self._at(name), digest, "spend.json") for name, digest in spend.made_from.items() if name in KNOWN)
        if ledger:
            weights = {"weights": ledger.weights_digest} if ledger.weights_digest else {}
            named = (ledger.digests | weights).items()
            yield from ((self._at(name), digest, "ledger.json") for name, digest in named if name in KNOWN)

    def _at(self, name: str) -> Path:
        """Say where a file is that records name without a path."""
        run, layout = self.run, self.layout
        shared = {
            "latents": lambda: layout.latents(run.dataset, run.public_model, "latents.safetensors"),
            "model": lambda: layout.model(run.public_model, "model.json"),
            "candidate_table": lambda: layout.model(run.public_model, "candidates.csv"),
            "archive": lambda: layout.dataset(run.dataset, "dataset.safetensors"),
            "scores": lambda: layout.scores(run.scores_id, "scores.csv"),
        }
        return self.folder / OWN_FILES[name] if name in OWN_FILES else Path(shared[name]())


def _subjects(record: Checked) -> set[str]:
    """Return what a record says that it is of."""
    told = {getattr(record, name) for name in ("run_id", "subject") if hasattr(record, name)}
    return told | ({record.run.id} if hasattr(record, "run") else set())


def _renamed(record: Checked) -> dict[str, object]:
    """Return fields of metrics.json that have another name in a record, or another place."""
    if isinstance(record, Plan):
        return {"noise_multiplier_without_selection": record.dp_sgd_noise_alone}
    if isinstance(record, Spend):
        return {"noise_multiplier": record.release.noise_multiplier, "used_steps": record.release.steps}
    if isinstance(record, Measured):
        return {"finetune_seconds": record.seconds}
    if isinstance(record, Ledger):
        return {"delta": record.delta if record.releases else None}
    if isinstance(record, Timing):
        return {"sample_seconds": record.seconds}
    if isinstance(record, External):
        return {"target_epsilon": record.claimed_epsilon, "delta": record.claimed_delta}
    return {}


def changed(named: Iterator[Named], digests: Digests) -> Iterator[UserError]:
    """Find files whose digest is not what records name; a file is told once."""
    wrong: dict[Path, dict[str, str]] = {}
    for path, digest, said_by in named:
        if path.exists() and digests.of(path) != digest:
            wrong.setdefault(path, {})[said_by] = digest
    for path, says in wrong.items():
        told = f"{' and '.join(says)} {'name' if len(says) > 1 else 'names'}"
        remedy = f"{told} {next(iter(says.values()))[:12]}: the file is another one, or was changed"
        yield UserError(f"{path}: SHA-256", digests.of(path)[:12], remedy)


def protocol_of(record: Checked) -> dict[str, object]:
    """Return what a record says of its evaluation protocol: its name, and every field that belongs to it."""
    return {key: value for key, value in as_json(record).items() if key.startswith("protocol")}
