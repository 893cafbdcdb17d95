"""Which files a run's stages leave, and which of them its audit reads."""

from functools import partial

from dpsapf.experiment.layout import Layout
from dpsapf.experiment.methods import FRAGILITY, method
from dpsapf.experiment.runs import RunSpec

OWN = {  # what a run's own release leaves: its file, and which methods do
    "selection": ("selection.csv", "trains"),
    "selection_record": ("selection.json", "trains"),
    "weights": ("weights.safetensors", "trains"),
    "training_log": ("private_log.csv", "trains"),
    "population": ("population.safetensors", "evolves"),
    "spend": ("spend.json", "spends"),
    "private": ("private.json", "spends"),
}
PUBLIC = {"model": "model.json", "candidate_table": "candidates.csv"}  # of the public model


def audit_files(layout: Layout, run: RunSpec) -> dict[str, str | list[str]]:
    """Map input names to what a run's audit reads: the plan, a spend record per release, the files that they name.

    And public ones, which say what those files hold.
    """
    row, files = method(run.method), {"plan": layout.run(run.id, "plan.json")}
    at = [partial(layout.scores, run.scores_id)] * run.selects + [partial(layout.run, run.id)] * row.spends
    files |= {"spends": [path("spend.json") for path in at], "privates": [path("private.json") for path in at]}
    if run.scored_dataset:
        files["scores"] = layout.scores(run.scores_id, "scores.csv")
    if run.scored_dataset not in (None, run.dataset):
        files["proxy_spend"] = layout.scores(run.scores_id, "spend.json")
    if row.trains:
        files |= {name: layout.model(run.public_model, file) for name, file in PUBLIC.items()}
    if selects_by_fragility(run):
        files |= fragility_file(layout, run)
    if row.evolves:
        files["dataset"] = layout.dataset(run.dataset, "dataset.json")
    return files | own_files(layout, run, "selection", "selection_record", "weights", "population")


def selects_by_fragility(run: RunSpec) -> bool:
    """Tell whether what noise breaks decides which matrices a run trains, or at what ranks."""
    return run.rule in ("noise-aware", "noise-budget") or run.lora_rank == "auto" or run.proxy == FRAGILITY


def fragility_file(layout: Layout, run: RunSpec) -> dict[str, str]:
    """Map the input's name to what noise breaks in the matrices that a run chooses from."""
    return {"fragility": layout.fragility(run.dataset, run.public_model, run.released_from)}


def own_files(layout: Layout, run: RunSpec, *names: str) -> dict[str, str]:
    """Map input names to files of a run's own release, of ``names`` (keys of `OWN`) those that its method leaves."""
    row = method(run.method)
    return {name: layout.run(run.id, file) for name in names for file, left_if in [OWN[name]] if getattr(row, left_if)}
