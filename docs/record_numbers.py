"""The numbers of the documentation, by the names that stand in its markers."""

import math
from collections.abc import Callable
from functools import partial

import pandas as pd
from config_numbers import trained_runs
from record_settings import SETTINGS
from record_tables import bench_rows, dp_sapf_and_dp_lora, smallest_visible
from records import Records

from dpsapf.experiment.methods import TOLERATED_RISE
from paper_figures.claims import ACCURACY, CLAIMS, FID, Metric
from paper_figures.margins import margin
from paper_figures.tables import amount
from paper_figures.verdicts import CLAIM, NUMBER, tally

BEFORE_GPU = "e7c5638"  # the code before anything was measured on a GPU


def verdicts_of(kind: str, records: Records) -> str:
    """Count the verdicts on claims, or on published numbers."""
    table = records.table("verdicts.csv")
    return tally(table.loc[table["kind"] == kind, "verdict"])


def margin_of(claim_id: str, metric: Metric, _: Records) -> str:
    """Return what a claim calls level: points, or a factor."""
    value = margin(next(claim for claim in CLAIMS if claim.id == claim_id), metric)
    return f"{math.exp(value) if metric.log else value:.3g}"


def quoted(metric: Metric, _: Records) -> str:
    """Return the percentage that the paper quotes of its headline: how far FID falls, or accuracy rises."""
    effect = CLAIMS[0].quoted[metric.name]
    return f"{-100 * math.expm1(effect) if metric.log else effect:.1f} %"


def minutes(what: str, records: Records) -> str:
    """Return how long a command took, in whole minutes."""
    return f"{records.measured(what)['seconds'] / 60:.0f}"


def minutes_range(what: str, records: Records) -> str:
    """Return how long a command took on our machine and on another one, in whole minutes."""
    told = sorted(int(minutes(name, records)) for name in (what, f"{what}-elsewhere"))
    return " to ".join(map(str, dict.fromkeys(told)))


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
    pairs = [pair for pair in (dp_sapf_and_dp_lora(summary, *key) for key in keys) if pair]
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


def other_cores(metric: str, records: Records) -> str:
    """Return how far accuracy (points) or FID (%) of the demo's table moved on other cores or under load, at most."""
    axes = ["dataset", "public_model", "method", "level", "ratio", "epsilon", "learning_rate"]
    both = records.table("demo/tables/summary.csv").merge(records.table("demo-again.csv"), on=axes, suffixes=("", "_again"))
    both = both[both["learning_rate"].isna()]
    first, again = both[f"{metric}_mean"], both[f"{metric}_mean_again"]
    if metric == "fid":
        return f"{100 * (again / first - 1).abs().max():.1g}"
    ours, _ = dp_sapf_and_dp_lora(records.table("demo/tables/summary.csv"), "digits", 10)
    alone = 100 * ours["accuracy_mean"] - float(records.kept("other-cores-digits-accuracy"))
    return f"{max(100 * (first - again).abs().max(), abs(alone)):.1f}"


def refused(records: Records) -> str:
    """Count the runs of propose-test-release, and those that are missing because it refused."""
    runs = records.table("selection-release/tables/runs.csv")
    tested = runs[runs["mechanism"] == "ptr"]
    return f"{(tested['status'] == 'missing').sum()} of {len(tested)}"


def floor_of_turns(records: Records) -> str:
    """Return the FID of the public model as it is, where ranks and turns were tried."""
    table = records.table("turns/tables/summary.csv")
    return f"{table.loc[table['method'] == 'no-finetune', 'fid_mean'].iloc[0]:.2f}"


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
    return f"{bench_rows(records).set_index('comparison')['ratio'][comparison]:.1f}"


def gpu_ratios(comparison: str, records: Records) -> str:
    """Return the least and the largest of a comparison's ratios on a GPU, with micro-batches of 32 and more."""
    table = records.table("bench-gpu.csv")
    rows = table[(table["comparison"] == comparison) & (table["batch"] >= 32) & (table["commit"] != BEFORE_GPU)]
    least, largest = f"{rows['ratio'].min():.2f}", f"{rows['ratio'].max():.2f}"
    return least if least == largest else f"{least} to {largest}"


