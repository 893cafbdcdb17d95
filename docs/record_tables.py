"""The tables of the documentation, by the names that stand in its markers."""

import json
import math
from collections.abc import Callable
from functools import partial

import pandas as pd
from config_numbers import cuts
from records import Records, cut, pipes, with_code

from dpsapf.aggregation.multiple_tests import LEVEL
from dpsapf.experiment.columns import INTERVAL
from paper_figures.differences import P_HOLM
from paper_figures.learning_rates import CHOSEN
from paper_figures.tables import amount, decimals

OWN_RATE = 0.02  # of config/stability.yaml, whose rows leave it out


def differences(records: Records) -> str:
    """Subtract DP-LoRA from DP-SAPF in the demo, at the ratio and level of its main study, for each epsilon and dataset."""
    summary = records.table("demo/tables/summary.csv")
    datasets = list(summary["dataset"].unique())
    rows = []
    for epsilon in sorted(summary["epsilon"].dropna().unique(), reverse=True):
        pairs = {dataset: dp_sapf_and_dp_lora(summary, dataset, epsilon) for dataset in datasets}
        for metric, name, scale, places in (("accuracy_mean", "accuracy (points)", 100, 1), ("fid_mean", "FID", 1, 2)):
            values = [pair and f"{scale * (pair[0][metric] - pair[1][metric]):+.{places}f}" for pair in pairs.values()]
            rows.append([f"{name}, ε = {epsilon:g}", *(value or "—" for value in values)])
    errors = [amount(_standard_error(summary, dataset, records.test_images(dataset)), 1) for dataset in datasets]
    rows.append(["standard error of an accuracy difference, from the number of test images alone (points)", *errors])
    return pipes(["DP-SAPF minus DP-LoRA", *datasets], rows)


def dp_sapf_and_dp_lora(summary: pd.DataFrame, dataset: str, epsilon: float) -> tuple[pd.Series, pd.Series] | None:
    """Find the rows of DP-SAPF and DP-LoRA at the config's own learning rate; None if one is not there."""
    rows = summary[(summary["dataset"] == dataset) & (summary["epsilon"] == epsilon)]
    if "learning_rate" in rows:  # later tables: empty at the config's own
        rows = rows[rows["learning_rate"].isna()]
    ours = rows[(rows["method"] == "dp-sapf") & (rows["level"] == "matrix") & (rows["ratio"] == 0.3)]
    theirs = rows[rows["method"] == "dp-lora"]
    return (ours.iloc[0], theirs.iloc[0]) if len(ours) and len(theirs) else None


def turns(records: Records) -> str:
    """Lay out FID and accuracy of three ways to train LoRA on all matrices, by learning rate."""
    runs = records.table("turns/tables/summary.csv")
    runs = runs[runs["method"] == "dp-lora"]
    rates = runs["learning_rate"].fillna(OWN_RATE)
    ways = {
        "LoRA": (runs["adapter"] == "lora") & runs["lora_rank"].isna(),
        "B and A in turn (la-lora)": runs["adapter"] == "la-lora",
        "a rank for each matrix (lora_rank: auto)": runs["lora_rank"] == "auto",
    }
    rows = []
    for metric, name, scale, places in (("fid", "FID", 1, 2), ("accuracy", "accuracy (%)", 100, 1)):
        for label, chosen in ways.items():
            found = runs[chosen].assign(rate=rates).sort_values("rate")
            cells = [
                amount(scale * mean, places, scale * half)
                for mean, half in zip(found[f"{metric}_mean"], found[f"{metric}{INTERVAL}"], strict=True)
            ]
            rows.append([f"{name}, {label}", *cells])
    return pipes(["learning rate", *(f"{rate:g}" for rate in sorted(rates.unique()))], rows)


def _standard_error(summary: pd.DataFrame, dataset: str, images: int) -> float:
    """Return the binomial standard error of the difference of two accuracies on independent images, in points."""
    pair = dp_sapf_and_dp_lora(summary, dataset, 10)
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
    rows = [[row["comparison"], f"{row['ratio']:.2f}", f"{row['memory_ratio']:.2f}"] for _, row in bench_rows(records).iterrows()]
    return pipes(["", "time", "peak memory"], rows)


