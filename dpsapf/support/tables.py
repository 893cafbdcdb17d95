"""Tables that are written with the columns that were named for them, and no others."""

import typing
from collections.abc import Sequence
from pathlib import Path

from dpsapf.support.files import atomic

if typing.TYPE_CHECKING:
    import pandas as pd


def write_table(path: Path, table: "pd.DataFrame", columns: Sequence[str]) -> None:
    """Write a .csv atomically; a number has the fewest digits that give it back.

    Raises:
        ValueError: the table has other columns, or in another order.
    """
    if list(table) != list(columns):
        raise ValueError(f"{path}: columns {list(table)} where {list(columns)} are due")
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False)
