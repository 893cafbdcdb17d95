"""Numbers computed from private units, and numbers that were released: two types, so that neither passes for the other.

`Private` is opened in `dpsapf.privacy` alone. `Released` is made there alone, by what adds the noise. Whoever writes a file
that may be published asks for `Released`.
"""

import typing
from collections.abc import Iterator
from dataclasses import dataclass

import torch


class Private:
    """Sums over private units, before noise.

    Args:
        parts: tensors that are released together.
    """

    def __init__(self, parts: list[torch.Tensor]) -> None:
        self._parts = list(parts)

    def opened(self) -> list[torch.Tensor]:
        """Return the tensors; for `dpsapf.privacy` only."""
        return self._parts

    def __reduce__(self) -> typing.NoReturn:
        """Refuse to be pickled: that would be a file without noise."""
        raise TypeError("private sums are not written to a file: release them through a Meter")


@dataclass(frozen=True)
class Released:
    """What a mechanism gave away, and what it costs nothing to go on computing with.

    Attributes:
        values: float64, in the shapes of the sums.
        expected: units that a batch has on average, q N; not how many it had, which is private.
    """

    values: tuple[torch.Tensor, ...]
    expected: float = 1.0

    def means(self) -> Iterator[torch.Tensor]:
        """Yield each sum over the expected batch, made when it is asked for."""
        return (value / self.expected for value in self.values)


def only_released(value: Released) -> Released:
    """Let released numbers pass.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, Released):
        raise TypeError(f"{type(value).__name__} was not released: only what a Meter gave away may be written")
    return value
