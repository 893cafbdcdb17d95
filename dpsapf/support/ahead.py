"""Work that is done one item ahead, in a thread, while what came before it is used."""

import typing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

Item, Made = typing.TypeVar("Item"), typing.TypeVar("Made")


def ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Give ``make(item)`` for each item, in order; the next is being made meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        started = None
        for item in items:
            following = pool.submit(make, item)
            if started is not None:
                yield started.result()
            started = following
        if started is not None:
            yield started.result()
