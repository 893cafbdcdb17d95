"""Tables and numbers of the documentation, out of the records in results/reference.

``python docs/tables.py`` rewrites them; ``--check`` changes nothing, and fails if a text and the records differ, or
if somebody typed a result. In a text, a table and a number stand between markers that a reader does not see::

    <!-- table: NAME -->
    ...
    <!-- end -->

    It took <!-- n:NAME -->21<!-- /n --> minutes.

`TABLES` and `NUMBERS` say what a name means. Markers in fenced code are left alone: they would be seen there.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import yaml

from dpsapf.experiment.columns import INTERVAL
from dpsapf.experiment.methods import TOLERATED_RISE
from paper_figures.learning_rates import CHOSEN
from paper_figures.tables import Cell, Table, amount, decimals, markdown

ROOT = Path(__file__).parents[1]
TEXTS = ("README.md", "docs/*.md", "results/reference/README.md")

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"(?P<start><!-- table: (?P<name>\S+) -->\n)(?P<value>.*?)(?P<end><!-- end -->)", re.DOTALL)
NUMBER = re.compile(r"(?P<start><!-- n:(?P<name>\S+) -->)(?P<value>.*?)(?P<end><!-- /n -->)")
LEFT_OVER = re.compile(r"<!-- (?:table:|end|n:|/n).*?-->")

# A decimal number outside markers and fences is a result that somebody typed, unless it is one of these.
ALLOWED = (
    r"Python \d\.\d+(?: (?:or|and) \d\.\d+)?",  # versions
    r"(?:arXiv[: ]|arxiv\.org/abs/)\d{4}\.\d{4,5}",  # papers
    r"`[\w. ]+(?:=|:) ?[\d.e-]+`",  # a setting with its name, such as `C = 0.1` or `ema_decay: 0.8`
)
TYPED = re.compile(r"(?<![\w.])\d+\.\d+")


class Records:
    """The files below a checkout that numbers come from.

    Args:
        root: the checkout.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "results" / "reference"

    def table(self, path: str) -> pd.DataFrame:
        """Read a CSV of results/reference."""
        return pd.read_csv(self.folder / path)

    def pipe_table(self, path: str) -> list[list[str]]:
        """Read a Markdown table of results/reference: its header, its rule and its rows, each a list of cells."""
        lines = (self.folder / path).read_text(encoding="utf-8").splitlines()
        return [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]

    def measured(self, what: str) -> dict:
        """Return the entry of measured.json on one command, as docs/measure.py wrote it."""
        entries = json.loads((self.folder / "measured.json").read_text(encoding="utf-8"))
        return next(entry for entry in entries if entry["what"] == what)

    def kept(self, name: str) -> str:
        """Return a number whose table was not kept."""
        return pd.read_csv(self.folder / "kept_numbers.csv", dtype=str).set_index("name")["value"][name]

    def test_images(self, dataset: str) -> int:
        """Return the number of test images that a dataset's entry in config/datasets.yaml holds out."""
        return yaml.safe_load((self.root / "config" / "datasets.yaml").read_text(encoding="utf-8"))[dataset]["test"]


def cut(path: str, drop: tuple[str, ...], records: Records) -> str:
    """Copy a table that paper_figures drew, without some of its columns."""
    rows = records.pipe_table(path)
    kept = [column for column, name in enumerate(rows[0]) if name not in drop]
    return "".join("| " + " | ".join(row[column] for column in kept) + " |\n" for row in rows)


def pipes(header: list[str], rows: list[list[str]]) -> str:
    """Write rows of text as a Markdown table."""
    return markdown(Table(tuple(header), tuple(tuple(map(Cell, row)) for row in rows)))


def differences(records: Records) -> str:
    """Subtract DP-LoRA from DP-SAPF in the demo, at the ratio and level of its main study, for each epsilon and dataset."""
    summary = records.table("demo/tables/summary.csv")
    datasets = list(summary["dataset"].unique())
    rows = []
    for epsilon in sorted(summary["epsilon"].dropna().unique(), reverse=True):
        pairs = {dataset: _pair(summary, dataset, epsilon) for dataset in datasets}
        for metric, name, scale, places in (("accuracy_mean", "accuracy (points)", 100, 1), ("fid_mean", "FID", 1, 2)):
            values = [pair and f"{scale * (pair[0][metric] - pair[1][metric]):+.{places}f}" for pair in pairs.values()]
            rows.append([f"{name}, ε = {epsilon:g}", *(value or "—" for value in values)])
    errors = [amount(_standard_error(summary, dataset, records.test_images(dataset)), 1) for dataset in datasets]
    rows.append(["standard error of an accuracy difference, from the number of test images alone (points)", *errors])
    return pipes(["DP-SAPF minus DP-LoRA", *datasets], rows)


