"""compare-with-paper: which of the paper's claims, and of its published numbers, these results reproduce.

One rule judges everything. Each comparison has an interval of its mean difference over seeds (Student's t, paired), at the
level that Holm's correction over all comparisons of its claim in that metric gives it. A claim says in which region the
difference should be (above 0, below 0, or within the margin). A comparison whose interval lies inside the region is
``reproduced``, one whose interval lies outside is ``not reproduced``, and one whose interval has an end of the region in it
``cannot tell``. A claim is reproduced if all its comparisons are, not reproduced if one of them is not, and open otherwise.
"""

import logging
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import pandas as pd

from dpsapf.aggregation.multiple_tests import LEVEL, half_width, holm, p_value
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic, write_text
from paper_figures.claims import ACCURACY, CLAIMS, FID_FACTOR, PARAMETERS, Claim, Expected, Metric
from paper_figures.comparisons import Comparison, matching, of_claim, of_number, unique
from paper_figures.paired_differences import smallest_visible
from paper_figures.published import DATASETS, PROTOCOLS, PUBLIC_MODELS, TABLES, TRANSFORMERS, published
from paper_figures.results import Results, load_results
from paper_figures.tables import NOTHING, Cell, Table, markdown

if typing.TYPE_CHECKING:
    from dpsapf.experiment.stages import CompareWithPaper

LOG = logging.getLogger("dpsapf")
REPRODUCED, NOT_REPRODUCED, OPEN, NOT_RUN = "reproduced", "not reproduced", "cannot tell at this power", "not run"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, OPEN, NOT_RUN)
CLAIM, NUMBER, RESULTS = "claim", "published number", "results folder"
NOT_USED = "not used"
SHARED = "Each of its comparisons is one of another folder's, or has one seed where another folder has more."
ELSEWHERE = "Direction only: not the paper's dataset, public model and protocol."


@dataclass(frozen=True)
class Judged:
    """A comparison with its corrected interval and verdict; numbers as in the metric's unit, logs where it has them."""

    comparison: Comparison
    mean: float
    low: float
    high: float
    p: float
    p_corrected: float
    visible: float
    verdict: str

    @property
    def seeds(self) -> int:
        """Seeds that both sides have."""
        return len(self.comparison.differences)


def compare_with_paper(options: "CompareWithPaper") -> None:
    """Judge the paper's claims on results folders (the sub-command ``compare-with-paper``).

    Raises:
        UserError: a folder has no tables, or stands twice.
    """
    if len(set(options.results)) < len(options.results):
        raise UserError("--results", str(options.results[-1]), "a folder stands twice: give each once")
    data = judge_all([load_results(folder, selections_needed=False) for folder in options.results])
    with atomic(options.out) as temporary:
        data.to_csv(temporary, index=False)
    write_text(options.out.with_suffix(".md"), markdown(draw(data)))
    LOG.info("%s", counts(data))
    for line in unused(data):
        LOG.warning("no claim uses %s", line)


def prepare(results: Results) -> pd.DataFrame:
    """Judge one results folder; see `judge_all`."""
    return judge_all([results])


def judge_all(folders: Sequence[Results]) -> pd.DataFrame:
    """Judge every claim in each of its metrics, and every published number.

    Returns:
        One row each: ``kind``, ``claim`` (its name), ``text``, ``source``, ``metric``, ``comparisons`` and how many of them
        were ``reproduced`` and ``not_reproduced``; ``where``, ``ours``, ``low``, ``high``, ``p``, ``p_corrected``, ``seeds``
        and ``smallest_visible`` of the comparison that decides (the weakest where all agree, the clearest that disagrees);
        ``unit``; what the ``paper`` has; ``verdict`` and ``why``. A folder that takes part in none of them has a row, too, of
        kind `RESULTS`.
    """
    claims = [(claim, metric) for claim in CLAIMS for metric in claim.metrics]
    numbers = [(table, row, metric) for table in TABLES for row in _published(table) for metric in (ACCURACY, FID_FACTOR)]
    found = [[of_claim(claim, metric, results) for results in folders] for claim, metric in claims]
    found += [[of_number(row, metric, results) for results in folders] for _, row, metric in numbers]
    judged = [unique(list(chain(*of_folders))) for of_folders in found]
    rows = [_claim_row(*claim, comparisons) for claim, comparisons in zip(claims, judged, strict=False)]
    rows += [_number_row(*number, comparisons) for number, comparisons in zip(numbers, judged[len(claims) :], strict=True)]
    return pd.DataFrame(rows + _unused_rows(folders, found, judged))


