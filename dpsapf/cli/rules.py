"""What the Snakefile asks of the package: command-line options of config sections, and which files a rule reads."""

import re
import shlex
from collections.abc import Iterable, Mapping

from dpsapf.experiment.layout import Layout
from dpsapf.experiment.run_files import fragility_file, selects_by_fragility
from dpsapf.experiment.runs import RunSpec
from dpsapf.support.checked import Checked


def flags(*sections: Checked, only: tuple[str, ...] = (), prefix: str = "") -> str:
    """Write settings as command-line options; null values are left out.

    Args:
        sections: config sections or a run.
        only: field names to keep; all if empty.
        prefix: put before every option's name, e.g. ``saliency.``.
    """
    words = []
    for section in sections:
        for key, value in section:
            if value is None or (only and key not in only):
                continue
            name = prefix + key.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            elif isinstance(value, tuple):
                words += [f"--{name}", *map(str, value)] if value else []
            else:
                words += [f"--{name}", str(value)]
    return shlex.join(words)


def score_flags(run: RunSpec) -> str:
    """Write the options of the saliency release that a run uses; a release of noisy scores serves every ratio."""
    names = ["score", "mechanism", "seed", *["sigma_s"] * (run.sigma_s != "auto")]
    if run.mechanism not in (None, "gaussian"):
        names += ["level", "ratio"]
    return f"--candidates {run.released_from} {flags(run, only=tuple(names))}"


def score_files(layout: Layout, run: RunSpec, clipping_norm: float | str) -> dict[str, str]:
    """Map input names to what a run's scores read; the run's plan only where that finds how they are released."""
    dataset, model = run.scored_dataset, run.public_model
    files = {
        "dataset": layout.dataset(dataset, "dataset.json"),
        "model": layout.model(model, "model.json"),
        "candidate_table": layout.model(model, "candidates.csv"),
        "latents": layout.latents(dataset, model, "latents.safetensors"),
        "prompts": layout.latents(dataset, model, "prompts.safetensors"),
    }
    found = run.mechanism is not None and "auto" in (run.sigma_s, clipping_norm)
    return files | ({"plan": layout.run(run.id, "plan.json")} if found else {})


def given(files: Mapping[str, object], besides: tuple[str, ...] = ()) -> str:
    """Write a rule's named inputs as options, but some; a list becomes several values, an empty one nothing."""
    words: list[str] = []
    for name, value in files.items():
        if name in besides:
            continue
        paths = [str(value)] if isinstance(value, str) else [str(path) for path in value]
        words += ["--" + name.replace("_", "-"), *paths] if paths else []
    return shlex.join(words)


def plan_files(layout: Layout, run: RunSpec, noise: str) -> dict[str, str]:
    """Map input names to what a run's plan reads; with noise system the images, too, on which spends stay on record."""
    files = {"dataset": layout.dataset(run.dataset, "dataset.json")}
    files["candidate_table"] = layout.model(run.public_model, "candidates.csv")
    if run.scored_dataset not in (None, run.dataset):
        files["proxy_dataset"] = layout.dataset(run.scored_dataset, "dataset.json")
    if run.mechanism is not None:
        files["gradients"] = layout.gradients(run.dataset, run.public_model, run.released_from)
    if noise == "system":
        named = {"archive": "dataset", "proxy_archive": "proxy_dataset"}
        files |= {name: files[of].replace(".json", ".safetensors") for name, of in named.items() if of in files}
    return files


def selection_files(layout: Layout, run: RunSpec) -> dict[str, str]:
    """Map input names to what a run's selection reads: plan and candidates, released scores, what noise breaks."""
    files = {"plan": layout.run(run.id, "plan.json"), "candidate_table": layout.model(run.public_model, "candidates.csv")}
    if run.scored_dataset:
        files["scores"] = layout.scores(run.scores_id, "scores.csv")
    if selects_by_fragility(run):
        files |= fragility_file(layout, run)
    return files


def run_pattern(runs: Iterable[RunSpec]) -> str:
    """Return a regular expression that the ids of some runs match, and nothing else."""
    return "|".join(re.escape(run.id) for run in runs) or "(?!)"
