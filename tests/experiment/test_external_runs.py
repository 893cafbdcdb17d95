import pytest
import yaml

from dpsapf.bench.estimate import table
from dpsapf.experiment.cost import jobs
from dpsapf.experiment.methods import method
from dpsapf.experiment.registries import load_yaml
from dpsapf.experiment.runs import RunSpec, external_run
from dpsapf.experiment.settings import parse_config
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError

CONFIG = "config/ci.yaml"
IMAGES = {"dataset": "digits", "images": "theirs.zip", "epsilon": 10}


def config(*runs, **changes):
    data = load_yaml(CONFIG) | changes
    return parse_config(data | {"external": {"their-method": {"label": "Their method (2025)", "runs": list(runs)}}}, CONFIG)


def test_images_of_others_are_runs_after_those_of_the_studies():
    whole = config(IMAGES, IMAGES | {"seed": 1}, IMAGES | {"epsilon": None})
    assert [run.id for run in whole.runs][2:] == [
        "digits--public-mini--external-their-method--eps10--seed0",
        "digits--public-mini--external-their-method--eps10--seed1",
        "digits--public-mini--external-their-method--seed0",
    ]
    assert list(whole.made_elsewhere) == [run.id for run in whole.runs[2:]]
    assert parse_config(load_yaml(CONFIG)).made_elsewhere == {}


def test_they_stand_beside_the_runs_of_the_model_that_their_dataset_has():
    assert config(IMAGES | {"public_model": "sd-v1-5"}).runs[-1].public_model == "sd-v1-5"
    assert config(IMAGES | {"dataset": "mnist5k"}).runs[-1].public_model == "public-mini", "no study has the dataset"
    assert len(config(IMAGES, studies={}).runs) == 1


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([IMAGES, IMAGES], "external.their-method.runs.1 = 'digits--.*--seed0': is there already"),
        ([IMAGES | {"dataset": "digit"}], "external.their-method.runs.0.dataset = 'digit': .*did you mean digits?"),
        ([IMAGES | {"public_model": "x"}], "external.their-method.runs.0.public_model = 'x': must be one of"),
        ([{"dataset": "digits", "images": "x.zip"}], "runs.0.epsilon = None: is required: epsilon that its authors claim"),
        ([IMAGES | {"epsilon": 0}], "runs.0.epsilon = 0: must be greater than 0"),
        ([], "external.their-method.runs = .*: needs at least one value"),
    ],
)
def test_mistakes_are_told_with_their_place(runs, message):
    with pytest.raises(UserError, match=message):
        config(*runs).runs  # noqa: B018


@pytest.mark.parametrize("label", ["", " ", "two\nlines", "line\n", "-x"])
def test_a_label_is_one_line(label):
    with pytest.raises(UserError, match="external.m.label"):
        parse_config(load_yaml(CONFIG) | {"external": {"m": {"label": label, "runs": [IMAGES]}}}, CONFIG)


def test_two_methods_need_two_labels():
    same = {name: {"label": "The same", "runs": [IMAGES]} for name in ("one", "other")}
    with pytest.raises(UserError, match="external.one.label = 'The same': two methods have it"):
        parse_config(load_yaml(CONFIG) | {"external": same}, CONFIG)


def test_no_study_has_them_and_no_other_run_has_their_name(run):
    with pytest.raises(UserError, match="method.0 = 'external': must be one of dp-sapf"):
        parse_config(load_yaml(CONFIG) | {"studies": {"s": {"dataset": ["digits"], "method": ["external"]}}}, CONFIG)
    with pytest.raises(ValueError, match="has a name in external"):
        replace(run, external="x")
    with pytest.raises(ValueError, match="has a name in external"):
        RunSpec(dataset="d", public_model="m", method="external")
    row = method("external")
    assert row.made_elsewhere and not (row.selects or row.trains or row.spends or row.uses)


def test_names_go_into_ids_and_so_into_paths():
    for name in ("../x", "a b", "", ".x", "a/b"):
        with pytest.raises(ValueError):
            external_run(name, "d", "m", 1.0, 0)


def test_their_jobs_are_taken_in_evaluated_and_collected():
    whole = config(IMAGES)
    theirs = [job for job in jobs(whole) if job.run.method == "external"]
    assert [job.rule for job in theirs] == ["import_images", "evaluate", "collect_external"], "the dataset's jobs are there"
    alone = [job.rule for job in jobs(config(IMAGES, studies={}))]
    assert alone == ["prepare_dataset", "import_images", "reference_features", "evaluate", "collect_external"]
    rows = table(whole, 1.0, None, {}).set_index("study")
    assert rows.loc["(external)", "runs"] == 1 and rows.loc["all", "runs"] == 3 and rows.loc["main", "runs"] == 2


def test_a_config_in_yaml(tmp_path):
    text = """
external:
  their-method:
    label: Their method (2025)
    runs:
      - {dataset: digits, images: theirs.zip, epsilon: 10, seed: 0}
"""
    assert parse_config(load_yaml(CONFIG) | yaml.safe_load(text), CONFIG).made_elsewhere
