import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpsapf.experiment.methods import METHODS
from dpsapf.experiment.records import Ledger
from dpsapf.privacy.plan import PUBLIC
from dpsapf.release.datasheet import datasheet
from dpsapf.release.found import find
from dpsapf.release.images import class_folders
from dpsapf.release.records import PrivacyRecord
from dpsapf.release.statement import certified, percent, statement, up
from dpsapf.support.checked import replace
from dpsapf.support.records import read_record


@given(st.floats(1e-12, 1e9))
def test_what_is_told_is_never_too_small_and_near(value):
    assert value <= float(up(value)) <= value * 1.0101


@pytest.mark.parametrize(
    ("value", "text"), [(9.9956, "10"), (0.00088059, "0.000881"), (2.5, "2.5"), (0.0, "0"), (100.0, "100"), (1234.2, "1240")]
)
def test_numbers_are_written_plainly(value, text):
    assert up(value) == text
    assert percent(0.26258) == "26.3 %" and percent(1.0) == "100 %" and percent(1 + 1e-12) == "100 %"


@pytest.fixture
def record(folder, publish):
    return read_record(publish(folder) / "privacy.json", PrivacyRecord)


def test_the_statement_tells_the_numbers_of_the_record(record):
    text, bounds = statement(record, "dp-sapf"), record.together.attack_bounds
    assert f"epsilon = {up(certified(record.together))}, delta = {up(record.delta)}, for one private image" in text
    for rate, value in bounds.true_positive_rate.items():
        assert re.search(rf"\| {100 * float(rate):g} % of those that were not used \|.*\| {re.escape(percent(value))} \|", text)
    assert f"wrongly named, is {percent(bounds.advantage)}." in text
    assert f"At most {percent((1 + bounds.advantage) / 2)} of their" in text
    assert f"finds at most {up(100 * bounds.true_positive_rate['0.01'])} of 100" in text.replace("they find", "finds")
    for name, value in record.this_release.epsilon.items():
        assert re.search(rf"\| {name} \| {re.escape(up(value))} \|", text)
    for told in (*record.treated_as_public, *record.not_covered, record.attack_bounds_method, record.relation, record.noise):
        assert told in text


def test_the_promise_is_the_total_and_of_the_larger_accountant(record):
    larger = {**record.this_release.epsilon, "prv": 4.5, "pld": 4.4, "rdp": 7.0}
    total = replace(record.together, epsilon=larger, earlier_releases=2, unregistered=3)
    text = statement(replace(record, together=total, hyperparameters="accounted"), "dp-sapf")
    assert "**The promise: epsilon = 4.5," in text and "all that is counted" in text
    assert "Together with 2 earlier releases of this dataset: epsilon 4.5 at delta" in text
    assert "that were made and not published: 3." in text and "only the promise for all of them together counts" in text


def test_a_large_epsilon_is_told_without_a_long_number(record):
    total = replace(record.together, epsilon={**record.together.epsilon, "pld": 900.0})
    assert "here more than 100 million times" in statement(replace(record, together=total), "dp-sapf")
    small = replace(record.together, epsilon=dict.fromkeys(record.together.epsilon, 1.0))
    assert f"here {up(math.e)} times" in statement(replace(record, together=small), "dp-sapf")


def test_a_large_delta_is_told_as_large_wherever_the_promise_is(folder, publish, record):
    """With 105 images the default is 1 in 489; a small one is told as before."""
    from dpsapf.experiment.stages import Release

    few, found = replace(record, delta=1 / 488.66), find(Release(run=str(folder), hyperparameters="paper", out="x"))
    text, sheet = (re.sub(r"\s+", " ", told) for told in (statement(few, "dp-sapf"), datasheet(found, [], few, None)))
    for told in (text, sheet):
        assert "delta = 0.00205 (large: 1 in 489), for one private image" in told
    assert "at most 0.00205. That is large" in text and "Once in 489 times the promise may fail" in text
    assert "small probability" not in text
    usual = statement(record, "dp-sapf")
    assert "small probability" in usual and "large: 1 in" not in usual and "there are few" not in usual


def test_steps_on_all_images_are_told_as_such(record):
    steps = replace(record.this_release.releases[0], name="dp-sgd", sampling_rate=1.0, steps=15)
    for release, expected in ((steps, True), (replace(steps, steps=1), False), (replace(steps, sampling_rate=0.5), False)):
        alone = replace(record.this_release, releases=(release,))
        assert ("each time from all of them" in statement(replace(record, this_release=alone), "dp-sapf")) == expected


def test_a_plan_names_hyperparameters_as_public_once():
    """The statement puts the owner's declaration in its place."""
    assert sum(item.startswith("hyperparameters") for item in PUBLIC) == 1


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_is_described(folder, publish, record, name):
    from dpsapf.experiment.stages import Release

    found = find(Release(run=str(folder), hyperparameters="paper", out="x"))
    ledger = found.ledger.model_copy(update={"run": found.ledger.run.model_copy(update={"method": name})})
    object.__setattr__(found, "ledger", ledger)
    text = datasheet(found, [], record, None)
    assert isinstance(ledger, Ledger) and f"Method: `{name}`" in text and "None" not in text
    assert "seed" not in text and "| epsilon |" not in text


def test_a_model_of_the_hub_is_told_with_its_revision(folder, record):
    from dpsapf.experiment.stages import Release

    found = find(Release(run=str(folder), hyperparameters="paper", out="x"))
    assert "licence MIT" in datasheet(found, [], record, None) and "hub" not in datasheet(found, [], record, None)
    object.__setattr__(found, "model", replace(found.model, hub_id="owner/name", revision="4" * 40, sha256=None))
    assert f"It is `owner/name` of the Hugging Face hub at revision `{'4' * 40}`." in datasheet(found, [], record, None)
    object.__setattr__(found, "model", replace(found.model, vae_hub_id="other/vae", vae_revision="5" * 40))
    assert f"Its VAE is `other/vae` at revision `{'5' * 40}`." in datasheet(found, [], record, None)
    object.__setattr__(found, "model", replace(found.model, hub_id=None))
    assert "Its revision was not recorded." in datasheet(found, [], record, None)


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (("a b", "../c", ""), ["0-a-b", "1-..-c", "2"]),
        (("é", "/", "."), ["0", "1", "2"]),
        (tuple("abcdefghijk"), [f"{label:02d}-{name}" for label, name in enumerate("abcdefghijk")]),
    ],
)
def test_folders_of_classes_are_safe_and_sort_as_labels_do(classes, folders):
    assert class_folders(classes) == [f"images/{name}" for name in folders]
    assert sorted(folders) == folders