def _pair(summary: pd.DataFrame, dataset: str, epsilon: float) -> tuple[pd.Series, pd.Series] | None:
    rows = summary[(summary["dataset"] == dataset) & (summary["epsilon"] == epsilon)]
    if "learning_rate" in rows:  # later tables: empty at the config's own
        rows = rows[rows["learning_rate"].isna()]
    ours = rows[(rows["method"] == "dp-sapf") & (rows["level"] == "matrix") & (rows["ratio"] == 0.3)]
    theirs = rows[rows["method"] == "dp-lora"]
    return (ours.iloc[0], theirs.iloc[0]) if len(ours) and len(theirs) else None


def _standard_error(summary: pd.DataFrame, dataset: str, images: int) -> float:
    """Return the binomial standard error of the difference of two accuracies on independent images, in points."""
    pair = _pair(summary, dataset, 10)
    return 100 * math.sqrt(sum(row["accuracy_mean"] * (1 - row["accuracy_mean"]) for row in pair) / images)


def agreement(records: Records) -> str:
    """Lay out how much of the noiseless selection survives the noise: scores down, sigma_s across."""
    paths = sorted((records.folder / "demo/tables").glob("saliency_agreement*.csv"))
    table = pd.concat([pd.read_csv(path) for path in paths])
    shown = [1, 5, 10, 20, 100]
    overlap = table.groupby(["score", "sigma_s", "dataset"])["overlap"].mean().mul(100)
    cells = {
        score: [" / ".join(f"{overlap[score, sigma, name]:.0f}" for name in ("mnist5k", "histo-mini")) for sigma in shown]
        for score in sorted(table["score"].unique())
    }
    return pipes(["score", *(f"sigma_s = {sigma}" for sigma in shown)], [[score, *row] for score, row in cells.items()])


def bench(records: Records) -> str:
    """Lay out bench.csv: how often the time and the memory of the thing that it is compared with."""
    rows = [[row["comparison"], f"{row['ratio']:.2f}", f"{row['memory_ratio']:.2f}"] for _, row in _bench(records).iterrows()]
    return pipes(["", "time", "peak memory"], rows)


def storage(records: Records) -> str:
    """Lay out storage.csv: how long rows take from each kind of file, and what the process holds afterwards."""
    rows = [
        [row["kind"], f"{row['random_batch_ms']:.0f}", f"{row['in_order_rows_per_second']:,.0f}", f"{row['memory_mb']:.0f}"]
        for _, row in records.table("storage.csv").iterrows()
    ]
    return pipes(["rows by", "4,096 random rows (ms)", "rows in order (per second)", "memory (MB)"], rows)


def scale(records: Records) -> str:
    """Lay out scale.csv: the peak memory and the speed of each stage by the number of images."""
    table = records.table("scale.csv")
    counts = sorted(table["images"].unique())
    cells = table.set_index(["stage", "images"])
    header = ["stage", *(f"{what}, {count:,}" for what in ("images/s", "peak memory (MB)") for count in counts)]
    rows = [
        [
            stage,
            *(f"{cells.loc[(stage, count), 'images_per_second']:,.0f}" for count in counts),
            *(f"{cells.loc[(stage, count), 'peak_mb']:,.0f}" for count in counts),
        ]
        for stage in table["stage"].unique()
    ]
    return pipes(header, rows)


def edge_factors(column: str, records: Records) -> str:
    """Lay out how many times larger a learning rate survives: ways and shares of three seeds down, panels across."""
    table = records.table("stability/figures/stability_edges.csv")
    table = table[table[column].notna() & table["way"].isin(CHOSEN) & (table["edge_seeds"] >= 3)]
    panels = list(table[["dataset", "epsilon"]].drop_duplicates().itertuples(index=False, name=None))
    rows = []
    for (way, ratio), lines in table.groupby(["way", "ratio"], sort=False):
        found = lines.set_index(["dataset", "epsilon"])
        cells = [_factor(found.loc[key], column) if key in found.index else "—" for key in panels]
        rows.append([f"{CHOSEN[way]} {100 * ratio:g} %", *cells])
    return pipes(["", *(f"{dataset}, ε = {epsilon:g}" for dataset, epsilon in panels)], rows)


