import math

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from dpsapf.experiment.columns import NEARLY
from dpsapf.experiment.methods import AXES, METHODS
from dpsapf.experiment.records import Calibration, Release
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.stages import PlanPrivacy
from dpsapf.privacy import calibrations
from dpsapf.privacy.accounting import LEAST, PRV_ERROR, calibrate, epsilon
from dpsapf.privacy.plan import PUBLIC, RELATION, check_axes, check_delta, default_delta, dp_sgd_release, make_plan, population
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.records import write_record

COMPLETE = {
    "level": "matrix",
    "ratio": 0.3,
    "score": "energy",
    "mechanism": "gaussian",
    "sigma_s": 10.0,
    "rule": "top",
    "proxy": "digits",
    "candidates": "attention",
    "adapter": "lora",
    "epsilon": 10.0,
}
TRAINED = {"learning_rate": 0.1, "training_steps": 9, "batch_size": 9, "lora_rank": 2, "optimizer": "adamw"}
SALIENCY = Release(name="saliency", noise_multiplier=10.0, sensitivity=1.0, sampling_rate=1.0, steps=1)


def spec(method="dp-sapf", **changes):
    """A run with exactly the axes that its method uses, and some changed."""
    axes = {axis: value for axis, value in COMPLETE.items() if axis in METHODS[method].uses}
    return RunSpec(dataset="mnist5k", public_model="public-mini", method=method, **(axes | changes))


def settings(**changes):
    fixed = {"dataset": "unused", "public_model": "x", "method": "dp-sapf", "candidate_table": "unused", "out": "unused"}
    return PlanPrivacy(**(fixed | {"steps": 20, "expected_batch_size": 350} | changes))


def test_default_delta_is_the_papers():
    assert default_delta(45_000) == pytest.approx(2.074e-6, rel=1e-3)  # four digits of 1/(45000 ln 45000)


@examples(deadline=None)
@given(images=st.integers(3, 10**8))
def test_default_delta_is_below_one_over_n_and_falls(images):
    assert 0 < default_delta(images + 1) < default_delta(images) < 1 / images


@pytest.mark.parametrize(("expected_batch", "rate"), [(1, 1 / 3500), (350, 0.1), (3500, 1.0), (9999, 1.0)])
def test_dp_sgd_samples_the_expected_batch_of_all_images(expected_batch, rate):
    release = dp_sgd_release(1.5, 3500, settings(expected_batch_size=expected_batch, clipping_norm=0.25))
    assert release == Release(
        name="dp-sgd", noise_multiplier=1.5, sensitivity=0.25, sampling_rate=rate, steps=20, mechanism="gaussian", noise="seed"
    )


@pytest.mark.parametrize(("clips", "bound"), [(False, None), (True, 0.5)])
def test_without_noise_dp_sgd_is_exact_and_bounded_only_if_it_clips(clips, bound):
    release = dp_sgd_release(None, 3500, settings(clipping_norm=0.5), clips=clips)
    assert (release.mechanism, release.noise_multiplier, release.sensitivity) == ("none", None, bound)
    assert release.sampling_rate == pytest.approx(0.1) and release.steps == 20


@pytest.mark.parametrize(("method", "clipping", "bound"), [("clip-only", "flat", 0.5), ("no-dp", "none", None)])
def test_clip_only_clips_and_no_dp_does_not(dataset_record, method, clipping, bound):
    exact = Release(name="saliency", mechanism="none", sensitivity=None, sampling_rate=1.0, steps=1)
    plan = make_plan(spec(method), dataset_record, [exact], settings(clipping="flat", clipping_norm=0.5))
    assert (plan.clipping, plan.releases[1].sensitivity, plan.target_epsilon, plan.planned_epsilon) == (clipping, bound, None, {})


