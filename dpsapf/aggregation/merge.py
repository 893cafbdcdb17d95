"""merge: join results of several machines into one folder with tables, or refuse and leave nothing."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dpsapf.aggregation.aggregate import aggregate
from dpsapf.aggregation.run_files import Digests, RunFiles, protocol_of
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.records import Merged
from dpsapf.experiment.stages import Aggregate, Merge
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError, UserErrors
from dpsapf.support.files import sha256, whole
from dpsapf.support.progress import track
from dpsapf.support.provenance import provenance
from dpsapf.support.records import write_record

LOG = logging.getLogger(__name__)
TABLES = ("runs.csv", "summary.csv", "selections.csv")


@dataclass(frozen=True)
class Part:
    """One folder of results.

    Attributes:
        root: the folder.
        runs: its runs, in the order of its table.
    """

    root: Path
    runs: tuple[RunFiles, ...]

    @classmethod
    def read(cls, root: Path) -> "Part":
        """Read a folder's runs.

        Raises:
            UserError: it has none.
        """
        folders = {path.name: path for path in sorted((root / "runs").glob("*")) if path.is_dir()}
        if not folders:
            raise UserError("--results", str(root), "has no runs/: give folders of results")
        table = Path(Layout(root).table("runs.csv"))
        listed = pd.read_csv(table)["run_id"].tolist() if table.exists() else []
        names = [*(name for name in listed if name in folders), *(name for name in folders if name not in listed)]
        joined = (root / "merged.json").exists()
        return cls(root, tuple(RunFiles.read(folders[name], Layout(root), joined=joined) for name in names))


def merge(options: Merge) -> None:
    """Write the runs' records and selections, the tables over all of them, and merged.json.

    Images, weights and what is private stay where they are. A run that two folders have in equal bytes is taken once.

    Raises:
        UserErrors: a run is not whole or was changed (as `dpsapf check` finds), two folders have a run in different bytes, or
            protocols, datasets or labels differ. Nothing is written then.
    """
    if options.out.exists():
        raise UserError("--out", str(options.out), "exists: give a folder that does not, or remove it")
    if len(options.results) < 2:
        raise UserError("--results", [str(path) for path in options.results], "give two folders or more")
    parts, digests = [Part.read(root) for root in options.results], Digests()
    every = [run for part in parts for run in part.runs]
    wrong = [finding for run in track(every, "check", "run") for finding in run.findings(digests)]
    if wrong:
        raise UserErrors(wrong)
    runs, twice = _once(every)
    refused = [*twice, *_other_protocols(runs), *_other_datasets(runs), *_other_labels(runs), *_other_tables(parts)]
    if refused:
        raise UserErrors(refused)
    _write(options.out, parts, runs)


def _once(every: Sequence[RunFiles]) -> tuple[list[RunFiles], list[UserError]]:
    """Take every run once; a finding for each that comes twice in different bytes."""
    known: dict[str, RunFiles] = {}
    wrong = []
    for run in every:
        first = known.setdefault(run.folder.name, run)
        differing = [name for name in run.needed(joined=True) if not _same(first.folder / name, run.folder / name)]
        if differing:
            remedy = f"{first.folder} has the same run in other bytes ({', '.join(differing)}): take one of them out"
            wrong.append(UserError(str(run.folder), "twice", remedy))
    return _by_setting(list(known.values())), wrong


def _by_setting(runs: Sequence[RunFiles]) -> list[RunFiles]:
    """Put the seeds of a setting beside each other, in order: else a mean's last digit depends on the order of the folders."""
    settings = list(dict.fromkeys(replace(run.run, seed=0).id for run in runs))
    return sorted(runs, key=lambda run: (settings.index(replace(run.run, seed=0).id), run.run.seed))


def _same(one: Path, other: Path) -> bool:
    return one == other or one.read_bytes() == other.read_bytes()


def _other_protocols(runs: Sequence[RunFiles]) -> Iterator[UserError]:
    right = protocol_of(runs[0].records["metrics.json"])["protocol"]
    known: dict[str, object] = {}
    for run in runs:
        for name in ("fidelity.json", "utility.json", "metrics.json"):
            for key, value in protocol_of(run.records[name]).items():
                first = right if key == "protocol" else known.setdefault(key, value)
                if value != first:
                    remedy = f"{runs[0].folder} has {first}: never mix protocols, evaluate all runs with one"
                    yield UserError(f"{run.folder / name}: {key}", value, remedy)