def _factor(row: pd.Series, column: str) -> str:
    if math.isnan(row[f"{column}_low"]):
        return f"{row[column + '_sign']} {row[column]:.2f}".strip()
    return f"{row[column]:.2f} [{row[column + '_low']:.2f}–{row[column + '_high']:.2f}]"


def own_rate_differences(metric: str, records: Records) -> str:
    """Lay out the most salient matrices minus each other way, both at learning rates of their own: ways down, datasets across."""
    table = records.table("tuned/figures/tuned_differences.csv")
    table = table[table["setting"] == "own"]
    panels = sorted(table[["dataset", "epsilon"]].drop_duplicates().itertuples(index=False, name=None))
    places = {dataset: min(2, decimals(rows[metric])) for dataset, rows in table.groupby("dataset")}
    rows = []
    for label, of_label in table.groupby("label", sort=False):
        found = of_label.set_index(["dataset", "epsilon"])
        rows.append(
            [label, *(_difference(found.loc[key], metric, places[key[0]]) if key in found.index else "—" for key in panels)]
        )
    header = ["minus", *(f"{dataset}, ε = {epsilon:g}" for dataset, epsilon in panels)]
    return pipes(header, rows).replace("\\*\\*", "**")


def _difference(row: pd.Series, metric: str, places: int) -> str:
    text = amount(row[metric], places, row[f"{metric}{INTERVAL}"])
    return f"**{text}**" if abs(row[metric]) > row[f"{metric}{INTERVAL}"] else text


def smallest_visible(metric: str, records: Records) -> str:
    """Return the smallest true difference that `own_rate_differences` would have shown in 80 of 100 studies (median)."""
    table = records.table("tuned/figures/tuned_differences.csv")
    return f"{table.loc[table['setting'] == 'own', metric + '_visible'].median():.2g}"


def regrets(records: Records) -> str:
    """Lay out what each way of choosing loses over learning rates: FID over the best one's, and how many seeds that is of."""
    table = records.table("stability/figures/selection_regret.csv")
    panels = list(table[["dataset", "epsilon"]].drop_duplicates().itertuples(index=False, name=None))
    wide = table.pivot(index="label", columns=["dataset", "epsilon"], values=["fid_over_best", "seeds"])
    wide = wide.loc[wide["fid_over_best"].mean(axis=1).sort_values().index]
    cells = [[_regret(row["fid_over_best"][panel], row["seeds"][panel]) for panel in panels] for _, row in wide.iterrows()]
    header = ["chosen", *(f"{dataset}, ε = {epsilon:g}" for dataset, epsilon in panels)]
    return pipes(header, [[label, *row] for label, row in zip(wide.index, cells, strict=True)])


def _regret(value: float, seeds: float) -> str:
    return "—" if math.isnan(value) else f"{value:.2f} ({seeds:.0f})"


def selected_by_scores(records: Records) -> str:
    """Lay out FID and accuracy of what each score selects on mnist5k, at the learning rate that noise allows."""
    runs = records.table("stability/tables/runs.csv")
    runs = runs[(runs["dataset"] == "mnist5k") & (runs["ratio"] == 0.3) & (runs["learning_rate"] == "auto")]
    runs = runs[(runs["method"] == "random") | (runs["rule"] == "top")].assign(score=runs["score"].fillna("random"))
    shared = set.intersection(*(set(seeds) for _, seeds in runs.groupby(["score", "epsilon"])["seed"]))
    means = runs[runs["seed"].isin(shared)].groupby(["score", "epsilon"])[["fid", "accuracy"]].mean().unstack()
    header = [
        "selected by",
        *(f"{name}, ε = {epsilon:g}" for name in ("FID", "accuracy (%)") for epsilon in means["fid"].columns),
    ]
    rows = [
        [score, *(f"{value:.2f}" for value in row["fid"]), *(f"{100 * value:.1f}" for value in row["accuracy"])]
        for score, row in means.sort_values(("fid", 1.0)).iterrows()
    ]
    return pipes(header, rows)