def full_width(records: Records) -> str:
    """Lay out bench-full-width.csv: seconds, operations and memory of Stable Diffusion v1-5's architecture."""
    rows = []
    for row in records.table("bench-full-width.csv").to_dict("records"):
        numbers = f"{row['ratio']:.2f}", f"{row['tflop']:.2f}", f"{row['share_of_peak']:.2f}", f"{row['peak_mb'] / 1000:.1f}"
        told = ["—"] * 5 if math.isnan(row["seconds"]) else [f"{row['seconds']:.1f}", *numbers]
        rows.append([row["comparison"], str(row["batch"]), *told])
    return pipes(["", "images", "seconds", "times the plain one", "TFLOP", "share of the peak", "activations (GB)"], rows)


def gpu(records: Records) -> str:
    """Lay out bench-gpu.csv: images per second of both sides, and what the second does by the operations of bench-full-width.csv.

    The operations of a comparison that is only of launching are those of the same work.
    """
    known = records.table("bench-full-width.csv").set_index("comparison")
    each = known["tflop"] / known["batch"]
    rows = []
    for row in records.table("bench-gpu.csv").to_dict("records"):
        same = row["comparison"].split(", against")[0]
        tflop = each.get(same, each["saliency pass against plain forward + backward"])
        speed, plain = (row["logical_batch"] / row[key] for key in ("seconds", "base_seconds"))
        told = amount(plain), amount(speed), f"{row['ratio']:.2f}", f"{speed * tflop:.0f}", f"{row['peak_mb'] / 1000:.0f}"
        rows.append([row["comparison"], str(row["batch"]), str(row["logical_batch"]), *told, row["commit"]])
    header = [
        "",
        "micro-batch",
        "images",
        "compared with: images/s",
        "images/s",
        "times its time",
        "TFLOP/s",
        "memory (GB)",
        "commit",
    ]
    return pipes(header, rows)


KEPT = ("kept_by_own", "kept_by_private")


def storage(records: Records) -> str:
    """Lay out storage.csv: how long rows take from each kind of file, and what the process holds afterwards."""
    rows = [
        [row["kind"], f"{row['random_batch_ms']:.0f}", f"{row['in_order_rows_per_second']:,.0f}", f"{row['memory_mb']:.0f}"]
        for _, row in records.table("storage.csv").iterrows()
    ]
    return pipes(["rows by", "4,096 random rows (ms)", "rows in order (per second)", "memory (MB)"], rows)


def own_gradients(records: Records) -> str:
    """Lay out own-gradients.csv: what samples of the public model foretell, beside what private images say."""
    rows = [
        [row["dataset"], f"{row['own_median']:g}", f"{row['private_median']:g}", *(f"{row[name]:.0%}" for name in KEPT)]
        for _, row in records.table("own-gradients.csv").iterrows()
    ]
    return pipes(
        ["dataset", "C by own samples", "median of private images", "kept, by own samples", "kept, by private images"], rows
    )


def scale(records: Records) -> str:
    """Lay out scale.csv: the peak memory and the speed of each stage by the number of images."""
    table = records.table("scale.csv")
    columns = {"images_per_second": "images/s", "peak_mb": "peak memory (MB)"}
    wide = table.pivot(index="stage", columns="images", values=list(columns)).loc[table["stage"].unique()]
    header = ["stage", *(f"{columns[name]}, {count:,}" for name, count in wide)]
    rows = [[stage, *("—" if math.isnan(value) else f"{value:,.0f}" for value in row)] for stage, row in wide.iterrows()]
    return pipes(header, rows)


def metrics_agreement(records: Records) -> str:
    """Lay out metrics-agreement.csv: how far each fidelity metric is from each library's."""
    rows = [
        [row["metric"], row["library"], f"{row['largest_difference']:.0e}", f"{row['largest_value']:.2g}"]
        for _, row in records.table("metrics-agreement.csv").iterrows()
    ]
    return pipes(["metric", "library", "largest difference", "largest value"], rows)


