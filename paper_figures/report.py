"""write-report: one HTML file that works offline, made of a results folder's tables, figures and public records."""

import base64
import gzip
import hashlib
import io
import logging
import typing
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import itables.options
import jinja2
import pandas as pd
from PIL import Image

from dpsapf.experiment.records import CLAIMED, Ledger
from dpsapf.experiment.runs import expand
from dpsapf.experiment.settings import Config
from dpsapf.support.checked import parse
from dpsapf.support.files import write_text
from dpsapf.support.provenance import provenance
from dpsapf.support.records import as_json, read_record
from dpsapf.support.yaml_files import load_yaml
from paper_figures.captions import Captions
from paper_figures.draw import ITEMS
from paper_figures.grids import (
    AXES,
    Grid,
    common,
    drawn_grid,
    ledger_grid,
    run_grid,
    summary_grid,
    value,
    varying,
    words,
)
from paper_figures.results import Results, label, load_results

if typing.TYPE_CHECKING:
    from dpsapf.experiment.stages import WriteReport

LOG = logging.getLogger("dpsapf")
TEMPLATES = Path(__file__).parent / "templates"
LARGEST_SHEET = 1200  # pixels of a run's sheet of samples; a larger one is shrunk, so that the page stays one that can be sent
NAMED = 20  # missing runs that are named, at most
SHRUNK = {"format": "WEBP", "quality": 88}
VERDICTS = "verdicts"  # has a section of its own
UNITS = "Accuracies, precision and recall are fractions."
AXIS_OF = {  # the axis that a figure is about: it stands with the study that has most values of it
    "ratio_curves": "ratio",
    "selection_map": "ratio",
    "paper_reference_ratio": "ratio",
    "epsilon_curves": "epsilon",
    "paper_reference_epsilon": "epsilon",
    "variants": "method",
    "claims_by_rate": "learning_rate",
    "stability_map": "learning_rate",
    "stability_map_accuracy": "learning_rate",
    "stability_edges": "learning_rate",
    "selection_regret": "learning_rate",
    "noise_rise": "learning_rate",
    "tuned_and_shared": "learning_rate",
    "tuned_differences": "learning_rate",
}


@dataclass(frozen=True)
class Exhibit:
    """A figure or a drawn table with its caption: either a picture, as a data URI, or a grid."""

    name: str
    title: str
    caption: str  # HTML
    alt: str
    picture: str | None = None
    grid: Grid | None = None


@dataclass(frozen=True)
class Sheet:
    """A run's sheet of synthetic images, as a data URI; ``alt`` says of which run."""

    title: str
    picture: str
    alt: str
    shrunk: bool


@dataclass
class Section:
    """A part of the page under one heading; what it lacks is told in ``notes``, what must not be overlooked in ``alarms``."""

    title: str
    terms: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    exhibits: list[Exhibit] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)


def write_report(options: "WriteReport") -> None:
    """Write the page of a results folder (the sub-command ``write-report``).

    Raises:
        UserError: the results folder has no tables, or a record or the config does not fit.
    """
    config = parse(Config, load_yaml(options.configfile), str(options.configfile)) if options.configfile else None
    page = render(options.results, config, options.captions)
    write_text(options.report, page)
    LOG.info("%s: %.1f MB", options.report, len(page.encode()) / 1e6)


