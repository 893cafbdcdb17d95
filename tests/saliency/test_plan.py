import json
import math

import numpy as np
import pandas as pd
import pytest

from dpsapf.experiment.columns import BLOCK, CANDIDATES, LAYER, MATRIX
from dpsapf.experiment.methods import AXES
from dpsapf.experiment.records import Plan, Spend
from dpsapf.experiment.settings import SaliencyConfig
from dpsapf.experiment.stages import PlanPrivacy, SpendAgain
from dpsapf.privacy import spends
from dpsapf.privacy.accounting import epsilon
from dpsapf.privacy.mechanisms import DELTA_SHARE
from dpsapf.privacy.spend_again import spend_again
from dpsapf.saliency.plan import DEFAULT_AXES, check_plan, plan_privacy
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record, write_record
from tests.prepared_dataset import write_dataset

UNUSED = dict.fromkeys(AXES)
LORA = UNUSED | {"method": "dp-lora", "candidates": "attention", "adapter": "lora", "epsilon": 10.0}


def options(tmp_path, record, **changes):
    write_record(tmp_path / "dataset.json", record)
    names = [f"down_blocks.0.attn{layer}.{projection}" for layer in range(3) for projection in ("to_q", "to_v")]
    table = pd.DataFrame({MATRIX: names, LAYER: [name[:-5] for name in names], BLOCK: "down_blocks.0", CANDIDATES: "attention"})
    table.to_csv(tmp_path / "candidates.csv", index=False)
    values = {
        "dataset": tmp_path / "dataset.json",
        "public_model": "public-mini",
        "method": "dp-sapf",
        "level": "matrix",
        "ratio": 0.3,
        "score": "energy",
        "mechanism": "gaussian",
        "sigma_s": 10.0,
        "candidates": "attention",
        "adapter": "lora",
        "candidate_table": tmp_path / "candidates.csv",
        "epsilon": 10.0,
        "steps": 20,
        "expected_batch_size": 350,
        "out": tmp_path / "plan.json",
    }
    return PlanPrivacy(**(values | changes))


@pytest.fixture
def uncalibrated(monkeypatch):
    """Noise and epsilons that cost no time, for tests of what else is planned."""
    monkeypatch.setattr("dpsapf.privacy.calibrations.calibrate", lambda target, delta, build: 1.5)
    monkeypatch.setattr("dpsapf.privacy.plan.epsilon", lambda accountant, releases, delta: 1.0)


@pytest.fixture
def prepared(tmp_path):
    """Give a dataset's record a file of images, two to train on and one to validate."""

    def write(record, salt=b"s" * 32, train=(0, 1), validation=(2,)):
        images, labels = np.arange(64, dtype=np.uint8).reshape(4, 4, 4, 1), np.array([0, 1, 0, 1])
        parts = {"train": (images[[*train]], labels[[*train]]), "validation": (images[[*validation]], labels[[*validation]])}
        return replace(record, id=sha256(write_dataset(tmp_path / "dataset.safetensors", parts, salt=salt)))

    return write


def test_plan_holds_every_release_and_meets_the_target(tmp_path, dataset_record):
    plan_privacy(options(tmp_path, dataset_record))
    plan = read_record(tmp_path / "plan.json", Plan)
    assert [release.name for release in plan.releases] == ["saliency", "dp-sgd"]
    assert plan.delta == pytest.approx(1 / (3500 * math.log(3500)))
    assert plan.releases[1].sampling_rate == pytest.approx(0.1) and plan.releases[1].steps == 20
    assert plan.planned_epsilon["pld"] <= 10 and epsilon("prv", plan.releases, plan.delta) <= 10
    assert plan.releases[1].noise_multiplier > plan.dp_sgd_noise_alone


@pytest.mark.usefixtures("uncalibrated")
def test_saliency_sensitivity_is_the_square_of_the_bound(tmp_path, dataset_record):
    plan_privacy(options(tmp_path, dataset_record, saliency=SaliencyConfig(clipping_norm=0.5)))
    assert read_record(tmp_path / "plan.json", Plan).releases[0].sensitivity == 0.25


def test_methods_without_selection_release_only_dp_sgd(tmp_path, dataset_record):
    plan_privacy(options(tmp_path, dataset_record, **LORA))
    plan = read_record(tmp_path / "plan.json", Plan)
    assert [release.name for release in plan.releases] == ["dp-sgd"]
    assert plan.selection_epsilon is None
    assert plan.releases[0].noise_multiplier == plan.dp_sgd_noise_alone


