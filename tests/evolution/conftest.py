"""A tiny run of Private Evolution: a prepared dataset, an untrained public model, a plan."""

from pathlib import Path

import numpy as np
import pytest

from dpsapf.experiment.stages import AuditPrivacy, Evolve, PlanPrivacy, PublishPopulation
from dpsapf.saliency.plan import plan_privacy
from dpsapf.support.checked import replace
from dpsapf.support.files import sha256
from dpsapf.support.records import write_record
from tests.prepared_dataset import write_dataset

IMAGES = 30
PROTOCOLS = Path(__file__).parents[2] / "config" / "protocols.yaml"


@pytest.fixture
def folder(tmp_path, model_record, two_digits):
    """Dataset and model; 30 training images of 5 users, two classes, and one image in each other split."""
    generator, labels = np.random.default_rng(0), np.arange(IMAGES + 2) % 2
    images = generator.integers(0, 120, (IMAGES + 2, 28, 28, 1)) + 100 * labels[:, None, None, None]
    ends = {"train": slice(IMAGES), "validation": slice(IMAGES, -1), "test": slice(-1, None)}
    parts = {name: (images[rows], labels[rows]) for name, rows in ends.items()}
    identity = sha256(write_dataset(tmp_path / "dataset.safetensors", parts, np.arange(IMAGES) % 5 + 10))
    changes = {"train": IMAGES, "validation": 1, "test": 1, "train_per_class": (15, 15), "users": 5, "id": identity}
    write_record(tmp_path / "dataset.json", replace(two_digits, **changes))
    write_record(tmp_path / "model.json", model_record)
    return tmp_path


def planned(folder, method="pe", **changes):
    """Write the plan of two rounds."""
    fixed = {"public_model": "public-mini", "method": method, "epsilon": 10.0, "evolution": {"iterations": 2}}
    paths = {"dataset": folder / "dataset.json", "candidate_table": folder / "unused.csv", "out": folder / "plan.json"}
    paths |= {"archive": folder / "dataset.safetensors"}
    plan_privacy(PlanPrivacy(**paths, **(fixed | {"steps": 1, "expected_batch_size": 1} | changes)))


def evolving(folder, **changes):
    """Options of evolve."""
    paths = {name: folder / f"{name}.json" for name in ("plan", "model", "dataset", "spend", "private")}
    paths |= {name: folder / f"{name}.safetensors" for name in ("population",)}
    settings = {"count": 6, "steps": 2, "guidance_scale": 2.0, "micro_batch": 4, "lookahead": 0, "last_degree": 0.5}
    fixed = {"archive": folder / "dataset.safetensors", "protocol": "demo-v1", "registry": PROTOCOLS}
    return Evolve(**paths, **(fixed | settings | changes))


def auditing(folder, **changes):
    """Options of the audit."""
    paths = {"plan": folder / "plan.json", "spends": (folder / "spend.json",), "privates": (folder / "private.json",)}
    paths |= {"population": folder / "population.safetensors", "dataset": folder / "dataset.json", "out": folder / "ledger.json"}
    return AuditPrivacy(**(paths | {"count": 6} | changes))


def publishing(folder):
    """Options of publish-population."""
    paths = {"ledger": "ledger.json", "dataset": "dataset.json", "population": "population.safetensors"}
    paths |= {"archive": "samples.npz", "contact_sheet": "sheet.png", "timing": "timing.json"}
    return PublishPopulation(**{name: folder / file for name, file in paths.items()})
