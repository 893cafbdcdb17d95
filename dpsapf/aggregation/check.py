"""check: verify a folder of results. Nothing is changed."""

import fcntl
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path

import pandas as pd

from dpsapf.aggregation.aggregate import run_table
from dpsapf.aggregation.run_files import Digests, RunFiles, changed, protocol_of, read_records
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.records import DatasetRecord, Measured, Merged, Metrics, ModelRecord, Spend, Utility
from dpsapf.experiment.settings import Config, parse_config
from dpsapf.experiment.stages import Check
from dpsapf.support.checked import Checked
from dpsapf.support.errors import UserError, UserErrors
from dpsapf.support.progress import track
from dpsapf.support.yaml_files import load_yaml

LOG = logging.getLogger(__name__)
LEFT_OVER = re.compile(r"^\..*\.\d+\.tmp|^private\.(checkpoint|partial)\.|\.unreadable$")
LOCK = ".one-snakemake"
SHARED: dict[str, dict[str, type[Checked]]] = {  # records that runs share, by folder of the cache
    "datasets": {"dataset.json": DatasetRecord},
    "public_models": {"model.json": ModelRecord},
    "scores": {"spend.json": Spend, "private.json": Measured},
    "reference": {"ceiling.json": Utility},
}


def check(options: Check) -> None:
    """Tell every finding in a line of its own.

    Raises:
        UserErrors: there is one; a line for each.
    """
    config = parse_config(load_yaml(options.configfile), str(options.configfile)) if options.configfile else None
    found = findings(options.results, config)
    if found:
        raise UserErrors(found)
    LOG.info("%s: nothing wrong%s", options.results, "" if config else "; runs that are missing need --configfile")


def findings(root: Path, config: Config | None) -> list[UserError]:
    """Verify a folder of results.

    Args:
        root: the folder.
        config: whose runs it must have; None: those that it has.

    Returns:
        A finding for everything that is wrong: key, value, remedy.
    """
    layout, digests = Layout(root), Digests()
    joined, wrong = read_records(root, {"merged.json": Merged})
    folders = sorted(path for path in (root / "runs").glob("*") if path.is_dir())
    if not folders:
        wrong.append(UserError(str(root / "runs"), "no runs", "give the folder of one config's results"))
    runs = [RunFiles.read(folder, layout, joined=bool(joined)) for folder in folders]
    for run in track(runs, "check", "run"):
        wrong += run.findings(digests)
    if plain := [run.folder.name for run in runs if run.run and not run.evaluated]:
        LOG.info("not evaluated, which a release does not need: %s", ", ".join(plain))
    wrong += [*_shared(layout, digests), *_joined(root, joined.get("merged.json"), digests)]
    wrong += [*_missing(layout, config), *_other_protocols(runs, config), *_other_versions(runs)]
    return [*wrong, *_other_table(layout, runs), *_left_over(root), *_locked(root)]


def _shared(layout: Layout, digests: Digests) -> Iterator[UserError]:
    """Verify what runs share: datasets, public models, released scores, ceilings."""
    for kind, classes in SHARED.items():
        for folder in sorted(Path(layout.root, "cache", kind).glob("*")):
            records, wrong = read_records(folder, classes)
            yield from wrong
            yield from (
                UserError(str(folder / name), "missing", "run the stage again that makes it")
                for name in classes
                if not (folder / name).exists()
            )
            if "dataset.json" in records:
                yield from changed(iter([(folder / "dataset.safetensors", records["dataset.json"].id, "dataset.json")]), digests)
            if kind == "scores" and "spend.json" in records:
                yield from _scores(folder, records["spend.json"], layout, digests)


def _scores(folder: Path, spend: Spend, layout: Layout, digests: Digests) -> Iterator[UserError]:
    if spend.subject != folder.name:
        yield UserError(f"{folder / 'spend.json'}: subject", spend.subject, f"the folder is of {folder.name}: swapped or copied")
    dataset, public_model = folder.name.split("--")[:2]
    known, _ = read_records(Path(layout.dataset(dataset, "")), {"dataset.json": DatasetRecord})
    if known and spend.dataset_id != known["dataset.json"].id:
        remedy = f"the dataset is {known['dataset.json'].id[:12]}: made on other data"
        yield UserError(f"{folder / 'spend.json'}: dataset_id", spend.dataset_id[:12], remedy)
    files = {
        "model": layout.model(public_model, "model.json"),
        "candidate_table": layout.model(public_model, "candidates.csv"),
        "latents": layout.latents(dataset, public_model, "latents.safetensors"),
    }
    named = [(Path(files[name]), digest, "spend.json") for name, digest in spend.made_from.items() if name in files]
    named += [(folder / "scores.csv", spend.digest, "spend.json"), (folder / "private.json", spend.private, "spend.json")]
    yield from changed(iter(named), digests)