def render(root: Path, config: Config | None, captions: Path) -> str:
    """Make the page.

    Args:
        root: folder of one config's results, with ``tables/`` in it. What else it may have is ``figures/``, ``runs/`` with
            ledgers and sheets of samples; what is not there is left out, and a line says so.
        config: gives the studies; without it, a section is a dataset.
        captions: template of the figures' captions.

    Returns:
        HTML that loads nothing, from nowhere.

    Raises:
        UserError: there are no tables.
    """
    results = load_results(root)
    ledgers = {run: read_record(path, Ledger) for run, path in _files(results, "ledger.json")}
    known = as_json(config) if config else {"name": root.name, "evaluation": {"protocol": results.protocol}}
    exhibits = list(_exhibits(results, Captions(captions, known)))
    sections = [_overview(results, config, ledgers), *_verdicts(exhibits), *_studies(results, config, exhibits)]
    sections += [_ledger(results, ledgers), _provenance(ledgers)]
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    bundle = Path(itables.options.dt_bundle)
    strict = {"undefined": jinja2.StrictUndefined, "autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), **strict)
    return environment.get_template("report.html").render(
        name=known["name"],
        sections=sections,
        shows_real_images=any(exhibit.name == "contact_sheet" for exhibit in exhibits),
        style=bundle.with_suffix(".css").read_text(encoding="utf-8") + (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        datatables=base64.b64encode(gzip.compress(bundle.read_bytes(), mtime=0)).decode(),
    )


def _files(results: Results, name: str) -> Iterator[tuple[str, Path]]:
    """A file of each run that has it, in the order of the runs."""
    paths = [(run, Path(results.layout.run(run, name))) for run in results.runs["run_id"]]
    return ((run, path) for run, path in paths if path.exists())


def _exhibits(results: Results, captions: Captions) -> Iterator[Exhibit]:
    """Every figure and drawn table of the results folder, in the order in which they are drawn, unknown ones last."""
    folder, order = Path(results.layout.figures), [item.name for item in ITEMS]
    drawn = {path.stem: path for suffix in ("png", "md") for path in sorted(folder.glob(f"*.{suffix}"))}
    for name in sorted(drawn, key=lambda name: (order.index(name) if name in order else len(order), name)):
        title, caption, path = name.replace("_", " ").capitalize(), captions.of(name), drawn[name]
        if path.suffix == ".md":
            grid = drawn_grid(path.read_text(encoding="utf-8"), caption.sentence)
            yield Exhibit(name, title, caption.html, caption.sentence, grid=grid)
        else:
            yield Exhibit(name, title, caption.html, caption.sentence, picture=_uri(path.read_bytes(), "png"))


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _overview(results: Results, config: Config | None, ledgers: dict[str, Ledger]) -> Section:
    runs = results.runs
    elsewhere = runs["method"] == "external"
    spent = runs["delta"].notna() & ~elsewhere
    held = spent & runs["not_for_release"].notna() if "not_for_release" in runs else ~spent & spent
    commits = sorted({str(record.provenance.get("git_commit")) for record in ledgers.values()})
    terms = [
        ("datasets", ", ".join(runs["dataset"].unique())),
        ("public models", ", ".join(runs["public_model"].unique())),
        ("runs", f"{len(runs):,}, of which {spent.sum():,} released something of private images{_claimed(elsewhere.sum())}"),
        ("seeds", ", ".join(map(str, sorted(runs["seed"].unique())))),
        ("evaluation protocol", results.protocol),
        ("commit", ", ".join(commits) or "not recorded"),
    ]
    section = Section("Overview", terms)
    if config:
        absent = [run.id for run in config.runs if run.id not in set(runs["run_id"])]
        named = ", ".join(absent[:NAMED]) + (f" and {len(absent) - NAMED:,} more" if len(absent) > NAMED else "")
        section.alarms += [f"Missing, of the config's {len(config.runs):,} runs: {named}."] if absent else []
    if held.any():
        section.alarms.append(f"Not for release as private: {held.sum():,} of these {spent.sum():,}; the ledger says why.")
    return section


def _claimed(runs: int) -> str:
    return f", and {runs:,} made elsewhere, whose ε is {CLAIMED}" if runs else ""


def _verdicts(exhibits: list[Exhibit]) -> list[Section]:
    judged = [exhibit for exhibit in exhibits if exhibit.name == VERDICTS]
    return [Section("Verdicts on the paper's claims", exhibits=judged)] if judged else []


def _studies(results: Results, config: Config | None, exhibits: list[Exhibit]) -> Iterator[Section]:
    """What all runs show together, then a section per study, or per dataset where no config names the studies."""
    groups = _groups(results, config)
    places = {exhibit.name: _place(exhibit.name, config) for exhibit in exhibits}
    of_all = [exhibit for exhibit in exhibits if places[exhibit.name] not in groups and exhibit.name != VERDICTS]
    together = Section("All studies together", exhibits=of_all)
    if not exhibits:
        together.notes.append("No figures and drawn tables: the results have no folder figures. Run `dpsapf draw-figures`.")
    yield together
    sheets = dict(_files(results, "contact_sheet.png"))
    shown: set[str] = set()
    for name, ids in groups.items():
        section = _group(results, ids, sheets, shown)
        section.title = f"{'Study' if config and name in config.studies else 'Runs'}: {name}"
        section.exhibits += [exhibit for exhibit in exhibits if places[exhibit.name] == name]
        yield section


def _groups(results: Results, config: Config | None) -> dict[str, list[str]]:
    """Ids of the runs of each study that are among the results, and of the others; by dataset if there is no config."""
    runs = results.runs
    if config is None:
        return {name: list(rows["run_id"]) for name, rows in runs.groupby("dataset", sort=False)}
    studies = {name: {run.id for run in config.matching(expand({name: study}))} for name, study in config.studies.items()}
    groups = {name: [run for run in runs["run_id"] if run in ids] for name, ids in studies.items()}
    of_none = [run for run in runs["run_id"] if not any(run in ids for ids in studies.values())]
    return {name: ids for name, ids in (groups | {"of no study": of_none}).items() if ids}


def _place(name: str, config: Config | None) -> str | None:
    """The study with most values of the axis that a figure is about, of those that name it; None: of all studies."""
    axis = AXIS_OF.get(name)
    naming = [study for study, axes in config.studies.items() if axis in axes.model_fields_set] if config and axis else []
    return max(naming, key=lambda study: len(getattr(config.studies[study], axis)), default=None)


def _group(results: Results, ids: list[str], sheets: dict[str, Path], shown: set[str]) -> Section:
    runs = results.runs[results.runs["run_id"].isin(ids)]
    settings = [axis for axis in AXES if axis != "seed"]
    own = results.summary.merge(runs[settings].drop_duplicates(), on=settings)
    section = Section("", [("alike in all its runs", ""), *common(runs)])
    section.grids = [
        summary_grid(own, results, f"Settings: mean over seeds ± half width of the 95 % interval. {UNITS}"),
        run_grid(runs, results, f"Runs. {UNITS}"),
    ]
    first = runs.sort_values("seed", kind="stable").drop_duplicates(settings).sort_index()
    chosen = [row for row in first.to_dict("records") if row["run_id"] in sheets]
    section.sheets = [_sheet(row, runs, results, sheets[row["run_id"]]) for row in chosen if row["run_id"] not in shown]
    if not chosen:
        section.notes.append("No sheets of samples: the results have no runs/RUN/contact_sheet.png of these runs.")
    elif len(section.sheets) < len(chosen):
        section.notes.append("Sheets of samples of runs that studies share stand in the first study that has them.")
    shown.update(row["run_id"] for row in chosen)
    return section


def _sheet(row: dict[str, typing.Any], runs: pd.DataFrame, results: Results, path: Path) -> Sheet:
    axes = [axis for axis in varying(runs) if axis not in ("method", "level", "ratio", "seed") and pd.notna(row[axis])]
    title = ", ".join([label(row, results.headline), *(f"{words(axis)} {value(row[axis])}" for axis in axes)])
    with Image.open(path) as image:
        shrunk = max(image.size) > LARGEST_SHEET
        picture = _shrunk(image) if shrunk else _uri(path.read_bytes(), "png")
    return Sheet(title, picture, f"Synthetic images, a row per class: {title}", shrunk)


def _shrunk(image: Image.Image) -> str:
    smaller, buffer = image.convert("RGB"), io.BytesIO()
    smaller.thumbnail((LARGEST_SHEET, LARGEST_SHEET), Image.Resampling.LANCZOS)
    smaller.save(buffer, **SHRUNK)
    return _uri(buffer.getvalue(), "webp")


def _ledger(results: Results, ledgers: dict[str, Ledger]) -> Section:
    section = Section("Privacy ledger")
    section.grids = [ledger_grid(results.runs, ledgers, results, "What each run spent of its target, under each accountant")]
    without = len(results.runs) - len(ledgers)
    relations = sorted({ledger.relation for ledger in ledgers.values()})
    section.terms = [("neighbouring image sets", "; ".join(relations))] if relations else []
    if without:
        section.notes.append(
            f"{without:,} of {len(results.runs):,} runs have no ledger.json here: their unit and releases are not told."
        )
    return section


def _provenance(ledgers: dict[str, Ledger]) -> Section:
    """What made the ledgers, each kind once, and what made the page."""
    section = Section("Provenance")
    made = Counter(tuple(_made_by(ledger.provenance)) for ledger in ledgers.values() if ledger.provenance)
    for told, count in made.most_common():
        section.terms += [("ledgers", f"{count:,}"), *told]
    if not made:
        section.notes.append("The records of the runs are not in this results folder: what made them is not told.")
    section.terms += [("this page", ""), *_made_by(provenance())]
    return section


def _made_by(record: dict) -> Iterable[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return [
        ("commit", str(record["git_commit"])),
        ("Python", f"{record['python']} on {record['platform']}"),
        ("versions", versions),
    ]
