"""Tables as Markdown and LaTeX, from the same cells."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dpsapf.experiment.runs import written

NOTHING = "—"
MISSING = "missing"  # what was to be run and is not there
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "ε": r"$\varepsilon$",
    "δ": r"$\delta$",
    "σ": r"$\sigma$",
    "∞": r"$\infty$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "×": r"$\times$",
    "—": "---",
    "–": "--",
} | {character: "\\" + character for character in "&%$#_{}"}
MARKDOWN = {character: "\\" + character for character in "\\|*_`<[]"}


@dataclass(frozen=True)
class Cell:
    """One entry of a table; ``bold`` marks the best of its group."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A header, rows of equally many cells and a note below; the first ``names`` columns are set left, the others right."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    names: int = 1
    note: str = ""


def markdown(table: Table) -> str:
    """Write a table as a pipe table of GitHub's Markdown, special characters escaped."""
    rule = [":--" if column < table.names else "--:" for column in range(len(table.header))]
    lines = [[_escape(text, MARKDOWN) for text in table.header], rule]
    lines += [[_marked(cell, MARKDOWN, "**{}**") for cell in row] for row in table.rows]
    note = f"\n{_escape(table.note, MARKDOWN)}\n" if table.note else ""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n" + note


def latex(table: Table) -> str:
    """Write a table as a LaTeX ``tabular`` for the package booktabs, special characters escaped."""
    columns = "l" * table.names + "r" * (len(table.header) - table.names)
    body = [" & ".join(_marked(cell, LATEX, r"\textbf{{{}}}") for cell in row) + r" \\" for row in table.rows]
    header = " & ".join(_escape(text, LATEX) for text in table.header) + r" \\"
    start, end = r"\begin{tabular}{" + columns + "}", r"\end{tabular}"
    note = rf"\multicolumn{{{len(columns)}}}{{l}}{{\footnotesize {_escape(table.note, LATEX)}}}"
    notes = [note] if table.note else []
    return "\n".join([start, r"\toprule", header, r"\midrule", *body, r"\bottomrule", *notes, end]) + "\n"


def _escape(text: str, specials: dict[str, str]) -> str:
    return "".join(specials.get(character, character) for character in text)


def _marked(cell: Cell, specials: dict[str, str], bold: str) -> str:
    text = _escape(cell.text, specials)
    return bold.format(text) if cell.bold else text


def decimals(values: pd.Series) -> int:
    """Return how many decimals show three digits of the largest value (0 to 4)."""
    largest = np.nanmax(np.abs(values.to_numpy(float)), initial=0)
    return int(np.clip(2 - math.floor(math.log10(largest)), 0, 4)) if largest > 0 else 0


def amount(value: float, places: int = 0, interval: float = math.nan) -> str:
    """Write a number with thousands separators, ``± interval`` if there is one; a dash for a missing value."""
    if pd.isna(value):
        return NOTHING
    spread = "" if pd.isna(interval) else f" ± {interval:,.{places}f}"
    return f"{value:,.{places}f}{spread}"


def plain(value: float | str) -> str:
    """Write a setting with as many digits as it has, or a dash for a missing one."""
    return NOTHING if pd.isna(value) else written(value)
