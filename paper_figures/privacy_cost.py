"""What the selection costs: epsilon planned and spent, and the noise of DP-SGD with and without it."""

import pandas as pd

from dpsapf.experiment.columns import SPENT_PREFIX
from paper_figures.results import GROUP, MissingStudy, Results, with_labels
from paper_figures.tables import Cell, Table, amount, plain

AXES = ["epsilon", "sigma_s", "delta"]
NOISE = ["selection_epsilon", "noise_multiplier", "noise_multiplier_without_selection"]


def prepare(results: Results) -> pd.DataFrame:
    """Collect the privacy cost of every setting that trains; ratio, level and seed do not change it.

    What other groups' methods spent is not known here: they are left out.

    Returns:
        One row per dataset, public model, method, epsilon, sigma_s: spent epsilon by accountant, epsilon of the
        selection alone and its share of the target (%; epsilons do not add up, so the shares do not either), the
        noise multiplier of DP-SGD with and without the selection, and by how many % the selection raises it.

    Raises:
        MissingStudy: nothing was trained.
    """
    trained = results.runs[results.runs["epsilon"].notna() & (results.runs["method"] != "external")]
    if trained.empty:
        raise MissingStudy("no run trains anything")
    spent = [column for column in results.runs if column.startswith(SPENT_PREFIX)]
    table = with_labels(trained, results).drop_duplicates([*GROUP, "method", *AXES])
    table = table[[*GROUP, "method", *AXES, *spent, *NOISE]]
    return table.assign(
        release_note=results.release_note,
        selection_share_pct=100 * table["selection_epsilon"] / table["epsilon"],
        added_noise_pct=100 * (table["noise_multiplier"] / table["noise_multiplier_without_selection"] - 1),
    )


def draw(data: pd.DataFrame) -> Table:
    """Lay the rows of `prepare` out."""
    spent = [column for column in data if column.startswith(SPENT_PREFIX)]
    header = ("dataset", "public model", "method", "target ε", "δ", "σ_s")
    header += tuple(f"spent ε, {column.removeprefix(SPENT_PREFIX).upper()}" for column in spent)
    header += ("ε of selection alone", "share of target (%)", "noise multiplier", "without selection", "added noise (%)")
    rows = [tuple(Cell(text) for text in _texts(row, spent)) for row in data.to_dict("records")]
    return Table(header, tuple(rows), names=3, note=data["release_note"].iloc[0])


def _texts(row: dict, spent: list[str]) -> list[str]:
    texts = [row["dataset"], row["public_model"], row["method"], plain(row["epsilon"]), f"{row['delta']:.2g}"]
    texts += [plain(row["sigma_s"]), *(amount(row[column], 3) for column in spent)]
    texts += [amount(row["selection_epsilon"], 3), amount(row["selection_share_pct"], 1)]
    return [*texts, *(amount(row[name], 3) for name in NOISE[1:]), amount(row["added_noise_pct"], 1)]
