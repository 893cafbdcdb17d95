from pathlib import Path

import pytest
import yaml

from dpsapf.experiment.registries import DatasetEntry, ModelEntry, ProtocolEntry, load_registry, load_yaml
from dpsapf.experiment.settings import parse_config
from dpsapf.support.errors import UserError, UserErrors

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def demo():
    return load_yaml("config/config.yaml")


def test_demo_has_twenty_trained_runs_on_four_datasets():
    runs = parse_config(demo()).runs
    trained = [run for run in runs if run.epsilon is not None]
    assert len(trained) == 20 and len(runs) == 24
    assert {run.dataset for run in runs} == {"mnist5k", "digits", "oct-mini", "histo-mini"}


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "config").glob("*.yaml")))
def test_every_config_file_is_valid(file):
    registries = {"datasets.yaml": DatasetEntry, "public_models.yaml": ModelEntry, "protocols.yaml": ProtocolEntry}
    registries["my-datasets.yaml"] = DatasetEntry
    if file in registries:
        assert load_registry(f"config/{file}", registries[file])
    else:
        assert parse_config(load_yaml(f"config/{file}")).runs


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
        ("privacy.step", 10, "privacy.step = 10: unknown key: must be one of steps, .*; did you mean steps?"),
        ("privacy.steps", None, "privacy.steps = None: is required: DP-SGD steps"),
        ("privacy.steps", 0, "privacy.steps = 0: must be at least 1"),
        ("privacy.steps", "ten", "privacy.steps = 'ten': must be a valid integer"),
        ("privacy.clipping", "none", "privacy.clipping = 'none': must be one of flat, automatic"),
        ("sampling.guidance_scale", 0.5, "sampling.guidance_scale = 0.5"),
        (
            "studies.main.dataset",
            ["mnist"],
            "studies.main.dataset.0 = 'mnist': must be one of mnist5k, .*; did you mean mnist5k?",
        ),
        ("studies.main.method", ["dp-lara"], "studies.main.method.0 = 'dp-lara': must be one of .*; did you mean dp-lora?"),
        ("studies.main.epsilon", [0], "studies.main.epsilon.0 = 0"),
        ("studies.main.epsilon", [], "studies.main.epsilon = \\[\\]: needs at least one value"),
        ("studies.main.ratio", [30], "studies.main.ratio.0 = 30: must be at most 1"),
        ("studies.main.public_model", ["sd-v9"], "studies.main.public_model.0 = 'sd-v9': must be one of public-mini"),
        ("evaluation.protocol", "demo-1", "evaluation.protocol = 'demo-1': must be one of demo-v1, .*; did you mean demo-v1?"),
        ("compute.device", "tpu", "compute.device = 'tpu'"),
        ("studies", {}, "studies = {}: no runs: name at least one study"),
        ("name", "../x", "name = '../x': must match pattern"),
    ],
)
def test_a_bad_key_is_named_with_value_and_remedy(path, value, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_config(changed(path, value), "my.yaml")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("my.yaml: ")


def test_all_mistakes_of_a_file_come_at_once_names_included():
    data = changed("privacy.steps", 0)
    data["studies"]["main"]["dataset"] = ["mnist"]
    data["studies"]["ratios"]["ratio"] = [2]
    with pytest.raises(UserErrors) as caught:
        parse_config(data)
    assert [error.value for error in caught.value.errors] == [2, 0, "mnist"]


def test_integers_become_floats_where_the_field_is_a_float():
    data = demo()
    data["studies"] = {"s": {"dataset": ["digits"], "method": ["dp-lora"], "epsilon": [3]}}
    assert parse_config(data).runs[0].epsilon == 3.0
    assert yaml.safe_dump(data)


def test_an_axis_of_training_at_the_configs_value_is_the_same_run():
    """Shared work stays shared: the run has no such axis in its id."""
    axes = {"dataset": ["mnist5k"], "method": ["dp-lora", "dp-full"], "seed": [0]}
    own = {"learning_rate": [demo()["finetune"]["learning_rate_lora"], 0.5], "training_steps": [demo()["privacy"]["steps"], 7]}
    runs = parse_config(demo() | {"studies": {"a": axes, "b": axes | own}}).runs
    lora = [run.id for run in runs if run.method == "dp-lora"]
    assert lora == [f"mnist5k--public-mini--dp-lora{end}--eps10--seed0" for end in ("", "--t7", "--lr0.5", "--lr0.5-t7")]
    full = [run for run in runs if run.method == "dp-full"]
    assert len(full) == 5 and all(run.training_steps in (None, 7) for run in full), "its own rate is another one"


def test_every_axis_of_training_is_in_the_id():
    axes = {"dataset": ["mnist5k"], "method": ["dp-lora"], "learning_rate": [0.5], "training_steps": [7], "batch_size": [9]}
    (run,) = parse_config(demo() | {"studies": {"a": axes | {"lora_rank": [2], "optimizer": ["adamw-8bit"]}}}).runs
    assert run.id == "mnist5k--public-mini--dp-lora--lr0.5-t7-b9-k2-adamw-8bit--eps10--seed0"


def test_scores_are_compared_on_known_datasets():
    with pytest.raises(UserErrors, match="compare_scores.1 = 'celebra': must be one of .*did you mean celeba"):
        parse_config(demo() | {"compare_scores": ["digits", "celebra"]})
    with pytest.raises(UserErrors, match="measure_fragility.0 = 'digit': must be one of .*did you mean digits"):
        parse_config(demo() | {"measure_fragility": ["digit"]})


def test_a_protocol_that_fixes_the_number_of_images_is_given_so_many():
    """Told before anything is computed: sampling costs days at the paper's scale."""
    data = load_yaml(ROOT / "config" / "paper.yaml")
    data["sampling"]["count"] = 50000
    with pytest.raises(UserError, match="sampling.count = 50000: protocol paper-text-v1 compares exactly 60000: draw so many"):
        parse_config(data)


def test_the_configs_of_the_arms_differ_in_the_bound_of_scores_alone():
    arms, automatic = (load_yaml(ROOT / "config" / f"{name}.yaml") for name in ("arms", "arms-auto"))
    assert (arms["saliency"].pop("clipping_norm"), automatic["saliency"].pop("clipping_norm")) == (1.0, "auto")
    assert {key: arms[key] for key in arms.keys() - {"name", "studies"}} == {
        key: automatic[key] for key in automatic.keys() - {"name", "studies"}
    }
    shared = ("epsilon", "learning_rate", "seed")
    (study,) = automatic["studies"].values()
    assert all(other[axis] == study[axis] for other in arms["studies"].values() for axis in shared)


def test_an_automatic_bound_is_refused_where_no_plan_finds_it():
    data = load_yaml(ROOT / "config" / "arms-auto.yaml")
    for key in ("compare_scores", "compare_rankings"):
        with pytest.raises(UserError, match="saliency.clipping_norm = 'auto': is found by plans"):
            parse_config(data | {key: ["mnist5k"]})
