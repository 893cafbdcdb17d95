import json
from pathlib import Path

import jsonschema
import pytest

from dpsapf.experiment.registries import load_yaml
from dpsapf.experiment.schemas import schemas, write_schemas
from dpsapf.experiment.settings import parse_config
from dpsapf.support.errors import UserErrors

ROOT = Path(__file__).parents[2]
REGISTRIES = ("datasets", "public_models", "protocols")


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def objects(schema):
    """Every object with named keys in a schema."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        for value in schema.values():
            yield from objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects(value)


@pytest.mark.parametrize("name", list(schemas()))
def test_schema_files_are_those_of_the_classes(name):
    written = json.loads((ROOT / "workflow" / "schemas" / f"{name}.schema.json").read_text())
    assert written == json.loads(json.dumps(schemas()[name])), "run: python -m dpsapf.experiment.schemas"


def test_write_schemas_makes_the_files_of_the_repository(tmp_path):
    write_schemas(tmp_path)
    committed = ROOT / "workflow" / "schemas"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in committed.iterdir())
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (committed / path.name).read_bytes()


@pytest.mark.parametrize("name", list(schemas()))
def test_a_schema_is_closed_and_explains_every_key(name):
    found = list(objects(schemas()[name]))
    assert found
    for schema in found:
        assert schema["additionalProperties"] is False, schema["title"]
        assert all(key.get("description") for key in schema["properties"].values()), schema["title"]


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "config").glob("*.yaml")))
def test_the_schemas_accept_the_files_of_the_repository(file):
    stem = Path(file).stem.removeprefix("my-")
    jsonschema.validate(load_yaml(f"config/{file}"), schemas()[stem if stem in REGISTRIES else "config"])


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("privacy", "step", 3),
        ("privacy", "steps", 0),
        ("privacy", "steps", "ten"),
        ("privacy", "clipping", "none"),
        ("privacy", "delta", 0.2),
        ("privacy", "clipping_norm", 0),
        ("sampling", "guidance_scale", 0.5),
        ("finetune", "ema_decay", 1.0),
        ("compute", "device", "tpu"),
        ("resources", "gpus", -1),
        (None, "name", "../x"),
        (None, "seed", 0),
    ],
)
def test_editors_and_the_snakefile_refuse_the_same(section, key, value):
    data = load_yaml("config/config.yaml")
    (data[section] if section else data)[key] = value
    with pytest.raises(UserErrors, match=key):
        parse_config(data)
    with pytest.raises(jsonschema.ValidationError) as caught:
        jsonschema.validate(data, schemas()["config"])
    assert section in caught.value.absolute_path or section is None
