"""What the Snakefile asks of the package: command-line flags of a config section, digests of a stage's code."""

import dataclasses
import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path

from dpsapf.config import entry
from dpsapf.methods import method
from dpsapf.runs import Layout, RunSpec

CODE: dict[str, tuple[str, ...]] = {
    "datasets": ("datasets",),
    "public_models": ("public_models",),
    "privacy": ("privacy", "saliency"),
    "saliency": ("saliency", "privacy", "public_models"),
    "finetune": ("finetune", "saliency", "privacy", "public_models"),
    "sampling": ("sampling", "finetune", "public_models"),
    "evaluation": ("evaluation",),
    "aggregation": ("aggregation",),
    "paper_figures": ("../paper_figures",),
}


def flags(*sections: object, only: tuple[str, ...] = (), prefix: str = "") -> str:
    """Write dataclasses as command-line options; null values are left out.

    Args:
        sections: config sections or a run.
        only: field names to keep; all if empty.
        prefix: put before every option's name, e.g. ``saliency_``.
    """
    words = []
    for section in sections:
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if value is None or (only and field.name not in only):
                continue
            name = (prefix + field.name).replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            else:
                words += [f"--{name}", str(value)]
    return shlex.join(words)


def score_flags(run: RunSpec) -> str:
    """Write the options of the saliency release that a run uses; a release of noisy scores serves every ratio."""
    names = ["score", "mechanism", "sigma_s", "seed"]
    if run.mechanism not in (None, "gaussian"):
        names += ["level", "ratio"]
    return f"--candidates {run.released_from} {flags(run, only=tuple(names))}"


def given(files: Mapping[str, object]) -> str:
    """Write a rule's named inputs as options; a list becomes several values, an empty one nothing."""
    words: list[str] = []
    for name, value in files.items():
        paths = [str(value)] if isinstance(value, str) else [str(path) for path in value]
        words += ["--" + name.replace("_", "-"), *paths] if paths else []
    return shlex.join(words)


def code_digest(stage: str) -> str:
    """Digest the source of a stage and of what its results depend on, so that an edit re-runs it."""
    digest = hashlib.sha256()
    for folder in CODE[stage]:
        for path in sorted((Path(__file__).parent / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def entry_digest(file: str, name: str, cls: type) -> str:
    """Digest one entry of a registry, so that adding or changing another entry re-runs nothing."""
    return hashlib.sha256(repr(entry(file, name, cls)).encode()).hexdigest()[:16]


def spend_records(layout: Layout, run: RunSpec) -> list[str]:
    """List the spend records that a run's audit needs, one per release."""
    row = method(run.method)
    scores = [layout.scores(run.scores_id, "spend.json")] if row.selects else []
    return scores + ([layout.run(run.id, "spend.json")] if row.trains else [])


def trained_files(layout: Layout, run: RunSpec, *names: str) -> dict[str, str]:
    """Map input names to files that only a run that trains has: ``selection``, ``weights`` and so on."""
    files = {"selection": "selection.csv", "weights": "weights.safetensors"}
    files |= {"spend": "spend.json", "training_log": "training_log.csv"}
    return {name: layout.run(run.id, files[name]) for name in names} if method(run.method).trains else {}
