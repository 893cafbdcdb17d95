"""One sub-command per rule: parse, check, call one function, write. Heavy imports wait for the call."""

import importlib
import json
import logging
import sys
import time
import typing
from collections.abc import Callable
from pathlib import Path

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter
from pydantic import ValidationError

import dpsapf
from dpsapf.cli.commands import COMMANDS, Command
from dpsapf.cli.nodes import check_device, run, set_to_now
from dpsapf.experiment.fields import READS, WRITES, below_a_file, paths, wrong_paths
from dpsapf.support.checked import Checked, mistakes
from dpsapf.support.errors import UserError, UserErrors
from dpsapf.support.files import write_text
from dpsapf.support.interruption import AGAIN, Interrupted, heard, listening
from dpsapf.support.leading import leads
from dpsapf.support.provenance import provenance
from dpsapf.support.records import as_json

LOG = logging.getLogger("dpsapf")
MOST_FILES = 8  # of one option that are named in a log
Flag = typing.Annotated[bool, Parameter(negative=())]


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command.

    Returns:
        0; 2 after an error, told on standard error with a line for every mistake; `AGAIN` if a signal asked it to end; or 1
        after a defect, told with its traceback.
    """
    words = sys.argv[1:] if arguments is None else arguments
    with listening():
        try:
            return application()(_named(words), exit_on_error=False, print_error=False) or 0
        except CycloptsError as error:
            print(_prefixed(words, str(_told(words, error))), file=sys.stderr)
        except UserError as error:
            LOG.error("%s", _prefixed(words, str(error)))
        except Interrupted as ended:
            heard()
            LOG.warning("%s", _prefixed(words, str(ended)))
            return AGAIN
        except Exception:
            LOG.exception("%s", _prefixed(words, "unexpected: a defect, please report it with what follows"))
            return 1
    return 2


def application() -> App:
    """Build the command line from the options' classes."""
    shared = Parameter(consume_multiple=True, negative_iterable=())
    app = App("dpsapf", help=dpsapf.__doc__, version=dpsapf.__version__, default_parameter=shared, result_action="return_value")
    app.help_format = "plaintext"
    for place, command in enumerate(COMMANDS.values()):
        app.command(_entry(command), name=command.name, help=command.help, sort_key=place)
    return app


def _entry(command: Command) -> Callable[..., int]:
    def entry(*, options: Checked, dry_run: Flag = False, log: Path | None = None, quiet: Flag = False) -> int:
        """Run the command.

        Args:
            options: its options.
            dry_run: say what would be read and written, then stop
            log: also write the log to this file
            quiet: warnings and errors only
        """
        _start_log(None, quiet)
        _check_log(log)
        _start_log(None if dry_run else log, quiet)
        _check_paths(options)
        if dry_run:
            print(_describe(command, options))
            return 0
        check_device(options)
        set_to_now(options)
        start = time.monotonic()
        run(getattr(importlib.import_module(command.module), command.name.replace("-", "_")), options)
        if leads() and command.keeps_options:
            _save_options(command, options)
        read, written = (_named_files(paths(options, role)) for role in (READS, WRITES))
        LOG.info("%s: read %s; wrote %s; %.1f s", command.name, read, written, time.monotonic() - start)
        return 0

    entry.__annotations__["options"] = typing.Annotated[command.options, Parameter(name="*")]
    return entry


def _named(words: list[str]) -> list[str]:
    return [words[0], *COMMANDS[words[0]].named(words[1:])] if words[:1] and words[0] in COMMANDS else words


def _told(words: list[str], error: CycloptsError) -> UserError | CycloptsError:
    """Return every mistake in the values, every option that is missing, or cyclopts' line on an unknown option or command."""
    if isinstance(error.__cause__, ValidationError):
        return UserErrors(mistakes(COMMANDS[words[0]].options, error.__cause__, _option))
    if isinstance(error, MissingArgumentError) and (missing := _missing(words)):
        return UserErrors(missing)
    return error


def _missing(words: list[str]) -> list[UserError]:
    """List the options that a command needs and that were not given."""
    given = {word.split("=")[0] for word in COMMANDS[words[0]].named(words[1:])}
    needed = {_option((name,)): field for name, field in COMMANDS[words[0]].options.model_fields.items() if field.is_required()}
    return [UserError(name, None, f"is required: {field.description}") for name, field in needed.items() if name not in given]


def _option(loc: tuple[int | str, ...]) -> str:
    return "--" + ".".join(str(name).replace("_", "-") for name in loc if isinstance(name, str))


def _prefixed(words: list[str], lines: str) -> str:
    name = " ".join(["dpsapf", *(word for word in words[:1] if word in COMMANDS)])
    return "\n".join(f"{name}: {line}" for line in lines.splitlines())


def _check_log(log: Path | None) -> None:
    if log is not None and log.is_dir():
        raise UserError("--log", str(log), "is a folder, and a file is due: also write the log to this file")
    if log is not None and (wrong := list(below_a_file("--log", log))):
        raise UserErrors(wrong)


def _check_paths(options: Checked) -> None:
    if wrong := list(wrong_paths(options)):
        raise UserErrors(wrong)


def _named_files(files: dict[str, list[Path]]) -> str:
    """Name files, those of one option by their number where they are many."""
    told = [
        f"{len(group)} {name}" if len(group) > MOST_FILES else ", ".join(map(str, group))
        for name, group in files.items()
        if group
    ]
    return ", ".join(told) or "nothing"


def _describe(command: Command, options: Checked) -> str:
    lines = [f"dpsapf {command.name} (dry run)"]
    reads, writes = paths(options, READS), paths(options, WRITES)
    lines += [f"  reads   {path}" for files in reads.values() for path in files]
    lines += [f"  writes  {path}" for files in writes.values() for path in files]
    return "\n".join(lines + [f"  {key} = {value}" for key, value in as_json(options).items() if key not in reads | writes])


def _save_options(command: Command, options: Checked) -> None:
    written = next(iter(paths(options, WRITES).values()), None)
    if written is None:
        return
    record = {"command": command.name, "options": as_json(options), "provenance": provenance()}
    write_text(written[0].parent / f"{command.name}.options.json", json.dumps(record, indent=2) + "\n")


def _start_log(file: Path | None, quiet: bool) -> None:
    """Log to standard error and to the end of a file; of several processes, one says what all do."""
    quiet, handlers = quiet or not leads(), [logging.StreamHandler()]
    if file and leads():
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file))
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s", handlers=handlers, force=True)
    if file and leads() and file.stat().st_size:
        LOG.info("--- again, %s", time.strftime("%Y-%m-%d %H:%M:%S"))
