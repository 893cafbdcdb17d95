"""What the tables and numbers of the documentation are read from: the records in results/reference."""

import json
from pathlib import Path

import pandas as pd

from dpsapf.support.yaml_files import load_yaml
from paper_figures.tables import Cell, Table, markdown


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

    def config(self, name: str, kept: bool = False) -> dict:
        """Return a shipped config or registry as it is written, or the config that made a folder of results/reference."""
        return load_yaml(self.folder / name / "config.yaml" if kept else self.root / "config" / f"{name}.yaml")

    def test_images(self, dataset: str) -> int:
        """Return the number of test images that a dataset's entry in config/datasets.yaml holds out."""
        return self.config("datasets")[dataset]["test"]


def cut(path: str, drop: tuple[str, ...], records: Records) -> str:
    """Copy a table that paper_figures drew, without some of its columns."""
    rows = records.pipe_table(path)
    kept = [column for column, name in enumerate(rows[0]) if name not in drop]
    return "".join("| " + " | ".join(row[column] for column in kept) + " |\n" for row in rows)


def pipes(header: list[str], rows: list[list[str]]) -> str:
    """Write rows of text as a Markdown table."""
    return markdown(Table(tuple(header), tuple(tuple(map(Cell, row)) for row in rows)))


def with_code(table: str) -> str:
    """Make backticks of a Markdown table code again, instead of text that was escaped."""
    return table.replace("\\`", "`").replace("\\_", "_")
