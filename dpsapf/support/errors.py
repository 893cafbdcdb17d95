"""The one error that a user may see: every mistake in one line, with its key, its value and the remedy."""

import difflib
from collections.abc import Iterable, Sequence


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
    """

    def __init__(self, errors: Sequence[UserError]) -> None:
        first = errors[0]
        self.errors, self.key, self.value, self.remedy = tuple(errors), first.key, first.value, first.remedy
        ValueError.__init__(self, "\n".join(map(str, errors)))


def one_of(value: object, known: Iterable[object]) -> str:
    """Write the remedy for an unknown name: the known ones, and the nearest if one is near."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.6)
    return f"must be one of {', '.join(names)}" + (f"; did you mean {near[0]}?" if near else "")


def out_of_memory(error: Exception) -> bool:
    """Recognise torch's errors of its GPU and CPU allocators, and Python's."""
    name, text = type(error).__name__, str(error)
    return name == "OutOfMemoryError" or isinstance(error, MemoryError) or "can't allocate memory" in text
