"""What made a record: versions, platform, commit."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("dpsapf", "torch", "diffusers", "peft", "opacus", "dp-accounting", "timm", "clean-fid")


def provenance() -> dict:
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
    """Return the commit of the checkout that the package runs from, with ``+dirty`` if it is changed."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