def _joined(root: Path, merged: Merged | None, digests: Digests) -> Iterator[UserError]:
    """Verify that a folder of joined results has what was joined."""
    for run, digest in merged.runs.items() if merged else ():
        path = root / "runs" / run / "metrics.json"
        if not path.exists():
            yield UserError(str(path), "missing", "merged.json names it: merge again")
        yield from changed(iter([(path, digest, "merged.json")]), digests)


def _missing(layout: Layout, config: Config | None) -> Iterator[UserError]:
    for run in config.runs if config else ():
        for path, what in ((layout.run(run.id, ""), "missing run"), (layout.run(run.id, "metrics.json"), "not evaluated")):
            if not Path(path).exists():
                yield UserError(path, what, f"the config {config.name} has it: run the workflow again")
                break


def _other_protocols(runs: Sequence[RunFiles], config: Config | None) -> Iterator[UserError]:
    """Find records of another protocol than the config's or, without one, than most."""
    told = [
        (run.folder / name, protocol_of(record))
        for run in runs
        for name, record in run.records.items()
        if name in ("fidelity.json", "utility.json", "metrics.json")
    ]
    counts = Counter(protocol["protocol"] for _, protocol in told)
    right = config.evaluation.protocol if config else next(iter(counts.most_common(1)), (None, 0))[0]
    contents: dict[tuple[str, object], tuple[Path, object]] = {}
    for path, protocol in told:
        if protocol["protocol"] != right:
            yield UserError(f"{path}: protocol", protocol["protocol"], f"the others have {right}: evaluate all with one protocol")
        for key, value in protocol.items():
            first, known = contents.setdefault((protocol["protocol"], key), (path, value))
            if value != known:
                yield UserError(
                    f"{path}: {key}", value, f"{first} has {known!r} under the same name: evaluate all with one version"
                )


def _other_versions(runs: Sequence[RunFiles]) -> Iterator[UserError]:
    """Find records of another version of the package than most; other commits of one version are logged only."""
    made = [(run.folder / name, record.provenance) for run in runs for name, record in run.records.items() if _has_maker(record)]
    versions = Counter(maker.get("versions", {}).get("dpsapf") for _, maker in made)
    commits = Counter(str(maker.get("git_commit")) for _, maker in made)
    if len(commits) > 1:
        LOG.warning("records come from several commits: %s", ", ".join(f"{name} ({count})" for name, count in commits.items()))
    for path, maker in made:
        version, common = maker.get("versions", {}).get("dpsapf"), versions.most_common(1)[0][0]
        if version != common:
            yield UserError(f"{path}: version of dpsapf", version, f"most records have {common}: make the run again with one")


def _has_maker(record: Checked) -> bool:
    return bool(getattr(record, "provenance", None))


def _other_table(layout: Layout, runs: Sequence[RunFiles]) -> Iterator[UserError]:
    """Compare runs.csv, if it is there, with what its runs' metrics.json give."""
    path = Path(layout.table("runs.csv"))
    known: dict[str, Metrics] = {run.folder.name: run.records["metrics.json"] for run in runs if "metrics.json" in run.records}
    if not path.exists():
        return
    try:
        table = _parsed(path)
        told = table["run_id"][table["accuracy"].notna()].tolist()  # a row without values says that a run is missing
    except (ValueError, KeyError) as error:
        yield UserError(str(path), "unreadable", f"aggregate again ({error})")
        return
    odd = sorted(set(told) ^ set(known))
    if odd or len(told) != len(set(told)):
        yield UserError(f"{path}: run_id", odd or told, "are not the runs that have a metrics.json: aggregate again")
        return
    table = table[table["run_id"].isin(told)].reset_index(drop=True)
    again = _parsed(StringIO(run_table([known[name] for name in told]).to_csv(index=False)))
    absent = [name for name in again if name not in table]
    if absent:
        yield UserError(f"{path}: columns", ", ".join(absent), "are missing beside what metrics.json gives: aggregate again")
    for column in [name for name in again if name in table]:
        other = (again[column] != table[column]) & ~(again[column].isna() & table[column].isna())
        if other.any():
            yield UserError(
                f"{path}: {column}", ", ".join(again["run_id"][other]), "is not what metrics.json says: aggregate again"
            )


def _parsed(source: Path | StringIO) -> pd.DataFrame:
    return pd.read_csv(source, float_precision="round_trip", low_memory=False)


def _left_over(root: Path) -> Iterator[UserError]:
    for path in sorted(root.rglob("*")):
        if LEFT_OVER.search(path.name):
            yield UserError(str(path), "left over", "a stage was interrupted: run it again to go on, or delete the file")


def _locked(root: Path) -> Iterator[UserError]:
    path = root / LOCK
    if not path.exists():
        return
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield UserError(str(path), file.read().strip(), "works on these results: wait for its end, then check again")
        except OSError as error:
            LOG.warning("%s: its file system has no locks (%s)", root, error.strerror)
