"""Copies of the tiny models that a test may change, and prepare-public-model on them."""

import json
import shutil

import pandas as pd
import pytest
import yaml

from dpsapf.experiment.records import ModelRecord
from dpsapf.experiment.stages import PreparePublicModel
from dpsapf.public_models.prepare import prepare_public_model
from dpsapf.support.records import read_record


@pytest.fixture
def prepare(tmp_path):
    """Prepare an entry; returns the record and the table of candidates."""

    def run(**entry):
        registry = tmp_path / "models.yaml"
        registry.write_text(yaml.safe_dump({"mini": {"resolution": 32, "licence": "MIT", **entry}}))
        options = PreparePublicModel(
            name="mini", registry=registry, record=tmp_path / "model.json", candidates=tmp_path / "candidates.csv"
        )
        prepare_public_model(options)
        return read_record(options.record, ModelRecord), pd.read_csv(options.candidates)

    return run


@pytest.fixture
def changed(tmp_path, mini, z_image):
    """Copy a family's tiny model with some keys of its JSON files changed; None drops a key."""

    def copy(family, file, **keys):
        folder = tmp_path / "changed"
        if not folder.exists():
            shutil.copytree({"stable-diffusion": mini, "z-image": z_image}[family], folder)
        config = json.loads((folder / file).read_text()) | keys
        (folder / file).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
        return folder

    return copy
