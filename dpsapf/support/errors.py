"""The one error that a user may see: every mistake in one line, with its key, its value and the remedy."""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

MOST_LINES = 20  # of the mistakes in files: a folder may have thousands


class UserError(ValueError):
    """A mistake in an input or a setting, told in one line.

    Args:
        key: the option, config key or file that is wrong.
        value: what was found there.
        remedy: what would be right.
    """

    def __init__(self, key: str, value: object, remedy: str) -> None:
        self.key, self.value, self.remedy = key, value, remedy
        super().__init__(f"{key} = {value!r}: {remedy}")


class UserErrors(UserError):
    """Several mistakes of one input, a line each.

    Args:
        errors: at least one.
        most: lines that are written, some of every kind, before it is said how many more there are; None: all.
    """

    def __init__(self, errors: Sequence[UserError], most: int | None = None) -> None:
        first = errors[0]
        self.errors, self.key, self.value, self.remedy = tuple(errors), first.key, first.value, first.remedy
        shown = _of_every_kind(errors, most or len(errors))
        more = [f"and {len(errors) - len(shown)} more"] if len(shown) < len(errors) else []
        ValueError.__init__(self, "\n".join([*map(str, shown), *more]))


def _of_every_kind(errors: Sequence[UserError], most: int) -> list[UserError]:
    """Choose so many mistakes: the first of every remedy, then all of the rarest remedies; in the order that they have."""
    sizes, seen, ranks = Counter(error.remedy for error in errors), set(), []
    for error in errors:
        ranks.append((error.remedy in seen, sizes[error.remedy]))
        seen.add(error.remedy)
    chosen = sorted(range(len(errors)), key=ranks.__getitem__)[:most]
    return [errors[place] for place in sorted(chosen)]


class Mistakes(list[UserError]):
    """Mistakes that are collected, so that all of them are told at once."""

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Keep the mistake that ends the block, and go on after it."""
        try:
            yield
        except UserErrors as error:
            self.extend(error.errors)
        except UserError as error:
            self.append(error)

    def tell(self) -> None:
        """Raise what was collected, in `MOST_LINES` lines at most.

        Raises:
            UserErrors: there is at least one mistake.
        """
        if self:
            raise UserErrors(self, MOST_LINES)


def one_of(value: object, known: Iterable[object]) -> str:
    """Write the remedy for an unknown name: the known ones, and the nearest if one is near."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.6)
    return f"must be one of {', '.join(names)}" + (f"; did you mean {near[0]}?" if near else "")


def out_of_memory(error: Exception) -> bool:
    """Recognise torch's errors of its GPU and CPU allocators, and Python's."""
    name, text = type(error).__name__, str(error)
    return name == "OutOfMemoryError" or isinstance(error, MemoryError) or "can't allocate memory" in text