def _bench(records: Records) -> pd.DataFrame:
    table = records.table("bench.csv")
    loop = table["comparison"] == "saliency pass against the batch-of-one loop"  # read the other way round
    table.loc[loop, ["ratio", "memory_ratio"]] = 1 / table.loc[loop, ["ratio", "memory_ratio"]]
    table.loc[loop, "comparison"] = "batch-of-one loop against the saliency pass"
    return table


def measured(records: Records) -> str:
    """Lay out measured.json."""
    entries = json.loads((records.folder / "measured.json").read_text(encoding="utf-8"))
    rows = [
        [
            f"`{entry['command']}`",
            amount(entry["seconds"] / 60),
            str(entry["cores"]),
            "—" if entry["peak_memory_mb"] is None else amount(entry["peak_memory_mb"]),
            entry["commit"] or "—",
        ]
        for entry in entries
    ]
    # backticks are code here, not text to escape
    return pipes(["command", "minutes", "cores", "largest process (MB)", "commit"], rows).replace("\\`", "`").replace("\\_", "_")


TABLES: dict[str, Callable[[Records], str]] = {
    "demo-main": partial(cut, "demo/figures/main_table.md", ("public model", "seeds")),
    "demo-differences": differences,
    "demo-privacy-cost": partial(
        cut, "demo/figures/privacy_cost.md", ("public model", "spent ε, RDP", "spent ε, GDP", "share of target (%)")
    ),
    "demo-resources": partial(cut, "demo/figures/resources.md", ("public model",)),
    "demo-full-main": partial(cut, "demo-full/figures/main_table.md", ("public model", "target ε", "seeds")),
    "demo-full-differences": partial(cut, "demo-full/figures/paired_differences.md", ("public model",)),
    "variants-differences": partial(cut, "variants/figures/paired_differences.md", ("public model",)),
    "stability-over-all": partial(edge_factors, "over_all"),
    "stability-over-random": partial(edge_factors, "over_random"),
    "stability-regret": regrets,
    "tuned-fid": partial(own_rate_differences, "fid"),
    "tuned-accuracy": partial(own_rate_differences, "accuracy_pct"),
    "selected-by-scores": selected_by_scores,
    "agreement": agreement,
    "bench": bench,
    "storage": storage,
    "scale": scale,
    "measured": measured,
}


def minutes(what: str, records: Records) -> str:
    """Return how long a command took, in whole minutes."""
    return f"{records.measured(what)['seconds'] / 60:.0f}"


def gigabytes(what: str, records: Records) -> str:
    """Return the largest process of a command, in GB."""
    return f"{records.measured(what)['peak_memory_mb'] / 1000:.1f}"


def field(what: str, key: str, records: Records) -> str:
    """Return one entry of measured.json as it is."""
    return str(records.measured(what)[key])


def trained(records: Records) -> pd.DataFrame:
    """Return the demo's runs that train at its own learning rate, with accuracy and FID of the public model beside theirs."""
    runs = records.table("demo/tables/runs.csv")
    floor = runs[runs["method"] == "no-finetune"].set_index("dataset")
    rows = runs[(runs["trainable_parameters"] > 0) & runs["learning_rate"].isna()]
    return rows.assign(**{f"floor_{name}": rows["dataset"].map(floor[name]) for name in ("accuracy", "fid")})


def high_rate_fid(method: str, ratio: float | None, records: Records) -> str:
    """Return a method's FID in the demo's study at a learning rate above its own."""
    runs = records.table("demo/tables/runs.csv")
    rows = runs[(runs["method"] == method) & runs["learning_rate"].notna()]
    (row,) = rows[rows["ratio"].isna() if ratio is None else rows["ratio"] == ratio]["fid"]
    return f"{row:.1f}"


def below_floor_fid(records: Records) -> str:
    """Count the trained runs whose FID is below the floor's."""
    rows = trained(records)
    return f"{(rows['fid'] < rows['floor_fid']).sum()} of {len(rows)}"


def above_floor_accuracy(records: Records) -> str:
    """Count the trained runs whose accuracy is above the floor's, and name the others."""
    rows = trained(records)
    others = rows[rows["accuracy"] <= rows["floor_accuracy"]]
    names = [f"{row['method']} on {row['dataset']}" + _ratio(row["ratio"]) for _, row in others.iterrows()]
    return f"{len(rows) - len(others)} of {len(rows)}" + (f" (not {', '.join(names)})" if names else "")


