"""What evaluation may release later: planned, held by the target from the start, and counted by whoever composes."""

import pytest
import yaml

from dpsapf.aggregation.collect import collect_metrics
from dpsapf.cli.rules import counted_runs
from dpsapf.experiment.fields import READS, paths
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.records import Ledger, Plan, Release, Utility, ValidationLedger
from dpsapf.experiment.registries import Recipe, load_yaml
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.settings import parse_config
from dpsapf.privacy.accounting import epsilon, spent_epsilon
from dpsapf.privacy.audit import not_for_release
from dpsapf.privacy.compose import prior_releases
from dpsapf.privacy.plan import PUBLIC_VALIDATION, make_plan, validation_release
from dpsapf.saliency.plan import plan_privacy
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record, write_record
from tests.fake_results import candidate_table, write_run
from tests.privacy.test_plan import settings, spec
from tests.saliency.test_plan import LORA, options

COUNTS = Release(name="validation", noise_multiplier=20.0, sensitivity=1.0, sampling_rate=1.0, steps=24, noise="seed")
RECIPE = Recipe(
    classifiers=("probe", "resnet", "resnext"),
    steps=9,
    batch=8,
    optimizer="adam",
    learning_rate=0.1,
    selection="noisy-private-validation",
    checkpoints=4,
    repeats=3,
)


def counted(**changes):
    return settings(**({"protocol": "p", "validation_noise": 20.0} | changes))


def test_every_checkpoint_of_every_training_is_a_count(dataset_record):
    """The probe is fitted, not chosen: two classifiers, three times, four states each."""
    assert validation_release(RECIPE, dataset_record, counted()) == COUNTS
    assert validation_release(RECIPE, dataset_record, counted(noise="system")).noise == "system"


@pytest.mark.parametrize("selection", ["synthetic", "last"])
def test_other_selections_release_nothing(dataset_record, selection):
    other = replace(RECIPE, selection=selection)
    assert validation_release(other, dataset_record, counted(validation_noise=None)) is None
    with pytest.raises(UserError, match="validation_noise = 20.0: p counts nothing"):
        validation_release(other, dataset_record, counted())


@pytest.mark.parametrize(
    ("changes", "record", "message"),
    [
        ({"validation_noise": None}, {}, "validation_noise = None: p counts private images"),
        ({"unit": "user"}, {}, "unit = 'user': counts are bounded for one image only"),
        ({}, {"validation": 0}, "validation = 0: mnist5k has no validation images"),
    ],
)
def test_counts_that_cannot_be_bounded_are_refused(dataset_record, changes, record, message):
    with pytest.raises(UserError, match=message):
        validation_release(RECIPE, replace(dataset_record, **record), counted(**changes))


def test_training_has_more_noise_where_counts_are_reserved_and_all_meets_the_target(dataset_record):
    alone, reserved = (
        make_plan(spec("dp-lora", epsilon=3.0), dataset_record, [], settings(), (), some) for some in ((), [COUNTS])
    )
    assert reserved.reserved == (COUNTS,) and [release.name for release in reserved.releases] == ["dp-sgd"]
    assert reserved.releases[0].noise_multiplier > 1.02 * alone.releases[0].noise_multiplier
    whole = [*reserved.releases, COUNTS]
    assert reserved.planned_epsilon["pld"] == pytest.approx(epsilon("pld", whole, reserved.delta))
    assert epsilon("prv", whole, reserved.delta) <= 3 < epsilon("pld", [*alone.releases, COUNTS], alone.delta)
    assert PUBLIC_VALIDATION in reserved.public and PUBLIC_VALIDATION not in alone.public


def test_counts_that_exceed_the_target_alone_are_refused(dataset_record):
    with pytest.raises(UserError, match="the reserved and earlier releases alone cost"):
        make_plan(spec("dp-lora", epsilon=1.0), dataset_record, [], settings(), (), [replace(COUNTS, noise_multiplier=2.0)])


@pytest.fixture
def registry(tmp_path):
    protocol = {"feature_network": "package:x", "feature_resolution": 32, "resize": "lanczos"}
    small = RECIPE.model_dump(mode="json") | {"largest_side": 32}
    other = {"classifiers": ["probe"], "steps": 1, "batch": 1, "optimizer": "sgd", "learning_rate": 0.1}
    entries = {"counts-v1": protocol | {"recipes": [small, other]}, "plain-v1": protocol | {"recipes": [other]}}
    (tmp_path / "protocols.yaml").write_text(yaml.safe_dump(entries))
    return tmp_path / "protocols.yaml"


def test_plan_privacy_reserves_what_the_protocol_counts(tmp_path, dataset_record, registry):
    plan_privacy(options(tmp_path, dataset_record, **LORA, protocol="counts-v1", registry=registry, validation_noise=20.0))
    plan = read_record(tmp_path / "plan.json", Plan)
    assert plan.reserved == (COUNTS,) and plan.planned_epsilon["pld"] <= 10


def test_a_protocol_is_looked_up_where_it_is_told_and_nowhere_else(tmp_path, dataset_record):
    """No file of the folder in which the command runs is needed without a protocol."""
    assert "registry" not in paths(options(tmp_path, dataset_record, **LORA), READS)
    with pytest.raises(UserError, match="--registry = None: give the registry that has protocol counts-v1"):
        plan_privacy(options(tmp_path, dataset_record, **LORA, protocol="counts-v1", validation_noise=20.0))


