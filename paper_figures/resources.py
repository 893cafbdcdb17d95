"""What a run costs: trainable parameters, memory and time."""

import pandas as pd

from dpsapf.experiment.columns import SEEDS
from paper_figures.results import GROUP, Results, at_headline, with_labels
from paper_figures.tables import MISSING, Cell, Table, amount

COSTS = {
    "trainable_parameters": "trainable parameters",
    "selected_matrices": "selected matrices",
    "peak_memory_mb": "peak memory (MB)",
    "finetune_seconds": "fine-tuning (s)",
    "sample_seconds": "sampling (s)",
}


def prepare(results: Results) -> pd.DataFrame:
    """Average the costs over seeds, for every method at the headline ratio, sigma_s and epsilon.

    Returns:
        One row per dataset, public model and method: parameters, matrices, peak resident memory in MB (10^6
        bytes; GPU memory for runs on one), wall-clock seconds of fine-tuning (or evolving) and of sampling; and the number of
        seeds that are there. What has none has no values.
    """
    runs = pd.concat([results.runs, results.missing])
    table = with_labels(at_headline(runs, results, "ratio", "sigma_s", "epsilon"), results)
    groups = table.groupby([*GROUP, "series", "label"], sort=False)
    return groups[list(COSTS)].mean().assign(**{SEEDS: groups["sample_seconds"].count()}).reset_index()


def draw(data: pd.DataFrame) -> Table:
    """Lay the rows of `prepare` out."""
    rows = [
        tuple(Cell(row[name]) for name in (*GROUP, "label"))
        + tuple(Cell(amount(row[name]) if row[SEEDS] else MISSING) for name in COSTS)
        for row in data.to_dict("records")
    ]
    return Table(("dataset", "public model", "method", *COSTS.values()), tuple(rows), names=3)
