"""Redraw every table and figure: ``python -m paper_figures --results results/demo``."""

import argparse
import logging
import sys
from pathlib import Path

from dpsapf.support.errors import UserError
from paper_figures.draw import draw_all


def main(arguments: list[str] | None = None) -> int:
    """Draw from the tables of a results folder; return 0, or 2 after a one-line error on standard error."""
    parser = argparse.ArgumentParser(prog="python -m paper_figures", description="redraw every table and figure from tidy tables")
    parser.add_argument("--results", type=Path, required=True, help="folder of one config's results, with tables/ in it")
    parser.add_argument("--out", type=Path, help="folder for the figures (default: RESULTS/figures)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    try:
        draw_all(options.results, options.out or options.results / "figures")
    except UserError as error:
        logging.getLogger("dpsapf").error("paper_figures: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
