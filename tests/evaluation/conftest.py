"""A dataset, two equal protocols and a feature network, all tiny."""

import numpy as np
import pytest
import yaml
from safetensors.torch import save_file

from dpsapf.datasets.archive import write_archive
from dpsapf.evaluation import weights as module
from dpsapf.evaluation.network import FeatureNetwork
from dpsapf.support.records import write_record
from tests.prepared_dataset import write_dataset


@pytest.fixture
def folder(tmp_path, monkeypatch, dataset_record):
    generator = np.random.default_rng(0)
    parts = {}
    for split, count in (("train", 60), ("validation", 10), ("test", 20)):
        labels = np.arange(count) % 2
        pixels = generator.integers(0, 120, (count, 32, 32, 3)) + 100 * labels[:, None, None, None]
        parts[split] = pixels.astype(np.uint8), labels
    write_dataset(tmp_path / "dataset.safetensors", parts)
    write_archive(tmp_path / "same.npz", dict(zip(("images", "labels"), parts["train"], strict=True)))
    write_record(tmp_path / "dataset.json", dataset_record)
    (tmp_path / "networks").mkdir()
    save_file(FeatureNetwork(3).state_dict(), tmp_path / "networks" / "tiny.safetensors")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "weights.py"))
    protocol = {
        "feature_network": "package:tiny",
        "feature_resolution": 32,
        "resize": "lanczos",
        "kid_subset_size": 20,
        "classifiers": ["resnet"],
        "classifier_steps": 5,
    }
    (tmp_path / "protocols.yaml").write_text(yaml.safe_dump({"tiny-v1": protocol, "tiny-v2": protocol}))
    return tmp_path
