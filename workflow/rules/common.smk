"""The checked config, its runs, and the functions that rules share."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import yaml

from dpsapf.cli import alone, slurm, slurm_queue, warm
from dpsapf.cli.beforehand import asked, check_beforehand
from dpsapf.cli.needs import Needs, gpus_here
from dpsapf.cli.slurm import Site
from dpsapf.experiment.registries import (
    PACKAGED,
    DatasetEntry,
    ModelEntry,
    ProtocolEntry,
    entry,
    entry_digest,
    load_registry,
)
from dpsapf.experiment.settings import UpdateConfig, VariationConfig, parse_config
from dpsapf.support.errors import UserError
from dpsapf.experiment.methods import AXES, MEMBERS, WALKING, method
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.run_files import audit_files, fragility_file, own_files
from dpsapf.cli.code import code_digest
from dpsapf.cli.rules import (
    flags,
    given,
    plan_files,
    run_pattern,
    score_files,
    score_flags,
    selection_files,
)

# calls that start nothing: they work where a start would be refused
LOOKS = set(
    "--unlock --lint --list-rules --list -l --report --archive --dag --rulegraph --filegraph --summary -S --detailed-summary -D"
    " --cleanup-metadata".split()
)

try:
    CONFIG = parse_config(config, ", ".join(map(str, workflow.configfiles)))
    SITE = Site.load(Path(workflow.basedir) / "slurm" / "site.yaml")
    LAYOUT = Layout(Path("results") / CONFIG.name)
    # whether jobs run on this machine: every other executor must be told how many jobs it may submit
    LOCAL = workflow.is_main_process and workflow.resource_settings.nodes is None
    # whether this call starts jobs, or says which it would start
    STARTS = workflow.is_main_process and not LOOKS & {
        word.split("=")[0] for word in sys.argv
    }
    ASKED, _ = asked(CONFIG, LAYOUT, sys.argv)
    if STARTS:
        check_beforehand(CONFIG, LAYOUT, sys.argv, local=LOCAL)
except UserError as error:
    raise WorkflowError(str(error)) from None

RUNS = {run.id: run for run in CONFIG.runs}
# the first run that uses each scores
SCORES = {run.scores_id: run for run in reversed(CONFIG.runs) if run.scored_dataset}
# runs whose images evolve, and the others: which rules make their files
EVOLVED = run_pattern(run for run in CONFIG.runs if method(run.method).evolves)
SAMPLED = run_pattern(
    run
    for run in CONFIG.runs
    if not (method(run.method).evolves or run.id in CONFIG.made_elsewhere)
)
# runs that are only images, made by another group, and those of this suite
EXTERNAL = run_pattern(run for run, _, _ in CONFIG.made_elsewhere.values())
OWN = run_pattern(run for run in CONFIG.runs if run.id not in CONFIG.made_elsewhere)
# what jobs ask a cluster for, or this machine
NEEDS = Needs(CONFIG, SITE, LOCAL)
if STARTS:
    NEEDS.tell_overlong()
# this machine's GPUs, for which its jobs wait; --resources gpu=N says another number
if STARTS and LOCAL and CONFIG.compute.device == "cuda":
    GPUS = workflow.global_resources.get("gpu").value or gpus_here()
    workflow.register_resource("gpu", GPUS)
    try:
        NEEDS.check_gpus(GPUS)
    except UserError as error:
        raise WorkflowError(str(error)) from None
# one process per GPU, which share a job's work
LAUNCH = (
    f"torchrun --standalone --nproc-per-node {CONFIG.resources.gpus} -m"
    if CONFIG.resources.gpus > 1
    else "python -m"
)
THREADS = CONFIG.compute.threads
SPEED = flags(
    CONFIG.compute, only=tuple(key for key, _ in CONFIG.compute if key != "threads")
)
PRECISION = f"--precision {CONFIG.precision}"
COMPARISONS = [
    LAYOUT.table(f"{table}--{dataset}--{model}.csv")
    for table, datasets in (
        ("saliency_agreement", CONFIG.compare_scores),
        ("ranking_stability", CONFIG.compare_rankings),
    )
    for dataset in datasets
    for model in sorted({x.public_model for x in CONFIG.runs if x.dataset == dataset})
]
UPDATES = tuple(UpdateConfig.model_fields)
VARIATIONS = tuple(VariationConfig.model_fields)
PROTOCOL = CONFIG.evaluation.protocol
# whether a published feature network is there; on a cluster it is fetched by the submitting host
NETWORK = (
    {}
    if entry(CONFIG.protocols_file, PROTOCOL, ProtocolEntry).feature_network.startswith(
        PACKAGED
    )
    else {"fetched": LAYOUT.network(PROTOCOL, "fetched.txt")}
)
EVALUATION = f"--protocol {PROTOCOL} --registry {CONFIG.protocols_file}"

ENVIRONMENT = str(Path(workflow.basedir) / "envs" / "environment.yaml")

# rules run the package of this checkout: in the Python that runs Snakemake, or in the rule's conda environment
USES_CONDA = "conda" in {
    str(method) for method in workflow.deployment_settings.deployment_method
}
# stages on this machine's CPU are forked from one process that has imported torch and diffusers
WARM = not USES_CONDA and CONFIG.compute.device == "cpu"
PATH = "" if USES_CONDA else f'export PATH="{Path(sys.executable).parent}:$PATH"; '
# what a command finds in its shell: how it starts, and what changes its speed and memory only. None of it is in params, so
# that another micro-batch, device or number of GPUs makes nothing again. On a cluster's node, threads are those granted.
SHELL = {
    "LAUNCH": LAUNCH,
    "SPEED": SPEED,
    "DEVICE": CONFIG.compute.device,
    "GRANTED": (
        os.environ.get("SLURM_CPUS_PER_TASK", "") if workflow.remote_exec else ""
    ),
    "PYTHONPATH": workflow.basedir,
}
EXPORTS = " ".join(f"{name}={shlex.quote(value)}" for name, value in SHELL.items())
shell.prefix(f"set -euo pipefail; export {EXPORTS}; {PATH}")

HELD = []  # this config's results, while this Snakemake works on them


# of a second or two each: not worth a cluster's job
localrules:
    plan_privacy,
    plans_made,
    select_matrices,
    audit_privacy,
    publish_population,
    collect_metrics,
    collect_external,
    aggregate,
    draw_figures,
    write_report,


wildcard_constraints:
    run="[^/]+",
    scores="[^/]+",
    dataset="[^/]+?",
    public_model="[^/]+?",
    candidates="|".join(map(re.escape, MEMBERS)),


# Where images are first computed with: nothing starts there before every plan that is asked for is made, if the folder is new. Later
# planned.txt is a plain file, which no job makes. Else a new run would join other runs' jobs to its own, and Snakemake would pass
# over those of them that have changed, or make them again.
PLANNED = "planned.txt"
COMPUTED = [
    LAYOUT.latents(dataset, run.public_model, PLANNED)
    for run in RUNS.values()
    for dataset in (run.dataset, run.scored_dataset or run.dataset)
]
COMPUTED += [
    LAYOUT.run(run.id, PLANNED) for run in RUNS.values() if method(run.method).evolves
]
NEW = {
    str(Path(file).parent.relative_to(LAYOUT.root))
    for file in COMPUTED
    if not Path(file).exists()
}
UNPLANNED = "|".join(map(re.escape, sorted(NEW))) or "(?!)"


def dataset_inputs(wildcards):
    """Whether the files of a published dataset are there; on a cluster they are fetched by the submitting host."""
    fetched = load_registry(CONFIG.datasets_file, DatasetEntry)[
        wildcards.dataset
    ].downloads
    return (
        {"fetched": LAYOUT.dataset(wildcards.dataset, "fetched.txt")} if fetched else {}
    )


def model_inputs(wildcards):
    """Whether a model of the hub is in its cache; on a cluster it is fetched by the submitting host."""
    models = load_registry(CONFIG.public_models_file, ModelEntry)
    local = models[wildcards.public_model].path is not None
    return (
        {}
        if local
        else {"fetched": LAYOUT.model(wildcards.public_model, "fetched.txt")}
    )


def plan_inputs(wildcards):
    """What a plan is made for; with noise of the operating system the images, too, on which spends stay on record."""
    return plan_files(LAYOUT, RUNS[wildcards.run], CONFIG.privacy.noise)


def score_inputs(wildcards):
    """Images that are scored, the model, and a plan where C_s or sigma_s is auto."""
    return score_files(LAYOUT, SCORES[wildcards.scores], CONFIG.saliency.clipping_norm)


def selection_inputs(wildcards):
    """The plan, the candidates and what the run's method selects by."""
    return selection_files(LAYOUT, RUNS[wildcards.run])


