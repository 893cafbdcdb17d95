"""One sub-command per rule: parse, check, call one function, write. Heavy imports wait for the call."""

import argparse
import dataclasses
import importlib
import logging
import sys
import typing
from pathlib import Path

from dpsapf import __version__
from dpsapf.commands import COMMANDS, Command
from dpsapf.errors import UserError
from dpsapf.fields import MISSING, base_type, check, choices_of
from dpsapf.records import as_json, provenance, write_text

LOG = logging.getLogger("dpsapf")


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command; return 0, or 2 after a one-line error on standard error."""
    namespace = _parser().parse_args(arguments)
    command = COMMANDS[namespace.command]
    _start_log(namespace)
    try:
        options = _options(command, namespace)
        if namespace.dry_run:
            print(_describe(command, options))
            return 0
        _run(command, options)
    except UserError as error:
        LOG.error("dpsapf %s: %s", namespace.command, error)
        return 2
    return 0


def _run(command: Command, options: object) -> None:
    module, function = command.entry.split(":")
    getattr(importlib.import_module(module), function)(options)
    _save_options(command, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dpsapf", description=__import__("dpsapf").__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = subparsers.add_parser(name, help=command.help, description=command.help)
        for field in dataclasses.fields(command.options):
            _add_argument(sub, field, typing.get_type_hints(command.options)[field.name])
        sub.add_argument("--dry-run", action="store_true", help="say what would be read and written, then stop")
        sub.add_argument("--log", type=Path, help="also write the log to this file")
        sub.add_argument("--quiet", action="store_true", help="warnings and errors only")
    return parser


def _add_argument(parser: argparse.ArgumentParser, field: dataclasses.Field, annotation: object) -> None:
    flag = "--" + field.name.replace("_", "-")
    inner, _ = base_type(annotation)
    keywords: dict[str, typing.Any] = {"required": field.default is MISSING, "help": _help(field)}
    if field.default is not MISSING:
        keywords["default"] = field.default
    if inner is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **keywords)
        return
    if typing.get_origin(inner) is tuple:
        keywords["nargs"] = "+"
        inner = typing.get_args(inner)[0]
    if choices_of(inner):
        keywords["choices"] = choices_of(inner)
        inner = type(choices_of(inner)[0])
    else:
        keywords["metavar"] = "FILE" if inner is Path else inner.__name__.upper()
    parser.add_argument(flag, type=inner, **keywords)


def _help(field: dataclasses.Field) -> str:
    unit = f" [{field.metadata['unit']}]" if field.metadata.get("unit") else ""
    default = "" if field.default is MISSING or field.default is None else f" (default: {field.default})"
    return (field.metadata["help"] + unit + default).replace("%", "%%")


def _options(command: Command, namespace: argparse.Namespace) -> object:
    values = {field.name: getattr(namespace, field.name) for field in dataclasses.fields(command.options)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    options = command.options(**values)
    check(options)
    for name, path in _paths(options, "reads"):
        if not path.exists():
            raise UserError("--" + name.replace("_", "-"), str(path), "does not exist; run the stage that writes it first")
    return options


def _paths(options: object, role: str) -> list[tuple[str, Path]]:
    rows = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.metadata.get(role) and value is not None:
            rows += [(field.name, path) for path in (value if isinstance(value, tuple) else (value,))]
    return rows


def _describe(command: Command, options: object) -> str:
    lines = [f"dpsapf {command.name} (dry run)"]
    lines += [f"  reads   {path}" for _, path in _paths(options, "reads")]
    lines += [f"  writes  {path}" for _, path in _paths(options, "writes")]
    paths = {name for role in ("reads", "writes") for name, _ in _paths(options, role)}
    lines += [f"  {key} = {value}" for key, value in as_json(options).items() if key not in paths]
    return "\n".join(lines)


def _save_options(command: Command, options: object) -> None:
    import json

    folder = _paths(options, "writes")[0][1].parent
    record = {"command": command.name, "options": as_json(options), "provenance": provenance()}
    write_text(folder / f"{command.name}.options.json", json.dumps(record, indent=2) + "\n")


def _start_log(namespace: argparse.Namespace) -> None:
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if namespace.log and not namespace.dry_run:
        namespace.log.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(namespace.log, mode="w"))
    level = logging.WARNING if namespace.quiet else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", handlers=handlers, force=True)


if __name__ == "__main__":
    sys.exit(main())
