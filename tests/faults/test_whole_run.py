"""A whole private run, small enough for seconds: stages, audit, images, published folder, by the command line.

`python -m tests.faults` runs it on faulty copies of the tree, too: what fails first says what stopped a fault.
"""

import contextlib
import io
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpsapf.cli.main import main
from dpsapf.datasets.prepared import read_part
from dpsapf.experiment.columns import BLOCK, CANDIDATES, LAYER, MATRIX
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.records import DatasetRecord, Plan, Release, Spend
from dpsapf.experiment.run_files import audit_files
from dpsapf.experiment.runs import RunSpec
from dpsapf.finetune import train
from dpsapf.privacy import spends
from dpsapf.saliency import score
from dpsapf.saliency.progress import Progress
from dpsapf.sampling import sample
from dpsapf.support.files import sha256
from dpsapf.support.interruption import AGAIN
from dpsapf.support.records import read_record, write_record
from tests.prepared_dataset import write_dataset
from tests.tiny import TinyModel, candidates, tiny_latents, tiny_unet, write_latents, write_tiny_model

pytestmark = pytest.mark.slow
IMAGES, STEPS, BATCH = 300, 40, 60
DATASET, MODEL = "shapes", "tiny"
AXES = {"level": "matrix", "ratio": 0.3, "score": "energy", "mechanism": "gaussian", "sigma_s": 5.0, "rule": "top"}
RUN = RunSpec(
    dataset=DATASET, public_model=MODEL, method="dp-sapf", candidates="attention", adapter="lora", epsilon=10.0, seed=7, **AXES
)


def call(command, *flags, code=0, **values):
    """Run a command that ends with a code; the error that it tells is the assertion's."""
    words = [command, *flags]
    for name, value in values.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    with contextlib.redirect_stderr(io.StringIO()) as told:
        found = main([*words, "--quiet"])
    assert found == code, told.getvalue().strip().splitlines()[-1]