@pytest.mark.parametrize("method", ["pe", "aug-pe"])
def test_votes_are_planned_with_the_noise_that_meets_the_target(dataset_record, method):
    prior = Release(name="dp-sgd", noise_multiplier=3.0, sensitivity=1.0, sampling_rate=1.0, steps=1, noise="seed")
    options = settings(evolution={"iterations": 4}, noise="system")
    plans = [make_plan(spec(method, epsilon=2.0), dataset_record, [], options, before) for before in ([], [prior])]
    (votes,) = plans[0].releases
    assert votes == Release(
        name="pe-histogram",
        noise_multiplier=votes.noise_multiplier,
        sensitivity=1.0,
        sampling_rate=1.0,
        steps=4,
        noise="system",
    )
    assert all(1.98 < plan.planned_epsilon["pld"] <= 2 - 2 * PRV_ERROR for plan in plans)
    assert plans[1].releases[0].noise_multiplier > votes.noise_multiplier, "what was released before counts"
    assert [(plan.clipping, plan.dp_sgd_noise_alone, plan.selection_epsilon) for plan in plans] == [("none", None, None)] * 2


def test_a_plan_calibrates_dp_sgd_beside_the_selection(dataset_record):
    plan = make_plan(spec(epsilon=2.0), dataset_record, [SALIENCY], settings())
    assert plan.releases[0] == SALIENCY
    assert plan.releases[1] == dp_sgd_release(plan.releases[1].noise_multiplier, 3500, settings())
    assert 1.9 < plan.planned_epsilon["pld"] <= 2 - 2 * PRV_ERROR and plan.planned_epsilon["pld"] < plan.planned_epsilon["rdp"]
    assert plan.planned_epsilon["pld"] == epsilon("pld", plan.releases, plan.delta)
    assert plan.selection_epsilon == epsilon("pld", [SALIENCY], plan.delta)
    alone = calibrate(2.0, plan.delta, lambda sigma: [dp_sgd_release(sigma, 3500, settings())])
    assert plan.dp_sgd_noise_alone == alone < plan.releases[1].noise_multiplier


@pytest.fixture
def looked_for(monkeypatch):
    """Counts calibrations."""
    found, count = calibrations.calibrate, []
    monkeypatch.setattr("dpsapf.privacy.calibrations.calibrate", lambda *asked: count.append(asked) or found(*asked))
    return count


def test_plans_of_equal_releases_look_for_their_noise_once(dataset_record, tmp_path, looked_for):
    shared = settings(calibrations=tmp_path)
    asked = ((0, shared), (1, shared), (2, settings()))
    first, again, of_its_own = (make_plan(spec(seed=seed), dataset_record, [SALIENCY], each) for seed, each in asked)
    assert first.releases == again.releases == of_its_own.releases and len(looked_for) == 4  # with the selection and without
    assert first.dp_sgd_noise_alone == again.dp_sgd_noise_alone == of_its_own.dp_sgd_noise_alone


@pytest.mark.parametrize("change", [{"steps": 61}, {"expected_batch_size": 351}, {"delta": 2e-5}])
def test_what_changes_the_noise_is_calibrated_anew(dataset_record, tmp_path, looked_for, change):
    make_plan(spec("dp-lora"), dataset_record, [], settings(calibrations=tmp_path))
    make_plan(spec("dp-lora"), dataset_record, [], settings(calibrations=tmp_path, **change))
    assert len(looked_for) == 2


def test_noise_of_a_file_that_is_too_small_is_refused(dataset_record, tmp_path):
    make_plan(spec("dp-lora"), dataset_record, [], settings(calibrations=tmp_path))
    (file,) = tmp_path.iterdir()
    write_record(file, Calibration(noise_multiplier=0.3, provenance={}))
    with pytest.raises(UserError, match="epsilon = 10.0: the planned releases cost .*: remove"):
        make_plan(spec("dp-lora"), dataset_record, [], settings(calibrations=tmp_path))


def test_a_plan_says_what_is_promised_to_whom(dataset_record, monkeypatch):
    monkeypatch.setattr("dpsapf.privacy.calibrations.calibrate", lambda target, delta, build: 1.5)
    plan = make_plan(spec("dp-lora"), dataset_record, [], settings(clipping="flat", clipping_norm=0.5, noise="system"))
    assert (plan.relation, plan.unit, plan.public) == (RELATION["image"], "image", PUBLIC)
    assert (plan.clipping, plan.clipping_norm, plan.noise) == ("flat", 0.5, "system")
    assert (plan.population, plan.dataset_id) == (3500, "d" * 64)
    assert (plan.target_epsilon, plan.selection_epsilon) == (10.0, None)
    assert plan.delta == default_delta(3500)