def _ratio(ratio: float) -> str:
    return "" if pd.isna(ratio) else f" at ratio {100 * ratio:g} %"


def behind_in_fid(records: Records) -> str:
    """Count the pairs of `differences` in which DP-SAPF has the higher FID."""
    summary = records.table("demo/tables/summary.csv")
    keys = summary[summary["method"] == "dp-lora"][["dataset", "epsilon"]].drop_duplicates().itertuples(index=False)
    pairs = [pair for pair in (_pair(summary, *key) for key in keys) if pair]
    return f"{sum(ours['fid_mean'] > theirs['fid_mean'] for ours, theirs in pairs)} of {len(pairs)}"


def settings_within(low: float, high: float, records: Records) -> str:
    """Count the settings whose predicted rise is above ``low`` and at most ``high``, and those of them worse than the floor."""
    table = records.table("stability/figures/noise_rise.csv")
    rise = table["predicted_rise"].round(6)  # a learning rate that noise allows stands at the tolerated rise itself
    rows = table[(rise > low) & (rise <= high)]
    return f"{(rows['fid_over_floor'] > 1).sum()} of {len(rows)}"


def worst_within(records: Records) -> str:
    """Return the largest FID over the floor's of a setting whose predicted rise is tolerated."""
    table = records.table("stability/figures/noise_rise.csv")
    return f"{table.loc[table['predicted_rise'].round(6) <= TOLERATED_RISE, 'fid_over_floor'].max():.2f}"


def predicted_edges(records: Records) -> str:
    """Return the least and the greatest predicted edge over the measured one, of three seeds, where both are among the rates."""
    table = records.table("stability/figures/stability_edges.csv")
    known = table[table["edge_sign"].isna() & table["predicted_sign"].isna() & (table["edge_seeds"] >= 3)]
    ratio = known["predicted"] / known["edge"]
    return f"{ratio.min():.2f} to {ratio.max():.2f}"


def rank_correlations(records: Records) -> str:
    """Return the least and the greatest rank correlation of FID with the predicted rise, over datasets and epsilons."""
    found = records.table("stability/figures/noise_rise.csv")["rank_correlation"]
    return f"{found.min():.2f} to {found.max():.2f}"


def parameters(method: str, records: Records) -> str:
    """Return what a method trains in the demo."""
    runs = records.table("demo/tables/runs.csv")
    return amount(runs.loc[runs["method"] == method, "trainable_parameters"].iloc[0])


def parameter_share(records: Records) -> str:
    """Return what DP-SAPF by matrices at the demo's main ratio trains, over what DP-LoRA trains, in %."""
    runs = records.table("demo/tables/runs.csv")
    ours = runs[(runs["method"] == "dp-sapf") & (runs["level"] == "matrix") & (runs["ratio"] == 0.3)]["trainable_parameters"]
    share = 100 * ours / runs.loc[runs["method"] == "dp-lora", "trainable_parameters"].iloc[0]
    return f"{share.min():.0f} to {share.max():.0f} %"


def time_ratio(comparison: str, records: Records) -> str:
    """Return how often the time of what it is compared with something takes."""
    return f"{_bench(records).set_index('comparison')['ratio'][comparison]:.1f}"


def kept(name: str, records: Records) -> str:
    """Return one entry of kept_numbers.csv."""
    return records.kept(name)


