import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dpsapf.experiment import records
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.records import (
    ClassifierScores,
    DatasetRecord,
    Fidelity,
    Ledger,
    Measured,
    Metrics,
    Plan,
    Release,
    Spend,
    Timing,
    Utility,
    WeightsHeader,
)
from dpsapf.support.checked import Checked, replace
from dpsapf.support.errors import UserErrors
from dpsapf.support.records import as_json, read_record, write_record
from tests.fake_results import candidate_table, demo_runs, write_run

POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
RATE = st.floats(0, 1, exclude_min=True)
RELEASE = st.builds(
    Release,
    name=st.sampled_from(["saliency", "dp-sgd"]),
    mechanism=st.sampled_from(["gaussian", "exponential", "ptr", "none"]),
    noise_multiplier=st.none() | POSITIVE,
    sensitivity=st.none() | POSITIVE,
    sampling_rate=RATE,
    steps=st.integers(1, 10**9),
    noise=st.sampled_from([None, "seed", "system"]),
    epsilon=st.none() | POSITIVE,
    delta=st.none() | RATE,
)
MODELS = [kind for kind in vars(records).values() if isinstance(kind, type) and kind.__module__ == records.__name__]


@given(RELEASE)
def test_a_release_is_read_as_it_was_written(release):
    assert Release.model_validate_json(json.dumps(as_json(release)), strict=True) == release


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Every record of a run that trains, as its stages leave them."""
    layout, run = Layout(tmp_path_factory.mktemp("results")), demo_runs()[0]
    options = write_run(layout, run, candidate_table())
    kinds = {"plan": Plan, "ledger": Ledger, "spend": Spend, "fidelity": Fidelity, "utility": Utility, "ceiling": Utility}
    return {name: (kind, getattr(options, name)) for name, kind in (kinds | {"timing": Timing}).items()}


NAMES = ("plan", "ledger", "spend", "fidelity", "utility", "ceiling", "timing")


@pytest.mark.parametrize("name", NAMES)
def test_a_record_is_written_the_same_again(written, tmp_path, name):
    kind, path = written[name]
    write_record(tmp_path / "again.json", read_record(path, kind))
    assert (tmp_path / "again.json").read_text() == path.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_record_has_all_of_its_keys_and_no_other(written, tmp_path, name):
    kind, path = written[name]
    data = json.loads(path.read_text())
    assert list(data) == [key for key, field in kind.model_fields.items() if not field.exclude]
    needed = {key for key, field in kind.model_fields.items() if field.is_required()}
    (tmp_path / "bad.json").write_text(json.dumps({"of_next_year": 1}))
    with pytest.raises(UserErrors) as caught:
        read_record(tmp_path / "bad.json", kind)
    keys = {error.key.removeprefix(f"{tmp_path}/bad.json: ") for error in caught.value.errors}
    assert keys == needed | {"of_next_year"}


GONE = {"plan": ("reserved", []), "ledger": ("reserved", []), "utility": ("counts", None)}


@pytest.mark.parametrize("name", GONE)
def test_keys_that_earlier_versions_wrote_are_read_where_they_say_nothing(written, tmp_path, name):
    (kind, path), (key, empty) = written[name], GONE[name]
    data = json.loads(path.read_text())
    (tmp_path / "old.json").write_text(json.dumps(data | {key: empty}))
    assert read_record(tmp_path / "old.json", kind) == read_record(path, kind)
    (tmp_path / "old.json").write_text(json.dumps(data | {key: ["something"]}))
    with pytest.raises(UserErrors, match=rf"old.json: {key} = .*: an earlier version wrote this, and this one does not know"):
        read_record(tmp_path / "old.json", kind)


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
def test_every_result_says_what_made_it(kind):
    """Records of a stage's own have their provenance; parts of another record, what it names, and timings, have none."""
    assert issubclass(kind, Checked)
    parts = (Release, Measured, Timing, Metrics, ClassifierScores, WeightsHeader)
    assert ("provenance" in kind.model_fields) == (kind not in parts)


def test_a_mistake_deep_in_a_record_is_told_with_its_place(tmp_path, plan):
    data = as_json(plan)
    data["run"]["method"] = "dp-lara"
    data["releases"][1]["sampling_rate"] = 1.5
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(UserErrors) as caught:
        read_record(tmp_path / "plan.json", Plan)
    first, second = map(str, caught.value.errors)
    assert "run.method = 'dp-lara': must be one of dp-sapf, " in first and "did you mean dp-lora?" in first
    assert "releases.1.sampling_rate = 1.5: must be at most 1" in second


BAD = {"noise_multiplier": (0, -1), "sensitivity": (0, -1, float("inf")), "sampling_rate": (0, 1.0001), "steps": (0, 2.5)}
BAD |= {"epsilon": (0,), "delta": (0, 1.1), "mechanism": ("laplace",), "name": ("sampling",)}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_release_without_a_meaning_cannot_be_made(releases, name, value):
    with pytest.raises(ValidationError, match=f"\n{name}\n"):
        replace(releases[0], **{name: value})


def test_an_unbounded_release_has_to_say_so():
    with pytest.raises(ValidationError, match="sensitivity\n  Field required"):
        Release(name="dp-sgd", mechanism="none", sampling_rate=0.1, steps=1)
    assert Release(name="dp-sgd", mechanism="none", sensitivity=None, sampling_rate=0.1, steps=1).noise_multiplier is None


def test_records_cannot_be_changed_afterwards(plan, dataset_record):
    with pytest.raises(ValidationError, match="frozen"):
        plan.target_epsilon = 100.0
    with pytest.raises(ValidationError, match="frozen"):
        dataset_record.train += 1
    with pytest.raises(TypeError):
        plan.releases[0] = None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "2.5", None])
@pytest.mark.parametrize("name", ["fid", "kid", "precision", "recall"])
def test_a_metric_is_a_finite_number(written, tmp_path, name, value):
    data = json.loads(written["fidelity"][1].read_text()) | {name: value}
    (tmp_path / "fidelity.json").write_text(json.dumps(data))
    with pytest.raises(UserErrors, match=f"fidelity.json: {name} = "):
        read_record(tmp_path / "fidelity.json", Fidelity)


def test_counts_are_whole_numbers(dataset_record):
    with pytest.raises(ValidationError, match="train_per_class.1"):
        replace(dataset_record, train_per_class=(3, 2.5))
    assert DatasetRecord(**as_json(dataset_record)) == dataset_record


def test_what_is_outside_the_guarantee_is_named_by_its_field():
    """Everything that evaluate computes from private images, and nothing that the guarantee covers."""
    named = set(Metrics.model_fields["outside_the_guarantee"].default)
    evaluated = {*Fidelity.model_fields, *Utility.model_fields} & set(Metrics.model_fields)
    told = {"protocol", "protocol_digest", "reference", "synthetic_images", "real_images", "outside_the_guarantee"}
    assert named - {"ceiling_accuracy"} == evaluated - told
    assert "ceiling_accuracy" in Metrics.model_fields