def test_no_finetune_releases_nothing(tmp_path, dataset_record):
    changes = UNUSED | {"method": "no-finetune"}
    plan_privacy(options(tmp_path, dataset_record, **changes))
    assert read_record(tmp_path / "plan.json", Plan).releases == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0.2, "sigma_s": 5.0}, "cannot be met"),
        ({"epsilon": 0.005}, "must be at least 0.01"),
        ({"level": None}, "method dp-sapf needs it"),
        ({"method": "dp-lora"}, "method dp-lora does not use it"),
        ({"method": "no-dp"}, "method no-dp does not use it"),
        ({"epsilon": None}, "method dp-sapf needs it"),
    ],
)
def test_refused_plans_leave_nothing(tmp_path, dataset_record, changes, message):
    with pytest.raises(UserError, match=message):
        plan_privacy(options(tmp_path, dataset_record, **changes))
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.usefixtures("uncalibrated")
@pytest.mark.parametrize(("score", "sensitivity"), [("energy", 0.25), ("norm", 0.5), ("vote", 2.0), ("share", 1.0)])
def test_sensitivity_of_every_score_is_planned(tmp_path, dataset_record, score, sensitivity):
    plan_privacy(options(tmp_path, dataset_record, score=score, saliency=SaliencyConfig(clipping_norm=0.5, votes=4)))
    assert read_record(tmp_path / "plan.json", Plan).releases[0].sensitivity == sensitivity


@pytest.mark.parametrize("mechanism", ["exponential", "ptr"])
def test_other_mechanisms_are_composed_with_dp_sgd(tmp_path, dataset_record, mechanism):
    plan_privacy(options(tmp_path, dataset_record, mechanism=mechanism))
    plan = read_record(tmp_path / "plan.json", Plan)
    saliency = plan.releases[0]
    assert saliency.mechanism == mechanism and saliency.delta == pytest.approx(plan.delta / 10)
    assert plan.planned_epsilon["pld"] <= 10 and epsilon("prv", plan.releases, plan.delta) <= 10
    rest = epsilon("pld", plan.releases[1:], plan.delta * 0.9)
    assert plan.planned_epsilon["pld"] == pytest.approx(rest + saliency.epsilon)


def test_without_a_guarantee_nothing_is_clipped_noised_or_certified(tmp_path, dataset_record):
    changes = UNUSED | {"method": "no-dp", "level": "matrix", "ratio": 0.3, "score": "energy"}
    plan_privacy(options(tmp_path, dataset_record, **(changes | {"candidates": "attention", "adapter": "lora"})))
    plan = read_record(tmp_path / "plan.json", Plan)
    assert plan.target_epsilon is None and plan.clipping == "none" and plan.planned_epsilon == {}
    assert {(release.mechanism, release.noise) for release in plan.releases} == {("none", None)}
    assert math.isinf(epsilon("pld", plan.releases, plan.delta))


@pytest.mark.usefixtures("uncalibrated")
def test_axes_that_are_left_out_have_their_defaults(tmp_path, dataset_record):
    plan_privacy(options(tmp_path, dataset_record, **dict.fromkeys(DEFAULT_AXES)))
    explicit = options(tmp_path, dataset_record, **DEFAULT_AXES, out=tmp_path / "explicit.json")
    plan_privacy(explicit)
    assert read_record(tmp_path / "plan.json", Plan) == read_record(tmp_path / "explicit.json", Plan)
    plan_privacy(options(tmp_path, dataset_record, **(LORA | {"candidates": None, "adapter": None})))
    run = read_record(tmp_path / "plan.json", Plan).run
    assert (run.candidates, run.adapter) == ("attention", "lora") and run.score is run.mechanism is None  # those it uses


