"""compare-with-paper: which of the paper's claims, and of its published numbers, these results reproduce.

`paper_figures.claims` says what is claimed, `paper_figures.comparisons` finds it in the tables, `paper_figures.judging` judges it
by one rule, and this module writes down what came out, and why.
"""

import logging
import math
import typing
from collections.abc import Mapping, Sequence
from itertools import chain

import pandas as pd

from dpsapf.aggregation.welch import MOST
from dpsapf.experiment.runs import written
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic, write_text
from paper_figures.claims import ACCURACY, CLAIMS, FACTOR, FID, PARAMETERS, Claim, Metric
from paper_figures.comparisons import Comparison, of_claim, of_number, one_each
from paper_figures.judging import (
    NEEDS,
    NOT_REPRODUCED,
    OPEN,
    REPRODUCED,
    STATES,
    UNDECIDED,
    VERDICTS,
    Entry,
    Rule,
    against,
    count,
    deciding,
    entries,
    excluded,
    judge,
    rule_of,
    seeds_that_decide,
    verdict,
)
from paper_figures.learning_rates import AUTO
from paper_figures.margins import margin, paper_effects, smallest_effect
from paper_figures.published import DATASETS, PROTOCOLS, PUBLIC_MODELS, RATIO, TABLES, TRANSFORMERS, published
from paper_figures.results import Results, load_results
from paper_figures.tables import NOTHING, Cell, Table, markdown

if typing.TYPE_CHECKING:
    from dpsapf.experiment.stages import CompareWithPaper

