"""The settings that captions of the documentation name, by the names that stand in its markers: as the records have them."""

from collections.abc import Callable
from functools import partial

from record_tables import by_scores
from records import Records

from dpsapf.experiment.stages import CompareRankings

WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
AT_HAND = ("demo", "demo-full", "variants", "selection-release", "evolution", "cifar10-mini", "turns")  # folders of one design


def word(number: float) -> str:
    """Write a small whole number as a word, any other one with digits."""
    return WORDS[int(number)] if number in range(len(WORDS)) else f"{number:,.12g}"


def setting(folder: str, key: str, records: Records) -> str:
    """Return a value of the config that a results folder was made by, such as ``saliency.clipping_norm``."""
    section, name = key.split(".")
    return f"{records.config(folder, kept=True)[section][name]:,}"


def values(folder: str, axis: str, records: Records, percent: bool = False) -> str:
    """Return the values that an axis has in a folder's runs; shares in %."""
    found = sorted(records.table(f"{folder}/tables/runs.csv")[axis].dropna().unique())
    return " and ".join(f"{100 * value:g} %" if percent else f"{value:g}" for value in found)


def count(folder: str, axis: str, records: Records) -> str:
    """Count the values that an axis has in a folder's runs, in words."""
    return word(records.table(f"{folder}/tables/runs.csv")[axis].nunique())


def high_rate(records: Records, times: bool = False) -> str:
    """Return the learning rate of the demo's study of what breaks, or how many times the demo's own it is."""
    (rate,) = records.table("demo/tables/runs.csv")["learning_rate"].dropna().unique()
    own = records.config("demo", kept=True)["finetune"]["learning_rate_lora"]
    return word(round(rate / own, 6)) if times else f"{rate:g}"


def map_rates(records: Records) -> str:
    """Count the learning rates of the stability map, in words."""
    return word(records.table("stability/figures/stability_map.csv")["rate"].nunique())


def map_seeds(records: Records) -> str:
    """Return over how many seeds most cells of the stability map are."""
    return word(records.table("stability/figures/stability_map.csv")["n"].mode().iloc[0])


def tuned_seeds(records: Records) -> str:
    """Return over how many seeds methods are compared at learning rates of their own, the least and the largest."""
    table = records.table("tuned/figures/tuned_differences.csv")
    seeds = table.loc[table["setting"] == "own", "n"]
    return f"{word(seeds.min())} to {word(seeds.max())}"


def scores_seeds(records: Records) -> str:
    """Return how many seeds all scores have of which the selection is trained."""
    return word(by_scores(records)["seed"].nunique())


def draws(records: Records) -> str:
    """Count the draws of the noise for each score and sigma_s in the demo's comparison of scores."""
    return word(records.table("demo/figures/saliency_agreement.csv")["draws"].iloc[0])


def kept_at_bound(dataset: str, bound: float, records: Records) -> str:
    """Return how much of the selection by energy survives the noise with another clipping bound than the config's, in %."""
    table = records.table("stability/figures/ranking_stability.csv")
    rows = table[(table["score"] == "energy") & (table["varied"] == "clipping_norm") & (table["dataset"] == dataset)]
    own = records.config("stability", kept=True)["saliency"]["clipping_norm"]
    return f"{100 * rows.loc[(rows['value'] * own).sub(bound).abs() < 1e-9, 'overlap'].item():.0f}"


def of_bench(path: str, column: str, records: Records) -> str:
    """Return what all rows of a benchmark have in a column."""
    (only,) = records.table(path)[column].unique()
    return str(only)


def first_batch(records: Records) -> str:
    """Return the images of bench.csv's micro-batches."""
    return f"{records.table('bench.csv')['batch'].mode().iloc[0]}"


SETTINGS: dict[str, Callable[[Records], str]] = {
    **{f"{folder}-seeds": partial(count, folder, "seed") for folder in AT_HAND},
    "stability-seeds": map_seeds,
    "tuned-seeds": tuned_seeds,
    "scores-seeds": scores_seeds,
    "tuned-datasets": partial(count, "tuned", "dataset"),
    **{
        f"{folder}-epsilon": partial(values, folder, "epsilon")
        for folder in ("demo-full", "variants", "selection-release", "evolution", "cifar10-mini", "turns")
    },
    **{
        f"{folder}-ratio": partial(values, folder, "ratio", percent=True)
        for folder in ("demo-full", "variants", "selection-release", "tuned")
    },
    **{f"{folder}-steps": partial(setting, folder, "privacy.steps") for folder in ("demo", "demo-full", "cifar10-mini")},
    **{
        f"{folder}-images": partial(setting, folder, "sampling.count")
        for folder in ("demo", "demo-full", "evolution", "cifar10-mini", "stability")
    },
    "cifar10-mini-batch": partial(setting, "cifar10-mini", "privacy.expected_batch_size"),
    "evolution-generation": partial(setting, "evolution", "evolution.generation"),
    "evolution-rounds": partial(setting, "evolution", "evolution.iterations"),
    "scores-bound": partial(setting, "demo", "saliency.clipping_norm"),
    "scores-draws": draws,
    "scores-ratio": lambda records: f"{100 * records.table('demo/figures/saliency_agreement.csv')['ratio'].iloc[0]:g} %",
    "demo-high-rate": high_rate,
    "demo-high-rate-times": partial(high_rate, times=True),
    "stability-rates": map_rates,
    "celeba-images": lambda records: f"{records.config('datasets')['celeba']['images']:,}",
    "energy-kept-mnist5k": partial(kept_at_bound, "mnist5k", 1.0),
    "energy-kept-digits": partial(kept_at_bound, "digits", 1.0),
    "rankings-sigma": lambda _: f"{CompareRankings.model_fields['sigma_s'].default:g}",  # no config and no rule sets another
    "bench-batch": first_batch,
    **{f"bench-full-width-{column}": partial(of_bench, "bench-full-width.csv", column) for column in ("precision", "device")},
    **{f"gpu-{column}": partial(of_bench, "bench-gpu.csv", column) for column in ("precision", "device")},
}
