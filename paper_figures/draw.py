"""draw-figures: every table and figure from the tidy tables, without recomputing anything."""

import logging
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dpsapf.support.files import atomic, write_text
from paper_figures import (
    all_metrics,
    claims_by_rate,
    contact_sheet,
    differences,
    epsilon_curves,
    main_table,
    noise_rise,
    paper_reference,
    privacy_cost,
    ranking_stability,
    ratio_curves,
    resources,
    saliency_agreement,
    selection_map,
    selection_regret,
    selection_table,
    sigma_sensitivity,
    stability_edges,
    stability_map,
    transfer,
    tuned_and_shared,
    tuned_differences,
    variants,
    verdicts,
    without_dp,
)
from paper_figures.results import MissingStudy, Results, load_results
from paper_figures.style import DPI, theme
from paper_figures.tables import Table, latex, markdown

if typing.TYPE_CHECKING:
    from dpsapf.experiment.stages import DrawFigures

LOG = logging.getLogger("dpsapf")
logging.getLogger("fontTools").setLevel(logging.WARNING)  # else a page of font subsetting per PDF


@dataclass(frozen=True)
class Item:
    """A table or figure: its file name, what collects its data, and what draws them."""

    name: str
    prepare: Callable[[Results], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Figure | Table]


ITEMS = (
    Item("main_table", main_table.prepare, main_table.draw),
    Item("all_metrics", all_metrics.prepare, all_metrics.draw),
    Item("verdicts", verdicts.prepare, verdicts.draw),
    Item("claims_by_rate", claims_by_rate.prepare, claims_by_rate.draw),
    Item("ratio_curves", ratio_curves.prepare, ratio_curves.draw),
    Item("epsilon_curves", epsilon_curves.prepare, epsilon_curves.draw),
    Item("variants", variants.prepare, variants.draw),
    Item("without_dp", without_dp.prepare, without_dp.draw),
    Item("transfer", transfer.prepare, transfer.draw),
    Item("sigma_sensitivity", sigma_sensitivity.prepare, sigma_sensitivity.draw),
    Item("differences", differences.prepare, differences.draw),
    Item("selection_map", selection_map.prepare, selection_map.draw),
    Item("selection_table", selection_table.prepare, selection_table.draw),
    Item("saliency_agreement", saliency_agreement.prepare, saliency_agreement.draw),
    Item("ranking_stability", ranking_stability.prepare, ranking_stability.draw),
    Item("stability_map", stability_map.prepare, stability_map.draw),
    Item("stability_map_accuracy", stability_map.prepare, stability_map.draw_accuracy),
    Item("stability_edges", stability_edges.prepare, stability_edges.draw),
    Item("selection_regret", selection_regret.prepare, selection_regret.draw),
    Item("noise_rise", noise_rise.prepare, noise_rise.draw),
    Item("tuned_and_shared", tuned_and_shared.prepare, tuned_and_shared.draw),
    Item("tuned_differences", tuned_differences.prepare, tuned_differences.draw),
    Item("contact_sheet", contact_sheet.prepare, contact_sheet.draw),
    Item("privacy_cost", privacy_cost.prepare, privacy_cost.draw),
    Item("resources", resources.prepare, resources.draw),
    Item("paper_reference_ratio", paper_reference.prepare_ratio, paper_reference.draw_ratio),
    Item("paper_reference_epsilon", paper_reference.prepare_epsilon, paper_reference.draw_epsilon),
)


def draw_figures(options: "DrawFigures") -> None:
    """Draw every table and figure of a results folder (the sub-command ``draw-figures``).

    Raises:
        UserError: the results folder has no tables.
    """
    draw_all(options.results, options.figures)


def draw_all(root: Path, folder: Path) -> list[str]:
    """Draw every table and figure whose runs are among the results.

    Args:
        root: folder of one config's results, with ``tables/`` in it.
        folder: figures go to NAME.pdf, NAME.png and NAME.csv in it, tables to NAME.md, NAME.tex and NAME.csv.

    Returns:
        The names drawn. What is not drawn is logged with the reason, and its files of an earlier call are removed.

    Raises:
        UserError: the results folder has no tables.
    """
    results = load_results(root)
    folder.mkdir(parents=True, exist_ok=True)
    return [item.name for item in ITEMS if _draw_item(item, results, folder)]


def _draw_item(item: Item, results: Results, folder: Path) -> bool:
    try:
        data = item.prepare(results)
    except MissingStudy as reason:
        LOG.info("%s: not drawn, %s", item.name, reason)
        for old in folder.glob(f"{item.name}.*"):
            old.unlink()
        return False
    with theme():
        drawn = item.draw(data)
        save = save_table if isinstance(drawn, Table) else save_figure
        save(drawn, folder / item.name)
    with atomic(folder / f"{item.name}.csv") as temporary:
        portable(data, results.layout.root).to_csv(temporary, index=False)
    LOG.info("%s: drawn from %d rows", item.name, len(data))
    return True


def portable(data: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Make columns of paths relative to ``root``, so that a CSV names no machine and no working directory."""
    paths = [name for name in data if isinstance(data[name].iloc[0], Path)]
    return data.assign(**{name: [path.relative_to(root).as_posix() for path in data[name]] for name in paths})


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to ``path`` plus .pdf and .png (200 dpi), without dates, so that equal figures have equal bytes."""
    for suffix, metadata in ((".pdf", {"CreationDate": None}), (".png", {"Software": None})):
        with atomic(path.with_name(path.name + suffix)) as temporary:
            figure.savefig(temporary, dpi=DPI, metadata=metadata)


def save_table(table: Table, path: Path) -> None:
    """Write a table to ``path`` plus .md and .tex."""
    write_text(path.with_name(path.name + ".md"), markdown(table))
    write_text(path.with_name(path.name + ".tex"), latex(table))