@pytest.mark.usefixtures("uncalibrated")
def test_earlier_releases_of_the_dataset_are_planned_for(tmp_path, dataset_record, releases):
    spend = Spend(
        subject="x",
        release=releases[1],
        unit="image",
        population=3500,
        dataset_id=dataset_record.id,
        made_from={},
        digest="w",
        numbers=1,
        trainable_parameters=1,
        private="p",
        provenance={},
    )
    write_record(tmp_path / "earlier.json", spend)
    plan_privacy(options(tmp_path, dataset_record, prior=(tmp_path / "earlier.json",)))
    planned = read_record(tmp_path / "plan.json", Plan)
    assert (planned.prior, planned.prior_keys) == ((releases[1],), ("w",))
    write_record(tmp_path / "earlier.json", replace(spend, dataset_id="e" * 64))
    with pytest.raises(UserError, match="is of another dataset than dddd"):
        plan_privacy(options(tmp_path, dataset_record, prior=(tmp_path / "earlier.json",)))


@pytest.mark.usefixtures("uncalibrated")
@pytest.mark.parametrize("noise", ["seed", "system"])
def test_where_noise_comes_from_is_planned(tmp_path, dataset_record, prepared, noise):
    plan_privacy(options(tmp_path, prepared(dataset_record), archive=tmp_path / "dataset.safetensors", noise=noise))
    assert [release.noise for release in read_record(tmp_path / "plan.json", Plan).releases] == [noise, noise]


@pytest.mark.usefixtures("uncalibrated")
def test_the_run_is_named_after_the_dataset_and_keeps_its_seed(tmp_path, dataset_record):
    plan_privacy(options(tmp_path, dataset_record, seed=3))
    plan = read_record(tmp_path / "plan.json", Plan)
    assert plan.run.id == "mnist5k--public-mini--dp-sapf-matrix-r30-energy-s10--eps10--seed3"
    assert plan.dataset_id == dataset_record.id and plan.population == 3500


@pytest.mark.usefixtures("uncalibrated")
@pytest.mark.parametrize(("expected_batch", "rate"), [(350, 0.1), (3500, 1.0), (50_000, 1.0)])
def test_the_saliency_pass_samples_its_own_batch(tmp_path, dataset_record, expected_batch, rate):
    plan_privacy(options(tmp_path, dataset_record, saliency=SaliencyConfig(expected_batch_size=expected_batch)))
    saliency, dp_sgd = read_record(tmp_path / "plan.json", Plan).releases
    assert (saliency.sampling_rate, saliency.steps, saliency.noise_multiplier) == (pytest.approx(rate), 1, 10.0)
    assert dp_sgd.sampling_rate == pytest.approx(0.1)


@pytest.mark.usefixtures("uncalibrated")
@pytest.mark.parametrize(
    ("score", "level", "sensitivity"),
    [
        ("norm", "matrix", 0.5),  # one matrix a unit
        ("norm", "layer", 0.5 * math.sqrt(2)),  # two
        ("norm", "block", 0.5 * math.sqrt(6)),  # all six
        ("vote", "layer", 2.0),
        ("vote", "block", 4.0),  # an image has no more votes
        ("energy", "block", 0.25),
        ("share", "block", 1.0),
    ],
)
def test_ranking_mechanisms_plan_the_sensitivity_of_what_they_rank(tmp_path, dataset_record, score, level, sensitivity):
    settings = SaliencyConfig(clipping_norm=0.5, votes=4)
    changes = {"mechanism": "exponential", "score": score, "level": level, "saliency": settings, "delta": 1e-5}
    plan_privacy(options(tmp_path, dataset_record, **changes))
    saliency = read_record(tmp_path / "plan.json", Plan).releases[0]
    assert saliency.sensitivity == pytest.approx(sensitivity)
    assert saliency.delta == pytest.approx(DELTA_SHARE * 1e-5)


@pytest.mark.usefixtures("uncalibrated")
@pytest.mark.parametrize(
    ("names", "matrices"), [("attention", 6), ("attention+proj", 7), ("attention+ffn", 8), ("all-params", 10)]
)
def test_only_the_matrices_of_the_runs_candidate_set_count(tmp_path, dataset_record, names, matrices):
    changes = {"mechanism": "exponential", "score": "norm", "level": "block", "candidates": names}
    settings = options(tmp_path, dataset_record, **changes)
    table = pd.read_csv(tmp_path / "candidates.csv")
    sets = ["attention+ffn", "attention+ffn", "all-params", "attention+proj"]
    others = table.head(4).assign(**{MATRIX: ["a", "b", "c", "d"], CANDIDATES: sets})
    pd.concat([table, others]).to_csv(tmp_path / "candidates.csv", index=False)
    plan_privacy(settings)
    assert read_record(tmp_path / "plan.json", Plan).releases[0].sensitivity == pytest.approx(math.sqrt(matrices))


