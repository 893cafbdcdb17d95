from pathlib import Path

import pytest
import yaml

from dpsapf.experiment.registries import (
    DatasetEntry,
    ModelEntry,
    ProtocolEntry,
    entry,
    entry_digest,
    load_registry,
    load_yaml,
)
from dpsapf.support.errors import UserError, UserErrors

CONFIG = Path(__file__).parents[2] / "config"
MODEL = {"path": "x", "resolution": 32, "licence": "MIT"}


@pytest.fixture
def register(tmp_path):
    def write(data):
        (tmp_path / "registry.yaml").write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
        return tmp_path / "registry.yaml"

    return write


def test_all_mistakes_of_a_registry_come_at_once(register):
    data = load_yaml(CONFIG / "public_models.yaml")
    data["sd-v1-5"]["resolution"] = 4
    data["prompt2med"]["licence"] = 7
    with pytest.raises(UserErrors) as caught:
        load_registry(register(data), ModelEntry)
    assert {error.value for error in caught.value.errors} == {4, 7}


def test_files_that_are_no_mapping(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_yaml(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="must be a mapping"):
        load_yaml(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="not YAML"):
        load_yaml(tmp_path / "bad.yaml")


def test_an_empty_file_is_no_mapping(register):
    with pytest.raises(UserError, match="registry.yaml = None: must be a mapping of keys to values"):
        load_yaml(register("# nothing but a comment\n"))


@pytest.mark.parametrize("text", ["a: !!python/object/apply:os.mkdir [{}]", "a: !!python/name:os.system", "a: 1\n\tb: 2"])
def test_what_yaml_would_run_is_refused_in_one_line(register, tmp_path, text):
    file = register(text.format(tmp_path / "made"))
    with pytest.raises(UserError, match="registry.yaml: line [12] = 'not YAML': ") as caught:
        load_yaml(file)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_entries_keep_their_order_and_fill_in_defaults(register):
    models = load_registry(register({"z": MODEL, "a": MODEL | {"vae": "v"}}), ModelEntry)
    assert list(models) == ["z", "a"]
    assert (models["z"].vae, models["a"].vae, models["a"].revision) == (None, "v", None)


def test_an_unknown_name_is_told_with_the_known_ones(register):
    file = register({"sd-v1-4": MODEL, "sd-v1-5": MODEL})
    assert entry(file, "sd-v1-5", ModelEntry).resolution == 32
    with pytest.raises(UserError, match="= 'sd-v15': must be one of sd-v1-4, sd-v1-5; did you mean sd-v1-5\\?") as caught:
        entry(file, "sd-v15", ModelEntry)
    assert caught.value.key == f"entry of {file}"


def test_a_mistake_in_another_entry_is_told_too(register):
    file = register({"good": MODEL, "bad": MODEL | {"resolution": "32"}})
    with pytest.raises(UserError, match="registry.yaml: bad: resolution = '32': must be a valid integer"):
        entry(file, "good", ModelEntry)


DIGITS = load_yaml(CONFIG / "datasets.yaml")["digits"]
DEMO = load_yaml(CONFIG / "protocols.yaml")["demo-v1"]


@pytest.mark.parametrize(
    ("cls", "data", "message"),
    [
        (DatasetEntry, DIGITS | {"channels": 2}, "channels = 2: must be (one of )?1.*3"),
        (DatasetEntry, DIGITS | {"resolution": 7}, "resolution = 7: must be at least 8"),
        (DatasetEntry, DIGITS | {"resolution": 32.5}, "resolution = 32.5: must be a valid integer"),
        (DatasetEntry, DIGITS | {"classes": "0123456789"}, "classes = '0123456789'"),
        (DatasetEntry, DIGITS | {"classes": ["0", 1]}, "classes.1 = 1: must be a valid string"),
        (DatasetEntry, DIGITS | {"test": -1}, "test = -1: must be at least 0"),
        (DatasetEntry, DIGITS | {"procedural": "yes"}, "procedural = 'yes': must be a valid boolean"),
        (DatasetEntry, DIGITS | {"license": "MIT"}, "license = 'MIT': unknown key: .*did you mean licence\\?"),
        (ModelEntry, {"path": "x", "resolution": 32}, "licence = None: is required: licence of the weights"),
        (ModelEntry, MODEL | {"sha256": 0}, "sha256 = 0: must be a valid string"),
        (ProtocolEntry, DEMO | {"resize": "nearest"}, "resize = 'nearest': must be one of lanczos, bicubic, torch-bilinear"),
        (ProtocolEntry, DEMO | {"kid_subset_size": 1}, "kid_subset_size = 1: must be at least 2"),
        (ProtocolEntry, DEMO | {"neighbours": 0}, "neighbours = 0: must be at least 1"),
        (ProtocolEntry, DEMO | {"synthetic_validation": 0.6}, "synthetic_validation = 0.6: must be at most 0.5"),
        (ProtocolEntry, DEMO | {"classifier_learning_rate": 0}, "classifier_learning_rate = 0: must be greater than 0"),
        (ProtocolEntry, DEMO | {"classifier_repeats": 0}, "classifier_repeats = 0: must be at least 1"),
        (ProtocolEntry, DEMO | {"probe_ridge": 0}, "probe_ridge = 0: must be greater than 0"),
        (ProtocolEntry, None, "mine: \\(top level\\) = None"),
    ],
)
def test_a_bad_entry_is_told_with_file_name_key_value_and_remedy(register, cls, data, message):
    with pytest.raises(UserErrors, match=message) as caught:
        load_registry(register({"mine": data}), cls)
    (error,) = caught.value.errors
    assert str(error).startswith(f"{register({'mine': data})}: mine: ") and "\n" not in str(error)


@pytest.mark.parametrize(
    ("file", "cls"), [("datasets.yaml", DatasetEntry), ("public_models.yaml", ModelEntry), ("protocols.yaml", ProtocolEntry)]
)
def test_an_entry_is_read_as_it_stands_in_the_file(file, cls):
    for name, data in load_yaml(CONFIG / file).items():
        read = entry(CONFIG / file, name, cls).model_dump(mode="json")
        nested = {"downloads", "recipes"}
        assert {key: read[key] for key in data.keys() - nested} == {k: v for k, v in data.items() if k not in nested}
        for key in nested:
            for found, told in zip(read.get(key, ()), data.get(key, ()), strict=True):
                assert {name: found[name] for name in told} == told


PINNED = {
    "demo-v1": "5a2503f008d43e40",
    "demo-v2": "ebdf6f78c0eb4221",
    "probe-v1": "9a20ff83d587406b",
    "paper-text-v1": "0be0d7872fc096b8",
    "paper-lite-v1": "d8986e3de6eb2088",
    "paper-code-v1": "2d331bc8b1f62c81",
    "clean-v1": "8a5f1bfa395ea5bd",
    "dinov2-v1": "34d08fe6ce93f66c",
}


def test_no_protocol_changes_its_meaning_under_its_name():
    """A changed value needs a new name: records and tables of the old one are still there.

    A digest covers defaults, too, but those of keys that came later (`later`), which mean what was done without them.
    """
    names = set(load_yaml(CONFIG / "protocols.yaml"))
    assert {name: entry_digest(CONFIG / "protocols.yaml", name, ProtocolEntry) for name in names} == PINNED


OTHER = {
    "quantise": True,
    "value_range": "imagenet",
    "reference_split": "test",
    "reference_images": 2,
    "synthetic_images": 2,
    "least_images": 3,
    "frechet_images": 2,
    "precision_neighbours": 5,
    "counts_itself": True,
    "metrics": ["density"],
    "fld_of": "train",
    "inception_splits": 1,
    "bootstrap_draws": 1,
}
RECIPE = {"classifiers": ["resnet"], "steps": 1, "batch": 1, "optimizer": "sgd", "learning_rate": 0.1}


def test_a_key_that_came_later_changes_the_digest_only_away_from_its_default(register):
    fields = {key: field for key, field in ProtocolEntry.model_fields.items() if field.exclude_if is not None}
    assert fields.keys() == OTHER.keys() | {"recipes"} and not fields.keys() & DEMO.keys()
    same = {key: list(field.default) if isinstance(field.default, tuple) else field.default for key, field in fields.items()}
    assert entry_digest(register({"x": DEMO | same}), "x", ProtocolEntry) == PINNED["demo-v1"]
    others = {entry_digest(register({"x": DEMO | {key: value}}), "x", ProtocolEntry) for key, value in OTHER.items()}
    recipes = DEMO | {"classifiers": [], "recipes": [RECIPE]}
    others |= {entry_digest(register({"x": recipes}), "x", ProtocolEntry), PINNED["demo-v1"]}
    assert len(others) == len(OTHER) + 2


def test_a_recipe_is_part_of_the_digest(register):
    paper = load_yaml(CONFIG / "protocols.yaml")["paper-text-v1"]
    first, *others = paper["recipes"]
    files = [
        {"p": paper},
        {"p": paper | {"recipes": [first | {"ema_decay": 0.999}, *others]}},
        {"p": paper | {"recipes": [first]}},
    ]
    assert len({entry_digest(register(file), "p", ProtocolEntry) for file in files}) == len(files)


def test_a_changed_protocol_has_another_digest(register):
    changes = {"classifier_steps": 121, "classifier_repeats": 2, "probe_ridge": 0.2, "classifiers": ["probe"]}
    files = [{"demo-v1": DEMO}, *({"demo-v1": DEMO | {key: value}} for key, value in changes.items())]
    assert len({entry_digest(register(file), "demo-v1", ProtocolEntry) for file in files}) == len(files)


def test_a_model_is_a_folder_or_a_repository():
    for name, model in load_registry(CONFIG / "public_models.yaml", ModelEntry).items():
        assert (model.path is None) != (model.hub_id is None), name
        assert model.path is not None or model.revision is None or len(model.revision) == 40


def test_a_folder_and_a_binary_file_are_told_in_one_line(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(UserError, match="cannot be read as UTF-8 text"):
            load_yaml(path)
