"""One progress bar for all long loops: on standard error, silent when it is not a terminal."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def track(items: Iterable, label: str, unit: str, total: int | None = None, initial: int = 0) -> tqdm:
    """Wrap an iterable in a progress bar that shows rate and remaining time.

    Args:
        items: what is iterated over.
        label: what is being done.
        unit: what one item is, e.g. ``step``.
        total: number of items, if ``items`` has no length.
        initial: items that a resumed loop has already done.
    """
    return tqdm(items, desc=label, unit=unit, total=total, initial=initial, file=sys.stderr, disable=None, mininterval=0.5)