def test_a_given_delta_replaces_the_default(dataset_record):
    loose, tight = (make_plan(spec("dp-lora", epsilon=2.0), dataset_record, [], settings(delta=delta)) for delta in (1e-4, 1e-7))
    assert (loose.delta, tight.delta) == (1e-4, 1e-7)
    assert loose.releases[0].noise_multiplier < tight.releases[0].noise_multiplier


@pytest.mark.parametrize("delta", [1 / 3500, 1e-3, 0.1])
def test_a_delta_that_may_publish_an_image_is_refused(dataset_record, delta):
    with pytest.raises(UserError, match=r"delta = .*must be below 1/N = 0\.000286 for N = 3500"):
        make_plan(spec("dp-lora", epsilon=2.0), dataset_record, [], settings(delta=delta))


@pytest.mark.parametrize("delta", [0.0, float("nan"), 1 / 3500])
def test_only_a_delta_within_its_range_passes(delta):
    check_delta(1 / 3501, 3500)
    with pytest.raises(UserError, match="delta"):
        check_delta(delta, 3500)


def test_earlier_releases_leave_less_for_this_run(dataset_record):
    """The target holds them, too: more noise, and refused where nothing is left."""
    alone = make_plan(spec("dp-lora", epsilon=2.0), dataset_record, [], settings())
    after = make_plan(spec("dp-lora", epsilon=2.0), dataset_record, [], settings(), [SALIENCY])
    assert after.prior == (SALIENCY,) and after.releases[0].noise_multiplier > alone.releases[0].noise_multiplier
    assert 1.9 < epsilon("pld", [SALIENCY, *after.releases], after.delta) == after.planned_epsilon["pld"] <= 2 - 2 * PRV_ERROR
    with pytest.raises(UserError, match="the earlier releases alone cost"):
        make_plan(spec(epsilon=2.0), dataset_record, [SALIENCY], settings(), alone.releases)


def test_a_smaller_target_needs_more_noise(dataset_record):
    plans = [make_plan(spec("dp-lora", epsilon=target), dataset_record, [], settings()) for target in (0.5, 2.0)]
    sigmas = [plan.releases[0].noise_multiplier for plan in plans]
    assert sigmas == sorted(sigmas, reverse=True) and len(set(sigmas)) == 2
    assert all(plan.planned_epsilon["pld"] <= plan.target_epsilon for plan in plans)


def test_without_a_guarantee_there_is_no_number_that_looks_like_one(dataset_record):
    exact = Release(name="saliency", mechanism="none", sensitivity=None, sampling_rate=1.0, steps=1)
    plan = make_plan(spec("no-dp"), dataset_record, [exact], settings(clipping="flat"))
    assert (plan.target_epsilon, plan.selection_epsilon, plan.dp_sgd_noise_alone) == (None, None, None)
    assert plan.planned_epsilon == {} and plan.clipping == "none"
    assert [release.mechanism for release in plan.releases] == ["none", "none"]
    assert math.isinf(epsilon("pld", plan.releases, plan.delta))


def test_what_trains_nothing_releases_nothing(dataset_record):
    plan = make_plan(spec("no-finetune"), dataset_record, [], settings())
    assert plan.releases == () and plan.target_epsilon is None


def test_a_target_below_the_selections_cost_is_refused(dataset_record):
    costly = Release(name="saliency", noise_multiplier=1.0, sensitivity=1.0, sampling_rate=1.0, steps=1)
    with pytest.raises(
        UserError, match=r"epsilon = 1\.0: cannot be met: the saliency release alone costs .* sigma_s from 1 above"
    ):
        make_plan(spec(epsilon=1.0), dataset_record, [costly], settings())