@pytest.mark.parametrize("changes", [LORA | {"candidates": "attention+ffn"}, {"candidates": "attention+proj"}])
def test_candidates_that_the_models_family_does_not_know_are_refused(tmp_path, dataset_record, changes):
    """Z-Image's table has attention alone, as this one: its other layers see tokens of all images in one sequence."""
    with pytest.raises(UserError, match="candidates = 'attention.*': the public model's table has attention alone"):
        plan_privacy(options(tmp_path, dataset_record, **changes))
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("method", ["dp-full", "dp-ldm", "dp-bitfit"])
def test_methods_that_train_more_than_the_models_family_knows_are_refused(tmp_path, dataset_record, method, uncalibrated):
    given = options(tmp_path, dataset_record, **UNUSED | {"method": method, "epsilon": 10.0})
    with pytest.raises(UserError, match=f"method = '{method}': trains .* the family of public-mini knows .* candidates alone"):
        plan_privacy(given)
    table = pd.read_csv(given.candidate_table)
    pd.concat([table, table.assign(**{CANDIDATES: "all-params"})]).to_csv(given.candidate_table, index=False)
    plan_privacy(given)
    assert (tmp_path / "plan.json").exists()


SYSTEM = {"noise": "system"}


def planned(tmp_path, record, **changes):
    """Plan a run with noise of the operating system on the images that `prepared` wrote; the plan."""
    given = options(tmp_path, record, **({"archive": tmp_path / "dataset.safetensors"} | SYSTEM | changes))
    plan_privacy(given)
    return read_record(given.out, Plan)


def train(tmp_path, plan, digest="w"):
    """Put on record that a planned run was trained; the record of its stage, as it lies in a results folder."""
    spend = Spend(
        subject=plan.run.id,
        release=plan.releases[-1],
        unit=plan.unit,
        population=plan.population,
        dataset_id=plan.dataset_id,
        made_from={},
        digest=digest,
        numbers=1,
        trainable_parameters=1,
        private="p",
        provenance={},
    )
    spends.record(spend)
    return spend


@pytest.mark.usefixtures("uncalibrated")
def test_what_was_spent_on_the_images_is_planned_for_under_another_salt_and_folder(tmp_path, dataset_record, prepared, caplog):
    spend = train(tmp_path, planned(tmp_path, prepared(dataset_record)))
    again = prepared(replace(dataset_record, name="other"), salt=b"t" * 32)
    with caplog.at_level("INFO"):
        plan = planned(tmp_path, again, out=tmp_path / "clone" / "plan.json", ratio=0.5)
    assert (plan.prior, plan.prior_keys) == ((spend.release,), ("w",))
    assert f"counts what {spend.subject} released dp-sgd on" in caplog.text


def test_the_noise_grows_by_what_was_spent(tmp_path, dataset_record, prepared, caplog):
    """Calibrated in truth: the same run, planned alone and after another of the same images."""
    alone = planned(tmp_path, prepared(dataset_record), **LORA)
    train(tmp_path, alone)
    later = planned(tmp_path, prepared(dataset_record), **(LORA | {"epsilon": 14.0}))
    total = epsilon("pld", [*later.prior, *later.releases], later.delta)
    assert later.prior == alone.releases and 13.9 < total <= 14
    told = epsilon("pld", alone.releases, alone.delta)
    assert f"{later.run.id}: of epsilon = 14 earlier releases have spent {told:.4g}" in caplog.text
    assert epsilon("pld", later.releases, later.delta) < 10 + epsilon("pld", alone.releases, alone.delta) < 2 * 10


def test_a_target_that_cannot_be_met_leaves_no_plan_on_record(tmp_path, dataset_record, prepared, spends_folder):
    with pytest.raises(UserError, match="epsilon = 0.02"):
        planned(tmp_path, prepared(dataset_record), epsilon=0.02)
    kinds = [json.loads(line)["told"]["kind"] for line in (spends_folder / "spends.jsonl").read_text().splitlines()]
    assert kinds == ["dataset"] and not (tmp_path / "plan.json").exists()


