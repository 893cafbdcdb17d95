"""Digests of the code behind a command: an edit that may change its results makes them again, and no other edit does."""

import ast
import functools
import hashlib
import itertools
import re
import typing
from collections.abc import Iterator
from pathlib import Path

from dpsapf.cli.commands import COMMANDS

ROOT = Path(__file__).parents[2]
PACKAGES = ("dpsapf", "paper_figures")
TEMPLATES = {".html", ".css", ".js", ".csv"}  # files beside modules that results are made of, too
STRING = rb"(?s:'''(?:\\.|[^\\])*?'''|\"\"\"(?:\\.|[^\\])*?\"\"\")|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\""
SPACE = rb"[ \t]*\#[^\n]*|[ \t]+(?=\n)|\n(?=[ \t]*(?:\#[^\n]*)?\n)"  # comments, ends of lines, empty lines
STRING_OR_SPACE = re.compile(STRING + b"|(?P<space>" + SPACE + b")")


class Module(typing.NamedTuple):
    """What counts of one source file: the modules that it imports, and its code (`meaning`)."""

    imports: frozenset[str]
    code: bytes


def code_digest(command: str) -> str:
    """Digest the code that a command's results depend on: its module, and whatever of the suite that imports, and so on.

    Templates in the rooms of these modules count, too. Comments, docstrings, the help of options and empty lines do not.

    Args:
        command: a sub-command, e.g. ``score-saliency``.

    Returns:
        16 hex digits, the same under every release of Python.
    """
    files = behind(COMMANDS[command].module)
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + _read(files[name]).code + b"\0")
    rooms = {file.parent for name, file in files.items() if name not in PACKAGES[:1]}
    for path in sorted({path for room in rooms for path in _templates(room)}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def behind(module: str) -> dict[str, Path]:
    """Map the names of a module and of all modules of the suite that it imports, directly or not, to their files."""
    files: dict[str, Path] = {}
    left = [module]
    while left:
        name = left.pop()
        path = None if name in files else _file(name)
        if path is not None:
            files[name] = path
            left += [*_read(path).imports, *_parents(name)]
    return files


def meaning(text: bytes, tree: ast.Module, blank: bytes = b"") -> bytes:
    """Remove comments, docstrings, the help of options and empty lines from Python source.

    Args:
        text: UTF-8.
        tree: parsed from it.
        blank: put in the place of each docstring and help.
    """
    lines = [0, *itertools.accumulate(map(len, text.splitlines(keepends=True)))]
    for node in sorted(_told(tree), key=lambda node: -node.lineno):
        start, end = lines[node.lineno - 1] + node.col_offset, lines[node.end_lineno - 1] + node.end_col_offset
        text = text[:start] + blank + text[end:]
    return STRING_OR_SPACE.sub(lambda found: b"" if found["space"] is not None else found[0], text).strip()


@functools.cache
def _read(path: Path) -> Module:
    text = path.read_bytes()
    tree = ast.parse(text)
    imported = itertools.chain.from_iterable(map(_imported, _statements(tree.body)))
    return Module(frozenset(imported), meaning(text, tree))


@functools.cache
def _file(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    places = (path.with_suffix(".py"), path / "__init__.py")
    return next((place for place in places if place.is_file()), None)


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


@functools.cache
def _templates(room: Path) -> list[Path]:
    return sorted(path for path in room.rglob("*") if path.suffix in TEMPLATES)


def _imported(node: ast.stmt) -> list[str]:
    """List what may be modules of the suite in an import statement."""
    names = [name.name for name in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
    if isinstance(node, ast.ImportFrom):
        names = [node.module, *(f"{node.module}.{name}" for name in names)]
    return [name for name in names if name.split(".")[0] in PACKAGES]


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield all statements, also those inside others, but not those that only a type checker reads."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and getattr(node.test, "attr", getattr(node.test, "id", None)) == "TYPE_CHECKING":
            yield from _statements(node.orelse)
            continue
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from _statements(getattr(node, part, []))


def _told(tree: ast.Module) -> Iterator[ast.expr]:
    """Yield the expressions that only a reader is told: docstrings, and the help of fields."""
    for node in _statements(tree.body):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
            yield from _help(node.value)


def _help(call: ast.Call) -> Iterator[ast.expr]:
    name = call.func.id if isinstance(call.func, ast.Name) else None
    place = {"source": 0, "target": 0, "later": 1}.get(name, len(call.args))
    told = [*call.args[place : place + 1], *(word.value for word in call.keywords if word.arg == "description")]
    yield from (value for value in told if isinstance(value, ast.Constant))
