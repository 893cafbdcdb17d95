import math

import pandas as pd
import pytest

from dpsapf.experiment.columns import BLOCK, CANDIDATES, LAYER, MATRIX
from dpsapf.experiment.methods import AXES
from dpsapf.experiment.records import Ledger, Plan
from dpsapf.experiment.settings import SaliencyConfig
from dpsapf.experiment.stages import AuditPrivacy, PlanPrivacy
from dpsapf.privacy.accounting import epsilon
from dpsapf.privacy.audit import audit_privacy
from dpsapf.privacy.plan import default_delta
from dpsapf.privacy.poisson import poisson_batch
from dpsapf.saliency.plan import plan_privacy
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import read_record, write_record

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


def test_plan_holds_every_release_and_meets_the_target(tmp_path, dataset_record):
    plan_privacy(options(tmp_path, dataset_record))
    plan = read_record(tmp_path / "plan.json", Plan)
    assert [release.name for release in plan.releases] == ["saliency", "dp-sgd"]
    assert plan.delta == pytest.approx(1 / (3500 * math.log(3500)))
    assert plan.releases[1].sampling_rate == pytest.approx(0.1) and plan.releases[1].steps == 20
    assert plan.planned_epsilon["pld"] <= 10 and epsilon("prv", plan.releases, plan.delta) <= 10
    assert plan.releases[1].noise_multiplier > plan.dp_sgd_noise_alone


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
        ({"epsilon": 0.005}, "must be greater than 0.01"),
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
    assert {release.mechanism for release in plan.releases} == {"none"}
    assert math.isinf(epsilon("pld", plan.releases, plan.delta))


def test_default_delta_is_the_papers():
    assert default_delta(45_000) == pytest.approx(2.074e-6, rel=1e-3)  # four digits of 1/(45000 ln 45000)


def audit(tmp_path, plan, spends):
    write_record(tmp_path / "plan.json", plan)
    paths = []
    for index, spend in enumerate(spends):
        paths.append(tmp_path / f"spend{index}.json")
        write_record(paths[-1], spend)
    audit_privacy(AuditPrivacy(plan=tmp_path / "plan.json", spends=tuple(paths), out=tmp_path / "ledger.json"))


def test_audit_passes_what_was_planned(tmp_path, plan, spends):
    audit(tmp_path, plan, spends)
    ledger = read_record(tmp_path / "ledger.json", Ledger)
    assert ledger.releases == plan.releases
    assert max(ledger.spent_epsilon[name] for name in ("pld", "prv")) <= 10
    assert ledger.weights_digest == "e" * 64


def changed(spends, index, **changes):
    spends = list(spends)
    spends[index] = replace(spends[index], release=replace(spends[index].release, **changes))
    return spends


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda spends: spends[1:], "every release once"),
        (lambda spends: spends[:1], "every release once"),
        (lambda spends: [*spends, spends[1]], "every release once"),
        (lambda spends: changed(spends, 1, noise_multiplier=0.5), "noise_multiplier"),
        (lambda spends: changed(spends, 1, steps=5), "steps"),
        (lambda spends: changed(spends, 1, sampling_rate=0.2), "sampling_rate"),
        (lambda spends: changed(spends, 0, sensitivity=0.5), "sensitivity"),
        (
            lambda spends: [spends[0], replace(spends[1], realised_batches=(340, 371, 349))],
            "must have 4 realised batches",
        ),
        (lambda spends: [spends[0], replace(spends[1], dataset_sha256="f" * 64)], "made on other data"),
        (lambda spends: [spends[0], replace(spends[1], images=100)], "made on other data"),
    ],
)
def test_audit_refuses_what_was_not_planned(tmp_path, plan, spends, tamper, message):
    with pytest.raises(UserError, match=message):
        audit(tmp_path, plan, tamper(spends))
    assert not (tmp_path / "ledger.json").exists()


@pytest.mark.parametrize("batches", [(350, 350, 350, 350), (500, 490, 510, 505), (10, 700, 5, 685)])
def test_audit_refuses_batches_that_are_no_poisson_sample(tmp_path, plan, spends, batches):
    """Fixed size, too large a rate, too wide a spread; the honest sizes of the fixture pass."""
    many = replace(spends[1].release, steps=40)
    plan = replace(plan, releases=(spends[0].release, many))
    spends = [spends[0], replace(spends[1], release=many, realised_batches=batches * 10)]
    with pytest.raises(UserError, match="no Poisson sample"):
        audit(tmp_path, plan, spends)


def test_audit_passes_a_poisson_samplers_batches(tmp_path, plan, spends):
    many = replace(spends[1].release, steps=40, noise_multiplier=2.0)
    sizes = [len(poisson_batch(3500, many.sampling_rate, torch_generator(0, step))) for step in range(40)]
    plan = replace(plan, releases=(spends[0].release, many))
    audit(tmp_path, plan, [spends[0], replace(spends[1], release=many, realised_batches=tuple(sizes))])
    assert (tmp_path / "ledger.json").exists()


def test_audit_without_a_guarantee_certifies_nothing(tmp_path, plan, spends):
    exact = [replace(s.release, mechanism="none", noise_multiplier=None, sensitivity=None) for s in spends]
    spends = [replace(spend, release=release) for spend, release in zip(spends, exact, strict=True)]
    audit(tmp_path, replace(plan, target_epsilon=None, releases=tuple(exact)), spends)
    assert read_record(tmp_path / "ledger.json", Ledger).spent_epsilon == {}
    with pytest.raises(UserError, match="exceeds the target"):
        audit(tmp_path, replace(plan, releases=tuple(exact)), spends)


def test_audit_refuses_a_spend_above_the_target_even_if_planned(tmp_path, plan, spends):
    with pytest.raises(UserError, match="exceeds the target 2.0"):
        audit(tmp_path, replace(plan, target_epsilon=2.0), spends)
    assert not (tmp_path / "ledger.json").exists()