def warned(caplog, run, record, options, saliency=()):
    plan = make_plan(run, record, list(saliency), options)
    return plan, [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_plan_that_spends_clearly_less_than_its_target_says_both_numbers_and_why(dataset_record, caplog, monkeypatch):
    monkeypatch.setattr("dpsapf.privacy.accounting.CARRIED", 8.0)
    monkeypatch.setattr("dpsapf.privacy.plan.CARRIED", 8.0)
    end, error = "accountants carry Gaussian noise up to an epsilon of 8", "calibration leaves 0.0007"
    for target, why, steps in ((100.0, end, 30), (0.01, error, 30_000)):
        caplog.clear()
        options = settings(steps=steps, expected_batch_size=35)
        plan, told = warned(caplog, spec("dp-lora", epsilon=target), dataset_record, options)
        spent = plan.planned_epsilon["pld"]
        assert spent < NEARLY * target and why in plan.spends_less
        assert [line for line in told if f"epsilon = {target:g}: the run spends {spent:.4g} of it" in line and why in line]


@pytest.mark.parametrize("target", [1.0, 8.0])
def test_a_plan_that_spends_nearly_its_target_says_nothing(dataset_record, caplog, target):
    plan, told = warned(caplog, spec("dp-lora", epsilon=target), dataset_record, settings())
    assert plan.spends_less is None and told == [] and plan.planned_epsilon["pld"] >= NEARLY * target


@pytest.mark.parametrize(("images", "batch", "delta", "told"), [
    (105, 350, None, ["delta", "rate"]),
    (105, 10, None, ["delta"]),
    (105, 10, 1e-5, []),
    (105, 105, 1e-5, ["rate"]),
    (105, 104, 1e-5, []),
    (3500, 350, None, []),
    (3500, 350, 2.8e-4, []),
    (400, 350, 1e-3, ["delta"]),
])  # fmt: skip
def test_few_images_are_warned_of_with_a_remedy(dataset_record, caplog, images, batch, delta, told):
    record, options = replace(dataset_record, train=images), settings(expected_batch_size=batch, delta=delta)
    plan, lines = warned(caplog, spec("dp-lora", epsilon=2.0), record, options)
    expected = {
        "delta": f"delta = {plan.delta:.2g} at N = {images} is large: once in {1 / plan.delta:,.0f} times the promise may fail",
        "rate": f"expected_batch_size = {batch} at N = {images}: the sampling rate is 1, each image is in each step",
    }
    assert len(lines) == len(told) and all(expected[name] in line for name, line in zip(told, lines, strict=True)), lines
    assert all("set privacy.delta" in line or "set a batch well below N" in line for line in lines)


@pytest.mark.parametrize("method", ["no-dp", "no-finetune", "clip-only"])
def test_what_promises_nothing_is_not_warned_of(dataset_record, caplog, method):
    exact = [Release(name="saliency", mechanism="none", sensitivity=None, sampling_rate=1.0, steps=1)]
    _, told = warned(
        caplog, spec(method), replace(dataset_record, train=105), settings(), exact if METHODS[method].selects else ()
    )
    assert told == []


@pytest.mark.parametrize("method", METHODS)
def test_a_run_has_the_axes_of_its_method_and_no_others(method):
    check_axes(spec(method))
    for axis in AXES:
        if axis in METHODS[method].uses & TRAINED.keys():
            check_axes(spec(method, **{axis: TRAINED[axis]}))
            continue
        if axis in METHODS[method].uses:
            wrong = spec(method, **{axis: None})
            message = "ratio = 'auto': needs a rule" if axis == "ratio" else f"{axis} = None: method {method} needs it"
        else:
            wrong = spec(method, **{axis: (COMPLETE | TRAINED)[axis]})
            message = f"{axis} = .*: method {method} does not use it; leave it out"
        with pytest.raises(UserError, match=message):
            check_axes(wrong)


@pytest.mark.parametrize("target", [LEAST / 2, math.nextafter(LEAST, 0)])
def test_a_target_below_the_accountants_resolution_is_refused(target):
    with pytest.raises(UserError, match="epsilon = .*must be at least 0.01, the accountants' resolution"):
        check_axes(spec(epsilon=target))
    check_axes(spec(epsilon=LEAST))


@pytest.mark.parametrize(
    ("unit", "users", "expected"), [("image", 2, 3500), ("image", None, 3500), ("user", 2, 2), ("user", 400, 400)]
)
def test_the_population_is_that_of_the_unit(dataset_record, unit, users, expected):
    assert population(replace(dataset_record, users=users), unit) == expected


@pytest.mark.parametrize(("users", "said"), [(None, "mnist5k names no users"), (1, "mnist5k names 1 users")])
def test_too_few_users_are_refused(dataset_record, users, said):
    with pytest.raises(UserError, match=f"unit = 'user': {said}: add a CSV of them"):
        population(replace(dataset_record, users=users), "user")


def test_dp_sgd_clips_unless_it_is_told_not_to():
    assert dp_sgd_release(None, 3500, settings(clipping_norm=0.5)).sensitivity == 0.5