def training_inputs(wildcards):
    """The plan, the model, what was selected, latents and prompts, and what noise breaks if it decides the learning rate."""
    run = RUNS[wildcards.run]
    files = {
        "plan": LAYOUT.run(run.id, "plan.json"),
        "model": LAYOUT.model(run.public_model, "model.json"),
        "selection": LAYOUT.run(run.id, "selection.csv"),
        "latents": LAYOUT.latents(run.dataset, run.public_model, "latents.safetensors"),
        "prompts": LAYOUT.latents(run.dataset, run.public_model, "prompts.safetensors"),
    }
    return files | (fragility_file(LAYOUT, run) if run.learning_rate == "auto" else {})


def audit_inputs(wildcards):
    """The plan, what was spent and measured, every file that the spend records name, and the public ones that say what those hold."""
    return audit_files(LAYOUT, RUNS[wildcards.run])


def audit_settings(wildcards):
    """What, beside the plan, says exactly which files a run leaves."""
    row, rate = method(RUNS[wildcards.run].method), CONFIG.finetune.learning_rate_lora
    if row.trains:
        return f"{flags(CONFIG.finetune, only=UPDATES)} --learning-rate {rate}"
    if row.evolves:
        evolving = flags(CONFIG.evolution, only=("generation", "variants"))
        return f"{flags(CONFIG.sampling, only=('count',))} {evolving}"
    return ""