KEPT = (
    "own-images-dp-sapf-accuracy",
    "own-images-dp-sapf-fid",
    "own-images-dp-lora-accuracy",
    "own-images-dp-lora-fid",
    "own-images-floor-accuracy",
    "own-images-floor-fid",
    "own-images-ceiling-accuracy",
    "energy-kept-1",
    "energy-kept-5",
    "energy-kept-10",
    "energy-kept-20",
    "bench-runs",
    "bench-saliency-least",
    "bench-saliency-largest",
    "bench-loop-least",
    "bench-loop-largest",
)
NUMBERS: dict[str, Callable[[Records], str]] = {
    **{f"{what}-minutes": partial(minutes, what) for what in ("demo", "test", "demo-full-cut", "variants", "own-images")},
    "demo-memory-gb": partial(gigabytes, "demo"),
    "demo-cores": partial(field, "demo", "cores"),
    "demo-commit": partial(field, "demo", "commit"),
    "demo-runs": lambda records: str((records.table("demo/tables/runs.csv")["trainable_parameters"] > 0).sum()),
    "demo-high-rate-all": partial(high_rate_fid, "dp-lora", None),
    "demo-high-rate-30": partial(high_rate_fid, "dp-sapf", 0.3),
    "demo-high-rate-10": partial(high_rate_fid, "dp-sapf", 0.1),
    "demo-fid-below-floor": below_floor_fid,
    "demo-accuracy-above-floor": above_floor_accuracy,
    "demo-fid-behind": behind_in_fid,
    "rise-tolerated": lambda records: f"{TOLERATED_RISE:g}",
    "rise-within": partial(settings_within, 0, TOLERATED_RISE),
    "rise-within-worst": worst_within,
    "rise-between": partial(settings_within, TOLERATED_RISE, 1),
    "rise-above": partial(settings_within, 1, math.inf),
    "rise-correlations": rank_correlations,
    "edges-predicted": predicted_edges,
    "tuned-visible-accuracy": partial(smallest_visible, "accuracy_pct"),
    "tuned-visible-fid": partial(smallest_visible, "fid"),
    "lora-parameters": partial(parameters, "dp-lora"),
    "unet-parameters": partial(parameters, "dp-full"),
    "parameter-share": parameter_share,
    "bench-saliency": partial(time_ratio, "saliency pass against plain forward + backward"),
    "bench-lora-30": partial(time_ratio, "DP-LoRA step, 30 % of the matrices"),
    "bench-lora-all": partial(time_ratio, "DP-LoRA step, all attention"),
    **{name: partial(kept, name) for name in KEPT},
}


def rewrite(text: str, records: Records) -> str:
    """Put the records' tables and numbers between the markers of a text.

    Raises:
        SystemExit: a marker has a name that is not known, or no end.
    """

    def fill(known: dict[str, Callable[[Records], str]], match: re.Match) -> str:
        if match["name"] not in known:
            raise SystemExit(f"unknown marker {match['name']}; known: {', '.join(known)}")
        return match["start"] + known[match["name"]](records) + match["end"]

    def outside(part: str) -> str:
        filled = NUMBER.sub(partial(fill, NUMBERS), TABLE.sub(partial(fill, TABLES), part))
        if stray := LEFT_OVER.search(without_marked(filled)):
            raise SystemExit(f"marker without its other half: {stray[0]}")
        return filled

    return _between_fences(text, outside)


def without_marked(text: str) -> str:
    """Remove what stands between markers, and the markers."""
    return NUMBER.sub("", TABLE.sub("", text))


def typed(text: str) -> list[str]:
    """List the results that somebody typed: decimal numbers outside markers and fenced code that are not `ALLOWED`."""
    prose = without_marked(FENCE.sub("", text))
    for pattern in ALLOWED:
        prose = re.sub(pattern, "", prose)
    return [line.strip() for line in prose.splitlines() if TYPED.search(line)]


def _between_fences(text: str, change: Callable[[str], str]) -> str:
    parts, start = [], 0
    for fence in FENCE.finditer(text):
        parts += [change(text[start : fence.start()]), fence[0]]
        start = fence.end()
    return "".join([*parts, change(text[start:])])


def texts(root: Path) -> list[Path]:
    """List the texts of a checkout whose numbers come from records."""
    return [path for pattern in TEXTS for path in sorted(root.glob(pattern))]


def main(arguments: list[str] | None = None) -> int:
    """Rewrite or check every text; return 0, or 1 after a line on standard error for every mistake."""
    parser = argparse.ArgumentParser(prog="python docs/tables.py", description="tables and numbers of the docs, from the records")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if texts and records differ")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    options = parser.parse_args(arguments)
    records, wrong = Records(options.root), []
    for path in texts(options.root):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(options.root)
        wrong += [f"{name}: a typed result, put it between markers: {line}" for line in typed(text)]
        filled = rewrite(text, records)
        if filled != text and options.check:
            changed = [new for old, new in zip(text.splitlines(), filled.splitlines(), strict=False) if old != new]
            wrong.append(f"{name}: differs from the records, run `python docs/tables.py`: {(changed or ['length'])[0]}")
        elif filled != text:
            path.write_text(filled, encoding="utf-8")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