@pytest.mark.usefixtures("uncalibrated")
def test_a_released_run_is_not_planned_again_without_the_owners_word(tmp_path, dataset_record, prepared):
    plan = planned(tmp_path, prepared(dataset_record))
    train(tmp_path, plan)
    (tmp_path / "plan.json").unlink()
    with pytest.raises(UserError, match=f"run = '{plan.run.id}': .* released dp-sgd on .*spend-again --run {plan.run.id}: later"):
        planned(tmp_path, prepared(dataset_record))
    assert not (tmp_path / "plan.json").exists()
    spend_again(SpendAgain(run=plan.run.id))
    assert planned(tmp_path, prepared(dataset_record)).prior_keys == ("w",)


@pytest.mark.usefixtures("uncalibrated")
@pytest.mark.parametrize("changes", [{"noise": "seed"}, {"noise": "system", "method": "no-dp", "epsilon": None}])
def test_runs_without_a_guarantee_for_good_leave_the_record_alone(tmp_path, dataset_record, spends_folder, changes):
    exact = {"mechanism": None, "sigma_s": None} if "method" in changes else {}
    plan_privacy(options(tmp_path, dataset_record, **exact, **changes))
    assert not spends_folder.exists()


@pytest.mark.usefixtures("uncalibrated")
def test_images_to_validate_on_are_known_again_too(tmp_path, dataset_record, prepared):
    train(tmp_path, planned(tmp_path, prepared(dataset_record)))
    other = replace(dataset_record, name="other")
    assert planned(tmp_path, prepared(other, train=(2,), validation=(3,))).prior_keys == ("w",)
    assert planned(tmp_path, prepared(replace(other, name="third"), train=(3,), validation=())).prior_keys == ("w",)


@pytest.mark.usefixtures("uncalibrated")
def test_what_an_earlier_version_left_in_the_results_folder_counts(tmp_path, dataset_record, prepared, monkeypatch, caplog):
    """Before there was a record, spends lay beside the runs alone."""
    runs = tmp_path / "results" / "mine" / "runs"
    first = planned(tmp_path, prepared(dataset_record))
    spend = train(tmp_path, first)
    write_record(runs / first.run.id / "spend.json", spend)
    monkeypatch.setenv("DPSAPF_SPENDS", str(tmp_path / "new record"))
    later = planned(tmp_path, prepared(dataset_record), out=runs / "later" / "plan.json", ratio=0.5)
    assert later.prior_keys == ("w",) and "1 releases of these images were not on record" in caplog.text
    with pytest.raises(UserError, match="released dp-sgd on"):
        planned(tmp_path, prepared(dataset_record), out=runs / first.run.id / "plan.json")


@pytest.mark.usefixtures("uncalibrated")
def test_images_that_are_not_the_datasets_are_refused(tmp_path, dataset_record, prepared, spends_folder):
    record = prepared(dataset_record)
    prepared(dataset_record, salt=b"t" * 32)
    for archive in (tmp_path / "dataset.safetensors", None):
        with pytest.raises(UserError, match="--archive = .*: must be the dataset.safetensors of mnist5k"):
            planned(tmp_path, record, archive=archive)
    assert not (tmp_path / "plan.json").exists() and not (spends_folder / "spends.jsonl").exists()


@pytest.mark.usefixtures("uncalibrated")
def test_a_file_of_the_owner_and_the_record_count_a_release_once(tmp_path, dataset_record, prepared):
    spend = train(tmp_path, planned(tmp_path, prepared(dataset_record)))
    write_record(tmp_path / "earlier.json", spend)
    plan = planned(tmp_path, prepared(dataset_record), ratio=0.5, prior=(tmp_path / "earlier.json",))
    assert plan.prior_keys == ("w",)


@pytest.mark.usefixtures("uncalibrated")
def test_a_look_beforehand_sees_what_is_on_record_and_writes_nothing(tmp_path, dataset_record, prepared, spends_folder):
    record = prepared(dataset_record)
    check_plan(options(tmp_path, record, **SYSTEM))
    assert not spends_folder.exists()
    spend = train(tmp_path, planned(tmp_path, record))
    before = (spends_folder / "spends.jsonl").read_bytes()
    with pytest.raises(UserError, match="unit = 'image': was released on these images"):
        check_plan(options(tmp_path, replace(record, users=9), ratio=0.5, unit="user", **SYSTEM))
    assert (spends_folder / "spends.jsonl").read_bytes() == before and spend.unit == "image"