def test_noise_of_counts_that_nothing_makes_is_refused(tmp_path, dataset_record, registry):
    with pytest.raises(UserError, match="--protocol = None: validation_noise is of a protocol's counts"):
        plan_privacy(options(tmp_path, dataset_record, **LORA, validation_noise=20.0))
    with pytest.raises(UserError, match="plain-v1 counts nothing"):
        plan_privacy(options(tmp_path, dataset_record, **LORA, protocol="plain-v1", registry=registry, validation_noise=20.0))
    assert not (tmp_path / "plan.json").exists()


def test_the_audit_of_training_counts_what_is_reserved(audited):
    audited.change_plan(reserved=(COUNTS,))
    audited.audit()
    ledger = read_record(audited.path("ledger.json"), Ledger)
    whole = (*audited.plan.releases, COUNTS)
    assert ledger.reserved == (COUNTS,) and ledger.releases == audited.plan.releases
    assert ledger.spent_epsilon == spent_epsilon(whole, ledger.delta)


def test_a_reservation_beyond_the_target_stops_the_audit(audited):
    audited.change_plan(reserved=(replace(COUNTS, noise_multiplier=1.0),))
    with pytest.raises(UserError, match=r"pld epsilon = .*: exceeds the target 10\.0"):
        audited.audit()
    assert not audited.path("ledger.json").exists()


def test_reserved_noise_from_a_seed_is_not_for_release(plan):
    system = replace(plan, releases=(), noise="system")
    assert not_for_release(system, ()) is None
    assert "noise from a seed" in not_for_release(replace(system, reserved=(COUNTS,)), ())
    counts = replace(COUNTS, noise="system")
    assert not_for_release(replace(system, reserved=(counts,)), ()) is None
    assert not_for_release(replace(system, reserved=(counts,), target_epsilon=None), ()) == "no guarantee: epsilon is infinite"


def test_composing_ledgers_counts_reservations_of_each_run(audited, tmp_path):
    audited.change_plan(reserved=(COUNTS,))
    audited.audit()
    first = read_record(audited.path("ledger.json"), Ledger)
    second = replace(first, run=replace(first.run, seed=1), weights_digest="f" * 64)
    write_record(tmp_path / "second.json", second)
    paths = [audited.path("ledger.json"), tmp_path / "second.json"]
    assert prior_releases(paths, first.dataset_id, "image").count(COUNTS) == 2
    assert prior_releases(paths[:1] * 2, first.dataset_id, "image").count(COUNTS) == 1


def test_runs_that_count_are_those_of_images_that_the_recipe_is_for(tmp_path, registry):
    config = load_yaml("config/config.yaml")
    config["protocols_file"], config["evaluation"] = str(registry), {"protocol": "counts-v1"}
    small = parse_config(config)
    assert counted_runs(small) == small.runs and small.runs
    datasets = load_yaml("config/datasets.yaml")
    datasets["digits"]["resolution"] = 64
    (tmp_path / "datasets.yaml").write_text(yaml.safe_dump(datasets))
    mixed = parse_config(config | {"datasets_file": str(tmp_path / "datasets.yaml")})
    assert counted_runs(mixed) == [run for run in mixed.runs if run.dataset != "digits"] != mixed.runs
    assert counted_runs(parse_config(config | {"evaluation": {"protocol": "plain-v1"}})) == []


@pytest.fixture
def chosen(tmp_path):
    """Options of collect-metrics for a run whose classifiers were chosen by audited counts."""
    run = RunSpec(dataset="digits", public_model="m", method="dp-lora", epsilon=10.0)
    found = write_run(Layout(tmp_path), run, candidate_table())
    utility = read_record(found.utility, Utility)
    write_record(found.utility, replace(utility, selection="noisy-private-validation", counts="c" * 64))
    ledger = read_record(found.ledger, Ledger)
    record = ValidationLedger(
        run=run,
        ledger=sha256(found.ledger),
        counts="c" * 64,
        release=COUNTS,
        unit="image",
        dataset_id=ledger.dataset_id,
        target_epsilon=10.0,
        delta=ledger.delta,
        spent_epsilon={},
        not_for_release=None,
        provenance={},
    )
    write_record(tmp_path / "validation_ledger.json", record)
    return replace(found, validation=tmp_path / "validation_ledger.json")


def test_metrics_need_the_audit_of_the_counts(chosen):
    collect_metrics(chosen)
    with pytest.raises(UserError, match="--validation = None: classifiers were chosen by noisy counts"):
        collect_metrics(replace(chosen, validation=None))


@pytest.mark.parametrize("changes", [{"counts": "0" * 64}, {"ledger": "0" * 64}])
def test_metrics_refuse_an_audit_of_other_counts_or_another_ledger(chosen, changes):
    write_record(chosen.validation, replace(read_record(chosen.validation, ValidationLedger), **changes))
    with pytest.raises(UserError, match="is not of these counts under this ledger"):
        collect_metrics(chosen)