def _other_datasets(runs: Sequence[RunFiles]) -> Iterator[UserError]:
    """Find runs that were judged on other numbers of real images than those before them of the same dataset."""
    known: dict[str, tuple[RunFiles, dict[str, int]]] = {}
    for run in runs:
        records = run.records
        counts = {"real": records["fidelity.json"].real_images, "test": records["utility.json"].test_images}
        first, right = known.setdefault(run.run.dataset, (run, counts))
        if counts != right:
            remedy = f"{first.folder} has {right}: prepare the dataset {run.run.dataset} in one way"
            yield UserError(f"{run.folder}: real images", counts, remedy)


def _other_labels(runs: Sequence[RunFiles]) -> Iterator[UserError]:
    """Find methods of other groups that have two labels, or share one: tables would take two for one, or one for two."""
    labels: dict[str, tuple[RunFiles, str]] = {}
    names: dict[str, tuple[RunFiles, str]] = {}
    for run in runs:
        label, name = run.records["metrics.json"].label, run.run.external
        if label is None:
            continue
        for known, key, value in ((labels, name, label), (names, label, name)):
            first, right = known.setdefault(key, (run, value))
            if value != right:
                remedy = f"{first.folder} has {right!r} for {key!r}: give each method one name and one label, and make it again"
                yield UserError(f"{run.folder}: label", value, remedy)


def _other_tables(parts: Sequence[Part]) -> Iterator[UserError]:
    """Find tables of diagnostics that two folders have in different bytes."""
    known: dict[str, Path] = {}
    for path in _diagnostics(parts):
        first = known.setdefault(path.name, path)
        if not _same(first, path):
            yield UserError(str(path), "twice", f"{first} is another table of that name: take one of them out")


def _diagnostics(parts: Sequence[Part]) -> list[Path]:
    """List the tables that are not made from metrics: saliency_agreement and the like."""
    found = [path for part in parts for path in sorted((part.root / "tables").glob("*.csv"))]
    return [path for path in found if path.name not in TABLES]


def differences(parts: Sequence[Part], runs: Sequence[RunFiles]) -> list[str]:
    """Tell what is not the same in all runs, but no reason to refuse: code, prepared data, ceilings."""
    makers = [record.provenance for run in runs for record in run.records.values() if getattr(record, "provenance", None)]
    told = {
        "versions of dpsapf": {str(maker.get("versions", {}).get("dpsapf")) for maker in makers},
        "commits": {str(maker.get("git_commit")) for maker in makers},
    }
    for dataset in dict.fromkeys(run.run.dataset for run in runs):
        of = [run for run in runs if run.run.dataset == dataset]
        ids = {record.dataset_id[:12] for run in of for record in run.records.values() if hasattr(record, "dataset_id")}
        told[f"{dataset}: prepared several times, each with a secret of its own; ids"] = ids
        told[f"{dataset}: ceilings"] = {str(run.records["metrics.json"].ceiling_accuracy) for run in of}
    return [f"{what} {', '.join(sorted(values))}" for what, values in told.items() if len(values) > 1]


def _write(out: Path, parts: Sequence[Part], runs: Sequence[RunFiles]) -> None:
    with whole(out) as root:
        layout = Layout(root)
        for run in runs:
            Path(layout.run(run.folder.name, "")).mkdir(parents=True)
            for name in run.needed(joined=True):
                shutil.copyfile(run.folder / name, layout.run(run.folder.name, name))
        metrics = [Path(layout.run(run.folder.name, "metrics.json")) for run in runs]
        tables = {Path(name).stem: Path(layout.table(name)) for name in TABLES}
        aggregate(Aggregate(metrics=tuple(metrics), **tables))
        for path in _diagnostics(parts):
            shutil.copyfile(path, layout.table(path.name))
        told = differences(parts, runs)
        for line in told:
            LOG.warning("differs: %s", line)
        merged = Merged(
            protocol=runs[0].records["metrics.json"].protocol,
            parts=tuple(part.root.name for part in parts),
            runs={run.folder.name: sha256(path) for run, path in zip(runs, metrics, strict=True)},
            differences=tuple(told),
            provenance=provenance(),
        )
        write_record(root / "merged.json", merged)
    LOG.info("%s: %d runs of %d folders", out, len(runs), len(parts))
