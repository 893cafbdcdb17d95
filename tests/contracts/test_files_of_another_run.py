"""No stage takes a file of another run: each input is swapped, one at a time, for that of another dataset and model."""

import importlib

import numpy as np
import pytest

from dpsapf.cli.commands import MODULES, Command
from dpsapf.experiment import stages
from dpsapf.experiment.fields import READS, WRITES, paths
from dpsapf.experiment.records import DatasetRecord
from dpsapf.experiment.registries import ModelEntry
from dpsapf.pretraining.architecture import build, save_pipeline
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import as_json, write_record
from tests.prepared_dataset import write_dataset

IMAGES = 12
RUN = {"method": "dp-sapf", "level": "matrix", "ratio": 0.3, "sigma_s": 10.0, "epsilon": 10.0}
PRIVACY = {"steps": 2, "expected_batch_size": 6, "delta": 0.01}
SCORED = {"mechanism": "gaussian", "sigma_s": 10.0, "noise": "seed", "delta": 0.01}
TRAINED = {"learning_rate_lora": 0.01, "learning_rate_full": 0.01}
DRAWN = {"count": 2, "steps": 1, "guidance_scale": 1.0}
FILES = {
    "json": ("dataset", "model", "plan", "selection_record", "ledger", "timing", "spend0", "spend1", "private0", "private1"),
    "csv": ("candidate_table", "scores", "selection", "training_log"),
    "safetensors": ("latents", "prompts", "weights"),
}
# files that another run's may stand in for: the later stage that finds it out
FOUND_LATER = {
    ("SelectMatrices", "plan"): "the audit: selection.json names its run",
    ("SelectMatrices", "scores"): "the audit: selection.json has the digest of its scores",
    ("Finetune", "selection"): "the audit: spend.json has the digest of its selection",
    ("PlanPrivacy", "dataset"): "nobody has to: the plan is of that dataset then",
    ("PlanPrivacy", "archive"): "nobody has to: with noise from a seed it is not read, and with other noise it is refused",
    ("EmbedPrompts", "dataset"): "scoring, training and sampling: prompts say their dataset",
    ("EmbedPrompts", "model"): "scoring, training and sampling: prompts say their model",
    ("EncodeDataset", "model"): "scoring and training: latents say their model",
}


def call(options):
    command = Command(type(options), MODULES[type(options)])
    getattr(importlib.import_module(command.module), command.name.replace("-", "_"))(options)


def make(folder, name, seed, record):
    """Make a run's files, stage by stage; returns the options of each stage."""
    folder.mkdir()
    save_pipeline(build(folder / "build", [name, ""]), folder / "model")
    entry = ModelEntry(path=str(folder / "model"), resolution=32, licence="MIT")
    (folder / "models.yaml").write_text(f"{name}: {as_json(entry)}".replace("None", "null").replace("'", '"'))
    images = np.random.default_rng(seed).integers(0, 256, (IMAGES, 28, 28, 3), dtype=np.uint8)
    archive = write_dataset(folder / "dataset.safetensors", {"train": (images, np.arange(IMAGES) % 2)}, None)
    known = replace(record, name=name, train=IMAGES, train_per_class=(6, 6), id=sha256(archive))
    write_record(folder / "dataset.json", known)
    at = {file: folder / f"{file}.{end}" for end, files in FILES.items() for file in files}
    of = {key: at[key] for key in ("dataset", "model")}
    encoded = {key: at[key] for key in ("latents", "prompts")}
    table = {"candidate_table": at["candidate_table"]}
    listed = {"record": at["model"], "candidates": at["candidate_table"]}
    call(stages.PreparePublicModel(name=name, registry=folder / "models.yaml", **listed))
    spends, privates = (at["spend0"], at["spend1"]), (at["private0"], at["private1"])
    trained = {key: at[key] for key in ("selection", "weights")}
    chosen = {"scores": at["scores"], "plan": at["plan"]}
    order = [
        stages.EncodeDataset(archive=archive, out=at["latents"], **of),
        stages.EmbedPrompts(out=at["prompts"], **of),
        stages.PlanPrivacy(dataset=at["dataset"], public_model=name, out=at["plan"], **table, **RUN, **PRIVACY),
        stages.ScoreSaliency(scores=at["scores"], spend=spends[0], private=privates[0], **of, **encoded, **table, **SCORED),
        stages.SelectMatrices(out=at["selection"], record=at["selection_record"], **chosen, **table),
        stages.Finetune(
            plan=at["plan"], model=at["model"], spend=spends[1], private=privates[1], training_log=at["training_log"],
            **trained, **encoded, **TRAINED,
        ),
        stages.AuditPrivacy(
            spends=spends, privates=privates, selection_record=at["selection_record"], out=at["ledger"], **trained, **chosen,
            **table, model=at["model"],
        ),
        stages.Sample(
            ledger=at["ledger"], prompts=at["prompts"], timing=at["timing"], archive=folder / "samples.npz",
            contact_sheet=folder / "sheet.png", **of, **trained, **DRAWN,
        ),
    ]  # fmt: skip
    for options in order:
        call(options)
    return {type(options).__name__: options for options in order}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    shared = {"loader": "x", "source": "x", "licence": "x", "procedural": True, "classes": ("a", "b"), "provenance": {}}
    counts = {"resolution": 28, "channels": 3, "train": 1, "validation": 0, "test": 0, "train_per_class": (1, 1)}
    folder = tmp_path_factory.mktemp("runs")
    record = DatasetRecord(name="d", prompts=("a", "b"), id="d", **shared, **counts)
    return [make(folder / name, name, seed, record) for seed, name in enumerate(("one", "two"))]


SWAPPED = [
    (stage.__name__, name)
    for stage in (
        stages.EncodeDataset, stages.EmbedPrompts, stages.PlanPrivacy, stages.ScoreSaliency, stages.SelectMatrices,
        stages.Finetune, stages.AuditPrivacy, stages.Sample,
    )
    for name, field in stage.model_fields.items()
    if field.json_schema_extra == READS and name not in ("candidate_table", "fragility", "prior", "registry", "population")
    and (stage, name) != (stages.AuditPrivacy, "dataset")  # of runs whose images evolve
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "name"), SWAPPED, ids=lambda value: value)
def test_a_file_of_another_run_is_refused(runs, tmp_path, stage, name):
    ours, theirs = (run[stage] for run in runs)
    written = {key: tmp_path / files[0].name for key, files in paths(ours, WRITES).items()}
    swapped = replace(ours, **{name: getattr(theirs, name)}, **written)
    if (stage, name) in FOUND_LATER:
        return call(swapped)
    with pytest.raises(UserError):
        call(swapped)
    assert not any(path.exists() for path in written.values())
