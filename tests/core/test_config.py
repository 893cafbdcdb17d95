import json
from pathlib import Path

import pytest
import yaml

from dpsapf.config import DatasetEntry, ModelEntry, ProtocolEntry, load_registry, load_yaml, parse_config, schemas
from dpsapf.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def demo():
    return load_yaml("config/config.yaml")


def test_demo_has_fifteen_trained_runs_on_four_datasets():
    runs = parse_config(demo()).runs
    trained = [run for run in runs if run.epsilon is not None]
    assert len(trained) == 15 and len(runs) == 19
    assert {run.dataset for run in runs} == {"mnist5k", "digits", "oct-mini", "histo-mini"}


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "config").glob("*.yaml")))
def test_every_config_file_is_valid(file):
    registries = {"datasets.yaml": DatasetEntry, "public_models.yaml": ModelEntry, "protocols.yaml": ProtocolEntry}
    registries["my-datasets.yaml"] = DatasetEntry
    if file in registries:
        assert load_registry(f"config/{file}", registries[file])
    else:
        assert parse_config(load_yaml(f"config/{file}")).runs


@pytest.mark.parametrize("name", list(schemas()))
def test_schema_files_are_those_of_the_classes(name):
    written = json.loads((ROOT / "workflow" / "schemas" / f"{name}.schema.json").read_text())
    assert written == json.loads(json.dumps(schemas()[name])), "run: python -m dpsapf.config"


def changed(path, value):
    data = demo()
    *parents, last = path.split(".")
    section = data
    for parent in parents:
        section = section[parent]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("privacy.step", 10, r"privacy = '...': Additional properties are not allowed \('step' was unexpected\)"),
        ("privacy.steps", None, "'steps' is a required property"),
        ("privacy.steps", 0, "privacy.steps = 0: 0 is less than the minimum of 1"),
        ("privacy.steps", "ten", "privacy.steps = 'ten': 'ten' is not of type 'integer'"),
        ("privacy.clipping", "none", "privacy.clipping = 'none': 'none' is not one of"),
        ("sampling.guidance_scale", 0.5, "sampling.guidance_scale = 0.5"),
        ("studies.main.dataset", ["mnist"], "studies: dataset = 'mnist': must be one of mnist5k"),
        ("studies.main.method", ["dp-lara"], "studies.main.method.0 = 'dp-lara'"),
        ("studies.main.epsilon", [0], "studies.main.epsilon.0 = 0"),
        ("studies.main.ratio", [30], "studies.main.ratio.0 = 30: 30 is greater than the maximum of 1"),
        ("studies.main.public_model", ["sd-v9"], "studies: public_model = 'sd-v9': must be one of public-mini"),
        ("evaluation.protocol", "demo-v0", "evaluation.protocol = 'demo-v0': must be one of demo-v1"),
        ("compute.device", "tpu", "compute.device = 'tpu'"),
        ("studies", {}, "studies = 'no runs': name at least one study"),
    ],
)
def test_a_bad_key_is_named_with_value_and_remedy(path, value, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_config(changed(path, value))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_mapping(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_yaml(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="must be a mapping"):
        load_yaml(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="not YAML"):
        load_yaml(tmp_path / "bad.yaml")


def test_integers_become_floats_where_the_field_is_a_float():
    data = demo()
    data["studies"] = {"s": {"dataset": ["digits"], "method": ["dp-lora"], "epsilon": [3]}}
    assert parse_config(data).runs[0].epsilon == 3.0
    assert yaml.safe_dump(data)