def _published(table: str) -> list[dict]:
    return published(table).to_dict("records")


def _unused_rows(
    folders: Sequence[Results], found: Sequence[Sequence[list[Comparison]]], judged: Sequence[list[Comparison]]
) -> list[dict[str, object]]:
    """Name the folders none of whose comparisons is judged; ``found`` has a list of comparisons for each of them."""
    used, rows = {id(one) for comparisons in judged for one in comparisons}, []
    for results, own in zip(folders, zip(*found, strict=True), strict=True):
        comparisons = list(chain(*own))
        if used.isdisjoint(map(id, comparisons)):
            row = {"kind": RESULTS, "claim": results.layout.root.name, "text": "", "source": "tables/runs.csv", "metric": "any"}
            row |= _outcome([], ACCURACY) | {"unit": "", "paper": "", "verdict": NOT_USED}
            methods = ", ".join(results.runs["method"].unique())
            lone = f"No two of its runs (of {methods}) are the two sides of a claim at one setting and seed."
            rows.append(row | {"why": SHARED if comparisons else lone})
    return rows


def _claim_row(claim: Claim, metric: Metric, comparisons: Sequence[Comparison]) -> dict[str, object]:
    judged = judge(comparisons, region(metric, claim.expected), metric.exact)
    row = {"kind": CLAIM, "claim": claim.id, "text": claim.text, "source": claim.source, "metric": metric.name}
    row |= _outcome(judged, metric) | {"unit": metric.unit, "paper": papers_own(claim, metric)}
    return row | {"verdict": verdict(judged), "why": why(judged, metric, claim.expected)}


def _number_row(table: str, row: dict, metric: Metric, comparisons: Sequence[Comparison]) -> dict[str, object]:
    margin = metric.number_margin
    judged = judge(comparisons, (-margin, margin), exact=False)
    share = "" if pd.isna(row["ratio"]) else f", {100 * row['ratio']:g} %"
    text = f"{row['name']} on {row['dataset']}, {row['public_model']}{share}, ε = {row['epsilon']:g}"
    told = {"kind": NUMBER, "claim": table, "text": text, "source": f"{table}.csv", "metric": metric.name}
    told |= _outcome(judged, metric) | {"unit": f"{metric.unit} minus the paper's".strip(), "paper": f"{row[metric.column]:g}"}
    if not judged:
        protocols = " or ".join(PROTOCOLS)
        return told | {"verdict": NOT_RUN, "why": f"No runs of this dataset, public model and setting under {protocols}."}
    return told | {"verdict": verdict(judged), "why": why(judged, metric, "level", margin)}


def region(metric: Metric, expected: Expected) -> tuple[float, float]:
    """Return the open interval in which a difference is as the paper claims."""
    if expected == "level":
        return -metric.margin, metric.margin
    upwards = (expected == "ahead") == (metric.better > 0)
    return (0.0, math.inf) if upwards else (-math.inf, 0.0)


def judge(comparisons: Sequence[Comparison], wanted: tuple[float, float], exact: bool) -> list[Judged]:
    """Judge each comparison of one claim by the rule of this module.

    Args:
        comparisons: of one claim and metric; Holm's family.
        wanted: the region: an open interval.
        exact: True if the values are counted: the least and the largest difference take the place of the interval.
    """
    if exact:
        return [_counted(one, wanted) for one in comparisons]
    spreads = [float(one.differences.std(ddof=1)) if len(one.differences) > 1 else math.nan for one in comparisons]
    p_values = [_least_sure(one, sd, wanted) for one, sd in zip(comparisons, spreads, strict=True)]
    corrected = holm(p_values)
    judged = []
    for one, sd, p, p_corrected, level in zip(comparisons, spreads, p_values, corrected.p, corrected.levels, strict=True):
        n, mean = len(one.differences), float(one.differences.mean())
        half = half_width(sd, n, level)
        visible = smallest_visible(n, level) * sd if n > 1 else math.nan
        told = _place(mean - half, mean + half, wanted) if p_corrected <= LEVEL else OPEN
        judged.append(Judged(one, mean, mean - half, mean + half, p, p_corrected, visible, told))
    return judged


def _least_sure(one: Comparison, sd: float, wanted: tuple[float, float]) -> float:
    """Return the p-value at the end of the region that is harder to exclude: at that error the interval decides."""
    n, mean = len(one.differences), float(one.differences.mean())
    return max(p_value(mean, sd, n, bound) for bound in wanted if math.isfinite(bound))


def _counted(one: Comparison, wanted: tuple[float, float]) -> Judged:
    low, high = float(one.differences.min()), float(one.differences.max())
    return Judged(one, float(one.differences.mean()), low, high, math.nan, math.nan, math.nan, _place(low, high, wanted))


