"""The checked config, its runs, and the functions that rules share."""

import sys
from pathlib import Path

from dpsapf.config import DatasetEntry, ModelEntry, ProtocolEntry, parse_config
from dpsapf.errors import UserError
from dpsapf.methods import method
from dpsapf.runs import Layout
from dpsapf.workflow import code_digest, entry_digest, flags, spend_records, trained_files

try:
    CONFIG = parse_config(config, ", ".join(map(str, workflow.configfiles)))
except UserError as error:
    raise WorkflowError(str(error)) from None

LAYOUT = Layout(Path("results") / CONFIG.name)
RUNS = {run.id: run for run in CONFIG.runs}
SCORES = {run.scores_id: run for run in CONFIG.runs if method(run.method).selects}
GPU = {"gpu": CONFIG.resources.gpus} if CONFIG.resources.gpus else {}
TORCH = {"mem_mb": CONFIG.resources.memory_mb, "runtime": CONFIG.resources.runtime_min} | GPU
THREADS = CONFIG.compute.threads

# `dpsapf` of this Python, unless an activated environment has its own
shell.prefix(f'set -euo pipefail; export PATH="$PATH:{Path(sys.executable).parent}"; ')


wildcard_constraints:
    run="[^/]+",
    scores="[^/]+",
    dataset="[^/]+?",
    public_model="[^/]+?",


def given(files):
    """Write the named inputs of a rule as options, lists as several values."""
    words = []
    for name, value in files.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        words += ["--" + name.replace("_", "-"), *map(str, values)] if values else []
    return " ".join(words)