LOG = logging.getLogger("dpsapf")
CLAIM, NUMBER, RESULTS = "claim", "published number", "results folder"
NOT_USED = "not used"
ELSEWHERE = "Direction only: not the paper's dataset, public model and protocol."
VALUES = ("ours", "low", "high", "seeds", "supports", "opposes", "seeds_needed")


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
        One row each: ``kind``, ``claim`` (its name), ``text``, ``source``, ``metric``, ``expected`` and ``margin``; how many
        comparisons were ``ahead``, ``level``, ``behind`` and ``undecided``; ``where``, ``ours``, ``low``, ``high``, ``seeds``
        and the p-values ``supports`` and ``opposes`` of the comparison that decides; ``seeds_needed`` a side, where the verdict
        is open; ``unit``; what the ``paper`` has; ``verdict`` and ``why``. A folder that takes part in none of them has a row,
        too, of kind `RESULTS`.
    """
    claims = [(claim, metric) for claim in CLAIMS for metric in claim.metrics]
    numbers = [(table, row, metric) for table in TABLES for row in _published(table) for metric in (ACCURACY, FID)]
    found = [[of_claim(claim, metric, results) for results in folders] for claim, metric in claims]
    found += [[of_number(row, metric, results) for results in folders] for _, row, metric in numbers]
    chosen = [one_each(list(chain(*of_folders))) for of_folders in found]
    rows = [_claim_row(*claim, comparisons) for claim, comparisons in zip(claims, chosen, strict=False)]
    rows += [_number_row(*number, comparisons) for number, comparisons in zip(numbers, chosen[len(claims) :], strict=True)]
    return pd.DataFrame(rows + _unused_rows(folders, found, chosen))


def _published(table: str) -> list[dict]:
    return published(table).to_dict("records")


def _unused_rows(
    folders: Sequence[Results], found: Sequence[Sequence[list[Comparison]]], chosen: Sequence[list[Comparison]]
) -> list[dict[str, object]]:
    """Name the folders none of whose comparisons is judged; ``found`` has a list of comparisons for each of them."""
    rows = []
    for place, results in enumerate(folders):
        own = [one for of_folders in found for one in of_folders[place]]
        if not any(one is judged for one in own for judged in chain(*chosen)):
            row = {"kind": RESULTS, "claim": results.layout.root.name, "text": "", "source": "tables/runs.csv", "metric": "any"}
            row |= {"expected": "", "margin": math.nan} | _outcome([], None) | {"unit": "", "paper": "", "verdict": NOT_USED}
            rows.append(row | {"why": _reason(results, own, chosen)})
    return rows


def _reason(results: Results, own: Sequence[Comparison], chosen: Sequence[list[Comparison]]) -> str:
    if not own:
        methods = ", ".join(results.runs["method"].unique())
        return f"No two settings of its runs (of {methods}) are the two sides of a claim."
    entries_of_its_own = {one.entry for one in own}
    others = {one.folder: None for one in chain(*chosen) if one.entry in entries_of_its_own}
    return f"What it compares has more seeds, or is nearer to the paper's setting, in {', '.join(others)}."


def _claim_row(claim: Claim, metric: Metric, comparisons: Sequence[Comparison]) -> dict[str, object]:
    rule = rule_of(metric, claim.expected, margin(claim, metric))
    found, lacking = entries([judge(one, rule) for one in comparisons]), _lacking(claim, comparisons)
    told = NEEDS if claim.needs and not found else verdict(found, complete=not lacking)
    row = {"kind": CLAIM, "claim": claim.id, "text": claim.text, "source": claim.source, "metric": metric.name}
    row |= _common(found, metric, rule, told) | {"paper": papers_own(claim, metric), "verdict": told}
    if not found:
        return row | {"why": claim.needs or "No results have both sides."}
    texts = [
        _told(found, rule, metric, told),
        _begins(found, claim),
        _excluded(found, claim, metric),
        *lacking,
        _elsewhere(found),
    ]
    return row | {"why": " ".join(filter(None, texts))}


def _number_row(table: str, published_row: dict, metric: Metric, comparisons: Sequence[Comparison]) -> dict[str, object]:
    rule = rule_of(metric, "level", metric.number_margin)
    found = entries([judge(one, rule) for one in comparisons])
    told = verdict(found) if found else NEEDS
    share = "" if pd.isna(published_row["ratio"]) else f", {100 * published_row['ratio']:g} %"
    setting = f"{published_row['dataset']}, {published_row['public_model']}{share}, ε = {published_row['epsilon']:g}"
    row = {"kind": NUMBER, "claim": table, "text": f"{published_row['name']} on {setting}", "source": f"{table}.csv"}
    row |= {"metric": metric.name} | _common(found, metric, rule, told)
    row |= {"paper": f"{published_row[metric.column]:g}", "verdict": told}
    return row | {"why": _told(found, rule, metric, told) if found else f"{config_of(published_row)} would decide it."}


def config_of(row: dict[str, typing.Any]) -> str:
    """Say which config has the runs of a published row."""
    if row["public_model"] in TRANSFORMERS:
        return "config/paper-dit.yaml"
    swept = row["public_model"] != PUBLIC_MODELS["SD-v1-5"] and (row["ratio"] != RATIO or row["dataset"] == DATASETS["OCTMNIST"])
    return "config/paper.yaml" + f" with {row['public_model']} in its study ratios" * swept


def _common(found: Sequence[Entry], metric: Metric, rule: Rule, told: str) -> dict[str, object]:
    shown_margin = math.exp(rule.margin) if metric.log else rule.margin
    row = {"expected": rule.expected, "margin": shown_margin} | _outcome(found, rule if found else None)
    if told != OPEN:
        row["seeds_needed"] = math.nan
    shown = {name: math.exp(row[name]) for name in ("ours", "low", "high")} if metric.log else {}
    return row | shown | {"unit": metric.unit}


def _outcome(found: Sequence[Entry], rule: Rule | None) -> dict[str, typing.Any]:
    row = {"comparisons": len(found)} | count(found)
    if rule is None:
        return row | {"where": ""} | dict.fromkeys(VALUES, math.nan)
    entry = deciding(found, rule)
    one = entry.shown
    values = (one.difference.mean, one.low, one.high, one.comparison.seeds, entry.supports, entry.opposes)
    return row | {"where": where(one.comparison)} | dict(zip(VALUES, (*values, seeds_that_decide(found, rule)), strict=True))


def where(comparison: Comparison) -> str:
    """Name a comparison: dataset, model, and what it has of epsilon, learning rate, axes; and its results folder."""
    setting = comparison.setting
    named = [f"{setting['dataset']}, {setting['public_model']}", *_epsilon(setting)]
    named += [f"learning rate {setting['rate']:g}"] if "rate" in setting else []
    named += ["learning rate auto"] if setting.get("kind") == AUTO else []
    named += [f"{100 * setting['ratio']:g} %"] if "ratio" in setting and not pd.isna(setting["ratio"]) else []
    named += [f"sigma_s {written(setting['sigma_s'])}"] if "sigma_s" in setting else []
    named += [f"{axis} {value:g}" if isinstance(value, float) else f"{axis} {value}" for axis, value in comparison.held.items()]
    return f"{', '.join(named)} ({comparison.folder})"


def _epsilon(setting: Mapping[str, typing.Any]) -> list[str]:
    return [f"ε = {setting['epsilon']:g}"] if "epsilon" in setting and not pd.isna(setting["epsilon"]) else []


def _told(found: Sequence[Entry], rule: Rule, metric: Metric, told: str) -> str:
    """Say what the comparisons show, and where it is open what would decide it."""
    beyond = f" by more than {amount(rule.margin, metric)}" if rule.expected != "level" and rule.margin else ""
    within = f" within {amount(rule.margin, metric)}" if rule.expected == "level" else ""
    claimed, states = f"{rule.expected}{beyond}{within}", count(found)
    if told == REPRODUCED:
        return f"Each of {_of(len(found), 'comparison')} is {claimed}."
    text = ", ".join(f"{states[name]} {name}" for name in (*STATES, UNDECIDED) if states[name])
    text = f"Of {_of(len(found), 'comparison')}: {text}."
    if told == NOT_REPRODUCED:
        return f"{text} {_of(len(against(found)), 'is', 'are')} shown not to be {claimed}."
    return f"{text} {_remedy(found, rule)}".strip()


def _remedy(found: Sequence[Entry], rule: Rule) -> str:
    single = sum(math.isnan(entry.shown.difference.error) for entry in found)
    text = f"{_of(single, 'has', 'have')} one seed and so no interval. " * (single > 0)
    needed = seeds_that_decide(found, rule)
    if math.isfinite(needed):
        return f"{text}About {needed} seeds a side would decide it."
    return f"{text}{MOST} seeds would not decide it." if single < len(found) else text


def _begins(found: Sequence[Entry], claim: Claim) -> str:
    """Say from which learning rate on a claim over learning rates holds, and where."""
    if not claim.over_rates:
        return ""
    begins: dict[str, list[str]] = {}
    for entry in found:
        setting = entry.shown.comparison.setting
        rate = f"{setting['rate']:g}" if entry.holding else "none"
        begins.setdefault(rate, []).append(", ".join([setting["dataset"], *_epsilon(setting)]))
    places = "; ".join(f"at {rate} ({', and '.join(names)})" for rate, names in sorted(begins.items()))
    return f"Of the learning rates that were tried it begins to hold {places}."


def _excluded(found: Sequence[Entry], claim: Claim, metric: Metric) -> str:
    """Say where an effect of the paper's size is excluded, if the claim is of one and has not that size everywhere."""
    effect = smallest_effect(claim, metric)
    if math.isnan(effect):
        return ""
    some = excluded(found, effect)
    which = "smallest" if claim.published else "quoted"
    return f"The paper's {which} effect, {signed(effect, metric)}, is excluded in {some} of {_of(len(found), 'comparison')}."