@contextlib.contextmanager
def interrupted(rounds):
    """Ask the process to end while it scores the last of so many micro-batches."""
    added, seen = Progress.add, []

    def add(self, *units):
        added(self, *units)
        seen.append(self.rows)
        if len(seen) == rounds:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "add", add)
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A results folder with images, a model, latents and prompts; the model is tiny whatever its record says."""
    layout = Layout(tmp_path_factory.mktemp("owner") / "results" / "tiny")
    found = {"dataset": layout.dataset(DATASET, "dataset.json"), "model": layout.model(MODEL, "model.json")}
    found |= {"archive": layout.dataset(DATASET, "dataset.safetensors")}
    found |= {"candidate_table": layout.model(MODEL, "candidates.csv")}
    found |= {name: layout.latents(DATASET, MODEL, f"{name}.safetensors") for name in ("latents", "prompts")}
    for path in found.values():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 1), dtype=np.uint8)
    identity = sha256(write_dataset(Path(found["archive"]), {"train": (pixels, np.arange(IMAGES) % 2)}))
    described = {"name": DATASET, "loader": "x", "source": "x", "licence": "x", "procedural": False, "provenance": {}}
    described |= {"classes": ("a", "b"), "prompts": ("a", "b"), "resolution": 8, "channels": 1, "id": identity}
    counts = {"train": IMAGES, "validation": 0, "test": 0, "train_per_class": (IMAGES // 2, IMAGES // 2)}
    write_record(found["dataset"], DatasetRecord(**described, **counts))
    folder = Path(found["model"]).parent / "tiny"
    write_record(found["model"], write_tiny_model(folder))
    names = candidates(tiny_unet())
    table = pd.DataFrame({MATRIX: names, LAYER: names, BLOCK: "b", CANDIDATES: "attention"})
    table.to_csv(found["candidate_table"], index=False)
    write_latents(Path(found["latents"]).parent, tiny_latents(IMAGES), identity, sha256(found["model"]))
    with pytest.MonkeyPatch.context() as patch:
        for stage in (train, score, sample):
            patch.setattr(stage, "load_model", TinyModel)
        yield layout, found


@pytest.fixture(autouse=True)
def spends_folder(files, monkeypatch):
    """One record of spends for the whole run."""
    layout, _ = files
    monkeypatch.setenv("DPSAPF_SPENDS", str(layout.root.parents[1] / "spends"))


def of(found, *names):
    return {name: found[name] for name in names}


def earlier_runs(dataset, archive):
    """Put on record that two runs of equal settings were released of the same images."""
    release = Release(name="dp-sgd", noise_multiplier=50.0, sensitivity=1.0, sampling_rate=0.1, steps=9, noise="system")
    fixed = {"unit": "image", "population": IMAGES, "made_from": {}, "numbers": 1, "trainable_parameters": 1, "private": "p" * 64}
    fixed |= {"provenance": {}, "dataset_id": dataset.id, "release": release}
    spends.know(dataset, lambda: [read_part(archive, "train")[:]])
    for letter in "xy":
        spends.record(Spend(subject=f"{DATASET}--{letter}", digest=letter * 64, **fixed))


def test_the_stages_run(files):
    layout, found = files
    earlier_runs(read_record(found["dataset"], DatasetRecord), Path(found["archive"]))
    own = {file: layout.run(RUN.id, file) for file in ("plan.json", "selection.csv", "selection.json", "weights.safetensors")}
    at = {file: layout.scores(RUN.scores_id, file) for file in ("scores.csv", "spend.json", "private.json")}
    asked = {axis: getattr(RUN, axis) for axis in (*AXES, "candidates", "adapter", "method", "public_model", "epsilon", "seed")}
    noise = {"noise": "system"}
    settings = {"steps": STEPS, "expected_batch_size": BATCH} | noise
    call("plan-privacy", **of(found, "dataset", "archive", "candidate_table"), **asked, **settings, out=own["plan.json"])
    inputs = of(found, "dataset", "model", "candidate_table", "latents", "prompts")
    scored = {axis: asked[axis] for axis in ("score", "mechanism", "sigma_s", "candidates", "seed")} | noise
    outputs = {"scores": at["scores.csv"], "spend": at["spend.json"], "private": at["private.json"]}
    scored["micro_batch"] = 16
    with interrupted(3):
        call("score-saliency", code=AGAIN, **inputs, **scored, **outputs, checkpoint_minutes=1e-9)
    call("score-saliency", **inputs, **scored, **outputs)
    outputs = {"out": own["selection.csv"], "record": own["selection.json"]}
    call("select-matrices", plan=own["plan.json"], **of(found, "candidate_table"), scores=at["scores.csv"], **outputs)
    inputs = of(found, "model", "latents", "prompts") | {"plan": own["plan.json"], "selection": own["selection.csv"]}
    outputs = {"weights": own["weights.safetensors"], "training_log": layout.run(RUN.id, "private_log.csv")}
    outputs |= {name: layout.run(RUN.id, f"{name}.json") for name in ("spend", "private")}
    rates = {"learning_rate_lora": 0.01, "learning_rate_full": 0.001}
    call("finetune", **inputs, **outputs, **rates, micro_batch=16, ema_decay=0.8, noise_multiplicity=2)


def test_the_audit_passes_it(files):
    layout, _ = files
    call("audit-privacy", **audit_files(layout, RUN), ema_decay=0.8, out=layout.run(RUN.id, "ledger.json"))
    assert read_record(layout.run(RUN.id, "plan.json"), Plan).noise == "system"


def test_images_are_sampled(files):
    layout, found = files
    own = {name: layout.run(RUN.id, file) for name, file in (("ledger", "ledger.json"), ("selection", "selection.csv"))}
    outputs = {"archive": "samples.npz", "contact_sheet": "contact_sheet.png", "timing": "timing.json"}
    outputs = {name: layout.run(RUN.id, file) for name, file in outputs.items()}
    inputs = of(found, "dataset", "model", "prompts") | own | {"weights": layout.run(RUN.id, "weights.safetensors")}
    call("sample", **inputs, count=4, steps=2, **outputs)


def test_it_is_published(files):
    layout, _ = files
    words = {"run": str(layout.root / "runs" / RUN.id), "out": layout.root.parent / "published", "hyperparameters": "public"}
    call("release", "--weights", **words)