def _place(low: float, high: float, wanted: tuple[float, float]) -> str:
    if wanted[0] < low and high < wanted[1]:
        return REPRODUCED
    return NOT_REPRODUCED if high <= wanted[0] or low >= wanted[1] else OPEN


def verdict(judged: Sequence[Judged]) -> str:
    """Combine the comparisons of a claim, which is about all of them."""
    found = {one.verdict for one in judged}
    if not found:
        return NOT_RUN
    return NOT_REPRODUCED if NOT_REPRODUCED in found else OPEN if OPEN in found else REPRODUCED


def deciding(judged: Sequence[Judged]) -> Judged:
    """Return the comparison that decides: the clearest of those against the paper, else the least clear one."""
    against, unclear = ([one for one in judged if one.verdict == name] for name in (NOT_REPRODUCED, OPEN))
    if against:
        return min(against, key=_clearness)
    return max(unclear or judged, key=_clearness)


def _clearness(one: Judged) -> float:
    return -1.0 if math.isnan(one.p) else one.p


def _outcome(judged: Sequence[Judged], metric: Metric) -> dict[str, object]:
    row = {
        "comparisons": len(judged),
        "reproduced": sum(one.verdict == REPRODUCED for one in judged),
        "not_reproduced": sum(one.verdict == NOT_REPRODUCED for one in judged),
    }
    if not judged:
        empty = ("ours", "low", "high", "p", "p_corrected", "seeds", "smallest_visible")
        return row | {"where": ""} | dict.fromkeys(empty, math.nan)
    one = deciding(judged)
    shown = {"ours": one.mean, "low": one.low, "high": one.high, "smallest_visible": one.visible}
    shown = {name: math.exp(value) if metric.log else value for name, value in shown.items()}
    return row | {"where": where(one.comparison), "p": one.p, "p_corrected": one.p_corrected, "seeds": one.seeds} | shown


def where(comparison: Comparison) -> str:
    """Name a comparison: dataset, model, epsilon, learning rate and ratio where it has them, and its results folder."""
    setting = {key: value for key, value in comparison.setting.items() if not pd.isna(value)}
    named = [f"{setting['dataset']}, {setting['public_model']}"]
    named += [f"ε = {setting['epsilon']:g}"] if "epsilon" in setting else []
    named += [f"learning rate {setting['learning_rate']}"] if "learning_rate" in setting else []
    named += [f"{100 * setting['ratio']:g} %"] if "ratio" in setting else []
    named += [f"sigma_s {setting['sigma_s']:g}"] if "sigma_s" in setting else []
    return f"{', '.join(named)} ({comparison.folder})"


def why(judged: Sequence[Judged], metric: Metric, expected: Expected, margin: float | None = None) -> str:
    """Say in a sentence why the verdict is what it is, and in another one whether it is of the paper's own setting."""
    if not judged:
        return "No results have both sides."
    margin = metric.margin if margin is None else margin
    allowed = f"a factor of {math.exp(margin):.3g}" if metric.log else f"{margin:g} {metric.unit}"
    zero = "1" if metric.log else "0"
    goal = f"within {allowed}" if expected == "level" else f"on the paper's side of {zero}"
    told, count = verdict(judged), len(judged)
    interval = "difference lies" if metric.exact else "corrected interval lies"
    if told == REPRODUCED:
        text = f"The {interval} {goal} in {_of(count, count)}."
    elif told == NOT_REPRODUCED:
        against = sum(one.verdict == NOT_REPRODUCED for one in judged)
        beyond = f"beyond {allowed}" if expected == "level" else f"on the other side of {zero}"
        text = f"The {interval} {beyond} in {_of(against, count)}."
    else:
        text = _open_text(judged, metric, goal)
    return text if all(_papers_setting(one.comparison) for one in judged) else f"{text} {ELSEWHERE}"


def _open_text(judged: Sequence[Judged], metric: Metric, goal: str) -> str:
    sure, single = sum(one.verdict == REPRODUCED for one in judged), sum(one.seeds < 2 for one in judged)
    text = f"The corrected interval lies {goal} in {_of(sure, len(judged))}"
    text += f"; {single} {'have' if single > 1 else 'has'} one seed and so no interval" * (single > 0)
    one = deciding(judged)
    if math.isnan(one.visible):
        return f"{text}."
    visible = f"a factor of {math.exp(one.visible):.3g}" if metric.log else f"{one.visible:.2g} {metric.unit}".strip()
    return f"{text}; with {one.seeds} seeds the smallest difference to be seen in the least clear one is {visible}."


