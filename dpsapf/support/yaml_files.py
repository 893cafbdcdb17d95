"""YAML files of a user, read so that nothing in them is lost without a word."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from dpsapf.support.errors import UserError, UserErrors

MERGE = "tag:yaml.org,2002:merge"  # the key <<, which takes in another mapping's keys


def load_yaml(path: str | Path) -> dict:
    """Parse a YAML mapping.

    Raises:
        UserError: the file is missing, no text, not YAML, or is not a mapping.
        UserErrors: a line for every key that stands twice in one mapping, at any depth.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError("config file", str(path), "does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("config file", str(path), f"cannot be read as UTF-8 text: {error}") from error
    try:
        data, twice = _parsed(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        began = f" ({error.context} from line {error.context_mark.line + 1})" if error.context_mark else ""
        raise UserError(f"{path}: line {line}", "not YAML", f"{error.problem}{began}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{path}: line {line}", "not YAML", f"character {error.character:#x} is not allowed in it") from error
    except ValueError as error:
        raise UserError(str(path), "not YAML", f"a value in it is none that there is: {error}") from error
    if twice:
        raise UserErrors([UserError(f"{path}: line {line}", key, remedy) for line, key, remedy in twice])
    if not isinstance(data, dict):
        raise UserError(str(path), data, "must be a mapping of keys to values")
    return data


def _parsed(text: str) -> tuple[object, list[tuple[int, str, str]]]:
    """Return what a text says, and for each key that stands twice its line, its place and the remedy."""
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None, []
        twice = list(_twice(root, (), loader, set()))
        return (None if twice else loader.construct_document(root)), twice
    finally:
        loader.dispose()


def _twice(node: yaml.Node, place: tuple[str, ...], loader: yaml.SafeLoader, seen: set[int]) -> Iterator[tuple[int, str, str]]:
    """Walk the nodes, each once however often its alias stands."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _twice(value, (*place, str(index)), loader, seen)
        return
    lines: dict[object, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
            means = loader.construct_object(key)  # as Python compares keys: 1, 1.0 and yes are one
            if means in lines:
                yield line, ".".join((*place, name)), f"stands in line {lines[means]} already: leave one of the two out"
            lines.setdefault(means, line)
        yield from _twice(value, (*place, name), loader, seen)
