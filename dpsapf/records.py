"""Files that are never half-written, JSON records that match their schema, provenance."""

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import jsonschema

from dpsapf.errors import UserError
from dpsapf.fields import build, schema_of

Record = typing.TypeVar("Record")


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its name only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def as_json(record: object) -> dict:
    """Turn a dataclass into JSON-ready values (paths become strings)."""
    return json.loads(json.dumps(dataclasses.asdict(record), default=str))


def write_record(path: Path | str, record: object) -> None:
    """Write a dataclass as JSON, atomically, after checking it against its own closed schema."""
    data = as_json(record)
    validate(data, type(record), str(path))
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_record(path: Path | str, cls: type[Record]) -> Record:
    """Read a JSON record and check it against the schema of ``cls``.

    Raises:
        UserError: the file is not JSON or does not match; names file, key and what is expected.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(str(path), "not JSON", f"delete it and run its stage again ({error})") from error
    validate(data, cls, str(path))
    return build(cls, data)


def validate(data: object, cls: type, where: str) -> None:
    """Check parsed JSON or YAML against the closed schema of a dataclass.

    Raises:
        UserError: names the first key that does not fit, its value and the schema's demand.
    """
    validator = jsonschema.Draft202012Validator(schema_of(cls))
    error = jsonschema.exceptions.best_match(validator.iter_errors(data))
    if error is not None:
        key = ".".join(map(str, error.absolute_path)) or "(top level)"
        value = error.instance if not isinstance(error.instance, dict) else "..."
        raise UserError(f"{where}: {key}", value, error.message)


def sha256(path: Path | str) -> str:
    """Return the SHA-256 hex digest of a file, or of a folder's sorted relative names and contents."""
    path, digest = Path(path), hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def provenance() -> dict:
    """Say what made a record: package, Python and library versions, platform, git commit (or null)."""
    names = ("dpsapf", "torch", "diffusers", "peft", "opacus", "dp-accounting", "timm", "clean-fid")
    versions = {name: metadata.version(name) for name in names if _installed(name)}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "git_commit": git_commit(),
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def git_commit() -> str | None:
    """Return the commit of the checkout that the package runs from, with ``+dirty`` if it is changed."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
