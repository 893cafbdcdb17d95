import pytest

from dpsapf.experiment.records import Ledger, Release
from dpsapf.experiment.stages import AuditPrivacy
from dpsapf.privacy.accounting import ACCOUNTANTS, epsilon
from dpsapf.privacy.audit import audit_privacy, check_against_plan, check_target
from dpsapf.privacy.poisson import poisson_batch
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.randomness import torch_generator
from dpsapf.support.records import read_record, write_record


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


def test_the_ledger_says_what_was_promised_and_what_was_spent(tmp_path, plan, spends):
    """Whatever the order of the records: the weights' digest is DP-SGD's."""
    spends[0] = replace(spends[0], digest="a" * 64)
    audit(tmp_path, plan, spends[::-1])
    ledger = read_record(tmp_path / "ledger.json", Ledger)
    for key in ("run", "target_epsilon", "delta", "relation", "unit", "noise"):
        assert getattr(ledger, key) == getattr(plan, key), key
    assert set(ledger.releases) == set(plan.releases) and ledger.weights_digest == "e" * 64
    assert set(ledger.spent_epsilon) == set(ACCOUNTANTS)
    assert ledger.spent_epsilon["pld"] == pytest.approx(epsilon("pld", plan.releases, plan.delta))


def test_a_run_that_releases_nothing_has_an_empty_ledger(tmp_path, plan):
    audit(tmp_path, replace(plan, target_epsilon=None, releases=()), [])
    ledger = read_record(tmp_path / "ledger.json", Ledger)
    assert ledger.releases == () and ledger.spent_epsilon == {} and ledger.weights_digest is None


OTHER = {
    "mechanism": "none",
    "noise_multiplier": 0.6999,
    "sensitivity": 1.001,
    "sampling_rate": 0.1001,
    "steps": 3,
    "epsilon": 1.0,
    "delta": 1e-6,
}


@pytest.mark.parametrize("key", sorted(set(Release.model_fields) - {"name"}))
def test_every_key_of_a_release_is_compared(plan, spends, key, tmp_path):
    other, paths = changed(spends, 1, **{key: OTHER[key]}), (tmp_path / "scores.json", tmp_path / "weights.json")
    with pytest.raises(UserError, match=rf"weights\.json: {key} = .*; run the stage again"):
        check_against_plan(plan, other, paths)


@pytest.mark.parametrize(("accountant", "certifies"), [("pld", True), ("prv", True), ("rdp", False), ("gdp", False)])
def test_either_certifier_refuses_and_the_other_accountants_do_not(plan, accountant, certifies):
    spent = dict.fromkeys(ACCOUNTANTS, plan.target_epsilon)
    check_target(plan, spent)  # the target itself is within it
    beyond = spent | {accountant: plan.target_epsilon + 1e-9}
    if certifies:
        with pytest.raises(UserError, match=rf"{accountant} epsilon = 10\.0.*: exceeds the target 10\.0 of mnist5k--"):
            check_target(plan, beyond)
    else:
        check_target(plan, beyond)


def batched(plan, spends, rate, sizes):
    """Plan and spends of one release at a rate, with realised batches."""
    release = replace(spends[1].release, sampling_rate=rate, steps=len(sizes))
    return replace(plan, releases=(release,)), [replace(spends[1], release=release, realised_batches=tuple(sizes))]


@pytest.mark.parametrize("size", [3499, 3501])
def test_rate_one_takes_everyone_at_every_step(plan, spends, size, tmp_path):
    check_against_plan(*batched(plan, spends, 1.0, [3500] * 5), (tmp_path,))
    with pytest.raises(UserError, match="rate 1 takes all 3500 images at every step"):
        check_against_plan(*batched(plan, spends, 1.0, [3500] * 4 + [size]), (tmp_path,))


@pytest.mark.parametrize("rate", [0.0005, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 60])
def test_no_honest_sampler_is_refused(plan, spends, rate, steps, tmp_path):
    for seed in range(5):
        sizes = [len(poisson_batch(3500, rate, torch_generator(seed, step))) for step in range(steps)]
        check_against_plan(*batched(plan, spends, rate, sizes), (tmp_path,))


@pytest.mark.parametrize("rate", [0.02, 0.5, 0.99])
def test_batches_of_one_size_are_refused_at_every_rate(plan, spends, rate, tmp_path):
    with pytest.raises(
        UserError, match=rf"realised_batches.*no Poisson sample of 3500 images at rate {rate}; run the stage again"
    ):
        check_against_plan(*batched(plan, spends, rate, [round(3500 * rate)] * 60), (tmp_path,))
