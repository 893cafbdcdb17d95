"""What made a record: versions, platform, commit."""

import platform
import subprocess
import typing
from importlib import metadata
from pathlib import Path

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # pydantic needs it below Python 3.12

PACKAGES = ("dpsapf", "torch", "diffusers", "peft", "opacus", "dp-accounting", "timm", "clean-fid")

CODE = (
    "dpsapf",
    "workflow",
    "Snakefile",
    "pyproject.toml",
)  # of a checkout: what makes results; configs are recorded by themselves

Version = typing.Annotated[str, Field(pattern=r"^[\w.+!-]{1,40}$")]


class Provenance(TypedDict, total=False):
    """What made a record, and nothing else: no other key, no free text."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    python: Version
    platform: typing.Annotated[str, Field(pattern=r"^[\w.+~-]{1,150}$")]
    versions: dict[typing.Literal[PACKAGES], Version]
    git_commit: typing.Annotated[str, Field(pattern=r"^[0-9a-f]{3,40}(\+dirty)?$")] | None


def provenance() -> Provenance:
    """Say what made a record: package, Python and library versions, platform, git commit (or null)."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: metadata.version(name) for name in PACKAGES if _installed(name)},
        "git_commit": git_commit(),
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def git_commit() -> str | None:
    """Return the commit of the checkout that the package runs from, with ``+dirty`` if its `CODE` is changed."""
    root = Path(__file__).resolve().parents[2]
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *CODE)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+dirty" if changed else commit


def _git(root: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