def _of(some: int, count: int) -> str:
    return f"{some} of {count} comparison{'s' * (count != 1)}"


def _papers_setting(comparison: Comparison) -> bool:
    """Whether the paper has the dataset, and the public model, and says or codes the protocol."""
    dataset, model = comparison.setting["dataset"], comparison.setting["public_model"]
    known = dataset in DATASETS.values() and model in (*PUBLIC_MODELS.values(), *TRANSFORMERS)
    return known and comparison.protocol in PROTOCOLS


def papers_own(claim: Claim, metric: Metric) -> str:
    """Return the paper's own differences, from the least to the largest, or what it says; empty if it publishes neither."""
    if claim.published is None:
        return claim.quoted.get(metric.name, "")
    name, ours, theirs = claim.published
    table = published(name)
    keys = ["dataset", "public_model", "epsilon"]
    sides = [matching(table, side) for side in (ours, theirs)]
    pairs = sides[0].merge(sides[1], on=keys, suffixes=("", "_theirs"))
    one, other = pairs[metric.column], pairs[metric.column + "_theirs"]
    values = sorted(one / other if metric.log else one - other)
    ends = list(dict.fromkeys((values[0], values[-1])))
    return f"{' to '.join(_shown(value, metric) for value in ends)} {claim.quoted.get(metric.name, '')}".strip()


def _shown(value: float, metric: Metric) -> str:
    return f"×{value:.2f}" if metric.log else f"{value:+.1f}"


def counts(data: pd.DataFrame) -> str:
    """Say how many claims, and how many published numbers, have each verdict."""
    kinds = ((CLAIM, "Claims"), (NUMBER, "published numbers"))
    return "; ".join(f"{name}: {tally(data[data['kind'] == kind]['verdict'])}" for kind, name in kinds) + "."


def unused(data: pd.DataFrame) -> list[str]:
    """Name each results folder that no claim uses, with the reason."""
    rows = data[data["kind"] == RESULTS]
    return [f"{folder}: {reason}" for folder, reason in zip(rows["claim"], rows["why"], strict=True)]


def tally(verdicts: pd.Series) -> str:
    """Count verdicts, in the order of `VERDICTS`; those that nothing has are left out."""
    found = verdicts.value_counts()
    return ", ".join(f"{found[name]} {name}" for name in VERDICTS if name in found)


def draw(data: pd.DataFrame) -> Table:
    """Lay the rows out: a line for each claim and metric, and one for each published table, whose numbers are counted."""
    claims = [_line(row) for row in data[data["kind"] == CLAIM].to_dict("records")]
    numbers = data[data["kind"] == NUMBER].groupby("claim", sort=False)
    tables = [_summary(table, rows) for table, rows in numbers]
    header = ("claim", "metric", "verdict", "ours", "the paper", "where", "why")
    return Table(header, tuple(claims + tables), names=len(header), note=" ".join([counts(data), *_unused_note(data)]))


def _unused_note(data: pd.DataFrame) -> list[str]:
    lines = unused(data)
    return [f"Results that no claim uses: {' '.join(lines)}"] if lines else []


def _line(row: dict[str, typing.Any]) -> tuple[Cell, ...]:
    texts = (_interval(row), row["paper"] or NOTHING, row["where"] or NOTHING, row["why"])
    return (Cell(row["text"]), Cell(row["metric"]), Cell(row["verdict"], bold=True), *map(Cell, texts))


def _interval(row: dict[str, typing.Any]) -> str:
    if math.isnan(row["ours"]):
        return NOTHING
    factor, counted = row["unit"].startswith(FID_FACTOR.unit), row["unit"] == PARAMETERS.unit
    sign, places = ("", 2) if factor else ("+", 0 if counted else 2)
    ours, low, high = (f"{'×' * factor}{row[name]:{sign},.{places}f}" for name in ("ours", "low", "high"))
    interval = "" if math.isnan(row["low"]) else f" [{low}, {high}]"
    unit = "" if factor else f" {row['unit']}"
    return f"{ours}{interval}{unit}".strip()


def _summary(table: str, rows: pd.DataFrame) -> tuple[Cell, ...]:
    settings, reasons = rows["text"].nunique(), rows["why"].unique()
    reason = reasons[0] if len(reasons) == 1 else "One by one in the .csv."
    names = (f"{settings} published settings ({table}.csv)", "accuracy, FID")
    return (*map(Cell, names), Cell(tally(rows["verdict"]), bold=True), *map(Cell, (NOTHING, "in the .csv", NOTHING, reason)))