def sampling_inputs(wildcards):
    """The passed audit, what is needed to sample, and the trained parameters of runs that train."""
    run = RUNS[wildcards.run]
    return {
        "ledger": LAYOUT.run(run.id, "ledger.json"),
        "dataset": LAYOUT.dataset(run.dataset, "dataset.json"),
        "model": LAYOUT.model(run.public_model, "model.json"),
        "prompts": LAYOUT.latents(run.dataset, run.public_model, "prompts.safetensors"),
    } | own_files(LAYOUT, run, "selection", "weights")


def run_records(wildcards):
    """Every record of a run that its metrics come from."""
    run = RUNS[wildcards.run]
    names = {"plan": "plan.json", "ledger": "ledger.json", "timing": "timing.json"}
    names |= {"fidelity": "fidelity.json", "utility": "utility.json"}
    predicted = (
        run.dataset in CONFIG.measure_fragility
        and run.adapter in WALKING
        and not run.lora_rank
    )
    return {
        **{name: LAYOUT.run(run.id, file) for name, file in names.items()},
        **(fragility_file(LAYOUT, run) if predicted else {}),
        **(own_files(LAYOUT, run, "weights") if predicted else {}),
        "candidate_table": LAYOUT.model(run.public_model, "candidates.csv"),
        "ceiling": LAYOUT.reference(run.dataset, PROTOCOL, "ceiling.json"),
    } | own_files(LAYOUT, run, "selection", "spend", "private", "training_log")