def gpu_peak(records: Records) -> str:
    """Return what the GPU does on a large product of matrices [TFLOP/s], as measured with the present code."""
    table = records.table("bench-gpu.csv")
    return amount(table.loc[table["commit"] != BEFORE_GPU, "device_tflops"].max())


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
    "install-gb",
    "bench-runs",
    "bench-saliency-least",
    "bench-saliency-largest",
    "bench-loop-least",
    "bench-loop-largest",
)
NUMBERS: dict[str, Callable[[Records], str]] = {
    **{f"{what}-minutes": partial(minutes, what) for what in ("demo", "demo-full-cut", "variants", "own-images")},
    **{f"{name}-runs": partial(trained_runs, name) for name in ("stability", "tuned")},
    **{f"{what}-range": partial(minutes_range, what) for what in ("demo", "test")},
    "demo-memory-gb": partial(gigabytes, "demo"),
    **{f"{what}-cores": partial(field, what, "cores") for what in ("demo", "variants", "own-images")},
    "demo-commit": partial(field, "demo", "commit"),
    "demo-runs": lambda records: str((records.table("demo/tables/runs.csv")["trainable_parameters"] > 0).sum()),
    "demo-high-rate-all": partial(high_rate_fid, "dp-lora", None),
    "demo-high-rate-30": partial(high_rate_fid, "dp-sapf", 0.3),
    "demo-high-rate-10": partial(high_rate_fid, "dp-sapf", 0.1),
    "demo-fid-below-floor": below_floor_fid,
    "demo-accuracy-above-floor": above_floor_accuracy,
    "demo-fid-behind": behind_in_fid,
    "verdicts-claims": partial(verdicts_of, CLAIM),
    "verdicts-numbers": partial(verdicts_of, NUMBER),
    "quoted-accuracy": partial(quoted, ACCURACY),
    "quoted-fid": partial(quoted, FID),
    "margin-accuracy": partial(margin_of, "dp-lora", ACCURACY),
    "margin-fid": partial(margin_of, "dp-lora", FID),
    "margin-no-lora-accuracy": partial(margin_of, "no-lora", ACCURACY),
    "margin-no-lora-fid": partial(margin_of, "no-lora", FID),
    "rise-tolerated": lambda records: f"{TOLERATED_RISE:g}",
    "rise-within": partial(settings_within, 0, TOLERATED_RISE),
    "rise-within-worst": worst_within,
    "rise-between": partial(settings_within, TOLERATED_RISE, 1),
    "rise-above": partial(settings_within, 1, math.inf),
    "rise-correlations": rank_correlations,
    "edges-predicted": predicted_edges,
    "turns-floor": floor_of_turns,
    "ptr-refused": refused,
    "other-cores-accuracy": partial(other_cores, "accuracy"),
    "other-cores-fid": partial(other_cores, "fid"),
    "tuned-visible-accuracy": partial(smallest_visible, "accuracy_pct"),
    "tuned-visible-fid": partial(smallest_visible, "fid"),
    "lora-parameters": partial(parameters, "dp-lora"),
    "unet-parameters": partial(parameters, "dp-full"),
    "parameter-share": parameter_share,
    "bench-saliency": partial(time_ratio, "saliency pass against plain forward + backward"),
    "bench-lora-30": partial(time_ratio, "DP-LoRA step, 30 % of the matrices"),
    "bench-lora-all": partial(time_ratio, "DP-LoRA step, all attention"),
    "gpu-peak": gpu_peak,
    "gpu-saliency": partial(gpu_ratios, "saliency pass against plain forward + backward"),
    "gpu-lora-30": partial(gpu_ratios, "DP-LoRA step, 30 % of the matrices"),
    "gpu-lora-all": partial(gpu_ratios, "DP-LoRA step, all attention"),
    **{name: partial(kept, name) for name in KEPT},
    **SETTINGS,
}
