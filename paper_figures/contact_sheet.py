"""Real images above synthetic ones of each method, class by class, every image pixel drawn as a whole square."""

import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dpsapf.experiment.records import DatasetRecord
from dpsapf.support.records import read_record
from paper_figures.images import read_labels, read_rows
from paper_figures.results import MissingStudy, Results, at_headline, with_labels
from paper_figures.style import DPI

COLUMNS = 20  # images across, at most
SHEET = 1340  # output pixels across for images
NAMES, EDGE, TITLE, LINE = 330, 10, 44, 26  # output pixels: row names, outer edge, dataset title, line of a class name
GAP = 1  # image pixels between images
CHARACTER = 13  # output pixels of an 8 pt letter


def prepare(results: Results) -> pd.DataFrame:
    """Choose the first images of each class: real training images, and samples at the headline setting and first seed.

    Returns:
        One row per shown image: dataset, label of its row, class, archive and index within it.

    Raises:
        MissingStudy: no dataset has its archive, its record and a run's samples in the results folder.
    """
    runs = at_headline(results.runs, results, "ratio", "sigma_s", "epsilon")
    runs = runs[(runs["seed"] == runs["seed"].min()) & (runs["public_model"] == runs["public_model"].iloc[0])]
    runs = with_labels(runs, results)
    tables = [_dataset_rows(results, dataset, rows) for dataset, rows in runs.groupby("dataset", sort=False)]
    tables = [table for table in tables if table is not None]
    if not tables:
        raise MissingStudy("no dataset has dataset.safetensors, dataset.json and a run's samples.npz in the results folder")
    return pd.concat(tables, ignore_index=True)


def _dataset_rows(results: Results, dataset: str, runs: pd.DataFrame) -> pd.DataFrame | None:
    real, record = (Path(results.layout.dataset(dataset, name)) for name in ("dataset.safetensors", "dataset.json"))
    samples = [(row["label"], Path(results.layout.run(row["run_id"], "samples.npz"))) for row in runs.to_dict("records")]
    samples = [(label, path) for label, path in samples if path.exists()]
    if not (real.exists() and record.exists() and samples):
        return None
    described = read_record(record, DatasetRecord)
    sources = [("real images", real), *samples]
    tables = [_source_rows(described, *source) for source in sources]
    return pd.concat(tables).assign(dataset=dataset, resolution=described.resolution)


def _source_rows(dataset: DatasetRecord, label: str, archive: Path) -> pd.DataFrame:
    across = min(COLUMNS, SHEET // (dataset.resolution + GAP))
    each = max(1, across // len(dataset.classes))
    labels = read_labels(archive)
    rows = [
        {
            "row": label,
            "class": name,
            "column": number * each + place,
            "archive": archive,
            "index": int(index),
        }
        for number, name in enumerate(dataset.classes)
        for place, index in enumerate(np.flatnonzero(labels == number)[:each])
    ]
    return pd.DataFrame(rows)


def draw(data: pd.DataFrame) -> Figure:
    """Draw the images that `prepare` chose, read from their archives, enlarged by a whole factor without smoothing."""
    blocks = [Block(rows) for _, rows in data.groupby("dataset", sort=False)]
    width = NAMES + max(block.scale * block.pixels[1] for block in blocks) + EDGE
    height = sum(block.height for block in blocks)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    top = height
    for block in blocks:
        _draw_block(figure, block, top, (width, height))
        top -= block.height
    return figure


@dataclass(frozen=True)
class Block:
    """The rows of one dataset, and their places in output pixels."""

    rows: pd.DataFrame

    @cached_property
    def cell(self) -> int:
        """Image pixels from one image to the next."""
        return int(self.rows["resolution"].iloc[0]) + GAP

    @cached_property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the images together, in image pixels."""
        return self.rows["row"].nunique() * self.cell - GAP, (int(self.rows["column"].max()) + 1) * self.cell - GAP

    @cached_property
    def scale(self) -> int:
        """Output pixels per image pixel."""
        return max(1, SHEET // self.pixels[1])

    @cached_property
    def classes(self) -> dict[str, tuple[str, float]]:
        """Each class' wrapped name and the middle of its columns, in output pixels from the left of the images."""
        places = {}
        for name, columns in self.rows.groupby("class", sort=False)["column"]:
            first, count = columns.min(), columns.nunique()
            letters = max(1, count * self.cell * self.scale // CHARACTER)
            places[name] = ("\n".join(textwrap.wrap(str(name), letters)), (first + count / 2) * self.cell * self.scale)
        return places

    @cached_property
    def header(self) -> int:
        """Output pixels of the dataset's title and class names."""
        return TITLE + LINE * max(text.count("\n") + 1 for text, _ in self.classes.values())

    @property
    def height(self) -> int:
        """Output pixels of the whole block."""
        return self.header + self.scale * self.pixels[0] + 2 * EDGE

    def mosaic(self) -> np.ndarray:
        """Paste the images on white, uint8 [height, width, 3] in image pixels."""
        sheet = np.full((*self.pixels, 3), 255, np.uint8)
        for number, (_, source) in enumerate(self.rows.groupby("row", sort=False)):
            images = read_rows(source["archive"].iloc[0], source["index"].tolist())
            for image, column in zip(images, source["column"], strict=True):
                side, top, left = image.shape[0], number * self.cell, column * self.cell
                sheet[top : top + side, left : left + side] = image
        return sheet


def _draw_block(figure: Figure, block: Block, top: int, size: tuple[int, int]) -> None:
    """Place a block's images on whole output pixels, with the names around them."""
    width, height = size
    rows, columns = (block.scale * side for side in block.pixels)
    below = top - block.header
    ax = figure.add_axes((NAMES / width, (below - rows) / height, columns / width, rows / height))
    ax.imshow(block.mosaic(), interpolation="nearest", aspect="auto")
    ax.set_axis_off()
    figure.text(NAMES / width, (top - EDGE) / height, block.rows["dataset"].iloc[0], weight="bold", va="top")
    for text, middle in block.classes.values():
        figure.text((NAMES + middle) / width, (below + EDGE / 2) / height, text, size=8, ha="center", va="bottom")
    for number, name in enumerate(block.rows["row"].unique()):
        middle = below - (number * block.cell + block.cell / 2) * block.scale
        text = "\n".join(textwrap.wrap(name.replace(" %", "\u00a0%"), NAMES // CHARACTER))
        figure.text((NAMES - EDGE) / width, middle / height, text, size=8, ha="right", va="center")