def _lacking(claim: Claim, comparisons: Sequence[Comparison]) -> list[str]:
    """Name the values that a claim is about and that no comparison has."""
    lacking = []
    for column, values in claim.varied.items():
        missing = [value for value in values if value not in {one.setting[column] for one in comparisons}]
        lacking += [f"Not run: {column} {', '.join(map(str, missing))}."] if missing and comparisons else []
    return lacking


def _elsewhere(found: Sequence[Entry]) -> str:
    return "" if all(_papers_setting(entry.shown.comparison) for entry in found) else ELSEWHERE


def _papers_setting(comparison: Comparison) -> bool:
    """Whether the paper has the dataset, and the public model, and says or codes the protocol."""
    dataset, model = comparison.setting["dataset"], comparison.setting["public_model"]
    known = dataset in DATASETS.values() and model in (*PUBLIC_MODELS.values(), *TRANSFORMERS)
    return known and comparison.protocol in PROTOCOLS


def amount(value: float, metric: Metric) -> str:
    """Write a margin with its unit."""
    return f"a factor of {math.exp(value):.3g}" if metric.log else f"{value:.3g} {metric.unit}"


def signed(value: float, metric: Metric) -> str:
    """Write a difference, as a factor where the metric has those."""
    return f"×{math.exp(value):.2f}" if metric.log else f"{value:+.1f}"


def _of(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def papers_own(claim: Claim, metric: Metric) -> str:
    """Return the paper's own differences, from the least to the largest, or the one that it quotes; empty if it has neither."""
    effects = paper_effects(claim, metric)
    ends = dict.fromkeys(signed(value, metric) for value in (*effects[:1], *effects[-1:]))
    return "up to " * (claim.published is None and bool(ends)) + " to ".join(ends)


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
    factor, counted = row["unit"] == FACTOR, row["unit"] == PARAMETERS.unit
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