def metrics_scale(records: Records) -> str:
    """Lay out metrics-scale.csv: what each fidelity metric takes on the larger slice, and would take on all images."""
    names = ["seconds", "extrapolated_seconds", "peak_memory_mb", "extrapolated_memory_mb"]
    rows = []
    for _, row in records.table("metrics-scale.csv").drop_duplicates("metric", keep="last").iterrows():
        cells = ["—" if math.isnan(row[name]) else f"{row[name]:,.0f}" for name in names]
        rows.append([row["metric"], f"{row['synthetic']:,} x {row['real']:,}", *cells])
    return pipes(["metric", "slice", "seconds", "seconds, all", "memory (MB)", "memory, all (MB)"], rows)


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
    return f"**{text}**" if row[metric + P_HOLM] <= LEVEL else text


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


def by_scores(records: Records) -> pd.DataFrame:
    """Return the runs on mnist5k of what each score selects, at the learning rate that noise allows, of seeds that all have."""
    runs = records.table("stability/tables/runs.csv")
    runs = runs[(runs["dataset"] == "mnist5k") & (runs["ratio"] == 0.3) & (runs["learning_rate"] == "auto")]
    runs = runs[(runs["method"] == "random") | (runs["rule"] == "top")].assign(score=runs["score"].fillna("random"))
    shared = set.intersection(*(set(seeds) for _, seeds in runs.groupby(["score", "epsilon"])["seed"]))
    return runs[runs["seed"].isin(shared)]


def selected_by_scores(records: Records) -> str:
    """Lay out FID and accuracy of what each score selects."""
    means = by_scores(records).groupby(["score", "epsilon"])[["fid", "accuracy"]].mean().unstack()
    header = [
        "selected by",
        *(f"{name}, ε = {epsilon:g}" for name in ("FID", "accuracy (%)") for epsilon in means["fid"].columns),
    ]
    rows = [
        [score, *(f"{value:.2f}" for value in row["fid"]), *(f"{100 * value:.1f}" for value in row["accuracy"])]
        for score, row in means.sort_values(("fid", 1.0)).iterrows()
    ]
    return pipes(header, rows)


def bench_rows(records: Records) -> pd.DataFrame:
    """Read bench.csv, each comparison as how often the time of what it is compared with."""
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
    return with_code(pipes(["command", "minutes", "cores", "largest process (MB)", "commit"], rows))


TABLES: dict[str, Callable[[Records], str]] = {
    "demo-main": partial(cut, "demo/figures/main_table.md", ("public model", "seeds")),
    "demo-differences": differences,
    "demo-privacy-cost": partial(
        cut, "demo/figures/privacy_cost.md", ("public model", "spent ε, RDP", "spent ε, GDP", "share of target (%)")
    ),
    "demo-resources": partial(cut, "demo/figures/resources.md", ("public model",)),
    "demo-full-main": partial(cut, "demo-full/figures/main_table.md", ("public model", "target ε", "seeds")),
    "demo-full-differences": partial(cut, "demo-full/figures/differences.md", ("public model",)),
    "variants-differences": partial(cut, "variants/figures/differences.md", ("public model",)),
    "verdicts": partial(cut, "verdicts.md", ()),
    "cifar10-main": partial(cut, "cifar10-mini/figures/main_table.md", ("public model", "target ε", "seeds")),
    "cifar10-differences": partial(cut, "cifar10-mini/figures/differences.md", ("public model",)),
    "evolution-main": partial(cut, "evolution/figures/main_table.md", ("public model", "target ε", "seeds")),
    "stability-over-all": partial(edge_factors, "over_all"),
    "stability-over-random": partial(edge_factors, "over_random"),
    "stability-regret": regrets,
    "stability-turns": turns,
    "stability-cuts": cuts,
    "tuned-fid": partial(own_rate_differences, "fid"),
    "tuned-accuracy": partial(own_rate_differences, "accuracy_pct"),
    "selected-by-scores": selected_by_scores,
    "agreement": agreement,
    "bench": bench,
    "bench-full-width": full_width,
    "bench-gpu": gpu,
    "storage": storage,
    "own-gradients": own_gradients,
    "scale": scale,
    "metrics-agreement": metrics_agreement,
    "metrics-scale": metrics_scale,
    "measured": measured,
}
