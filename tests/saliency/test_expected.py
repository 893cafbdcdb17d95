"""Settings that nobody has to guess: a bound from public samples, sigma_s from the plan, and what noise leaves of a selection."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from dpsapf.experiment.columns import BLOCK, CANDIDATES, CERTIFIERS, LAYER, MATRIX
from dpsapf.experiment.records import DatasetRecord, Plan, Release
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.settings import SaliencyConfig
from dpsapf.experiment.stages import MeasureGradients, PlanPrivacy
from dpsapf.privacy.accounting import epsilon
from dpsapf.saliency import own_gradients
from dpsapf.saliency.expected import kept_of_selection, median_norm, read_gradients, told
from dpsapf.saliency.plan import check_plan, plan_privacy
from dpsapf.saliency.scores import Bounds
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.records import read_record, write_record

MATRICES = [f"down_blocks.0.attn{layer}.{projection}" for layer in range(5) for projection in ("to_q", "to_v")]
TABLE = pd.DataFrame({MATRIX: MATRICES, LAYER: [name[:-5] for name in MATRICES], BLOCK: "down_blocks.0", CANDIDATES: "attention"})
RUN = RunSpec(
    dataset="d", public_model="m", method="dp-sapf", level="matrix", ratio=0.3, score="energy", mechanism="gaussian", rule="top"
)


def squared(norms, shares=None):
    """Squared norms [n, M] of samples with these norms over all matrices, spread over them by shares."""
    shares = np.arange(len(MATRICES), 0, -1.0) if shares is None else np.asarray(shares)
    return np.square(norms)[:, None] * shares / shares.sum()


def write_gradients(path, found):
    pd.DataFrame(found.T).assign(**{MATRIX: MATRICES}).set_index(MATRIX).to_csv(path)


def options(tmp_path, record, **changes):
    write_record(tmp_path / "dataset.json", record)
    TABLE.to_csv(tmp_path / "candidates.csv", index=False)
    write_gradients(tmp_path / "gradients.csv", squared(np.array([0.05, 0.1234, 0.1236, 0.4])))
    files = {"dataset": "dataset.json", "candidate_table": "candidates.csv", "gradients": "gradients.csv", "out": "plan.json"}
    values = {"public_model": "m", "method": "dp-sapf", "level": "matrix", "ratio": 0.3, "score": "energy", "sigma_s": 5.0}
    values |= {"epsilon": 10.0, "steps": 15, "expected_batch_size": 350}
    values |= {name: tmp_path / file for name, file in files.items()}
    return PlanPrivacy(**(values | changes))


def planned(tmp_path, record, **changes):
    plan_privacy(options(tmp_path, record, **changes))
    return read_record(tmp_path / "plan.json", Plan)


# ---- The bound.


def test_an_automatic_bound_is_the_median_norm_of_own_samples_and_is_told(tmp_path, dataset_record):
    plan = planned(tmp_path, dataset_record, saliency=SaliencyConfig(clipping_norm="auto"))
    assert plan.saliency_clipping_norm == 0.12 and plan.releases[0].sensitivity == pytest.approx(0.12**2)
    assert "C_s = 0.12," in plan.selection_kept
    assert planned(tmp_path, dataset_record).saliency_clipping_norm == 1.0


def test_an_automatic_bound_does_not_change_what_is_spent(tmp_path, dataset_record):
    plans = [planned(tmp_path, dataset_record, saliency=SaliencyConfig(clipping_norm=bound)) for bound in (1.0, "auto")]
    assert plans[0].planned_epsilon == plans[1].planned_epsilon
    assert plans[0].releases[1] == plans[1].releases[1]


@pytest.mark.parametrize(
    ("gradients", "message"), [(None, "--gradients = None: .* run measure-gradients first"), ("other.csv", "other matrices")]
)
def test_without_its_public_samples_an_automatic_bound_is_refused(tmp_path, dataset_record, gradients, message):
    write_gradients(tmp_path / "other.csv", squared(np.ones(2)))
    text = (tmp_path / "other.csv").read_text()
    (tmp_path / "other.csv").write_text(text.replace("attn4", "attn9"))
    automatic = {"saliency": SaliencyConfig(clipping_norm="auto"), "gradients": gradients and tmp_path / gradients}
    with pytest.raises(UserError, match=message):
        plan_privacy(options(tmp_path, dataset_record, **automatic))
    assert not (tmp_path / "plan.json").exists()


def test_without_noise_nothing_is_bounded_or_told(tmp_path, dataset_record):
    exact = {"method": "clip-only", "sigma_s": None, "epsilon": None, "gradients": None}
    plan = planned(tmp_path, dataset_record, saliency=SaliencyConfig(clipping_norm="auto"), **exact)
    assert (plan.releases[0].sensitivity, plan.saliency_clipping_norm, plan.selection_kept) == (None, None, None)


def test_gradients_of_own_samples_see_prompts_and_model_alone(tmp_path, model_record, two_digits):
    """The command reads no image; another dataset of the same prompts gives the same file, other prompts another."""
    from dpsapf.public_models.candidates import matrix_table
    from dpsapf.public_models.families import load_model
    from dpsapf.public_models.families.stable_diffusion import BLOCKS

    write_record(tmp_path / "model.json", model_record)
    matrix_table(load_model(model_record).denoiser("cpu"), BLOCKS).to_csv(tmp_path / "candidates.csv", index=False)

    def measured(record: DatasetRecord) -> bytes:
        write_record(tmp_path / "dataset.json", record)
        files = {"dataset": "dataset.json", "model": "model.json", "candidate_table": "candidates.csv", "out": "gradients.csv"}
        settings = {name: tmp_path / file for name, file in files.items()}
        own_gradients.measure_gradients(MeasureGradients(**settings, samples=3, draws=2, micro_batch=4))
        return (tmp_path / "gradients.csv").read_bytes()

    first = measured(two_digits)
    assert measured(replace(two_digits, id="e" * 64, train=9, name="others")) == first
    assert measured(replace(two_digits, prompts=("a photo of a cat", "a red circle"))) != first
    table = pd.read_csv(tmp_path / "candidates.csv")
    attention = table[table[CANDIDATES] == "attention"].reset_index(drop=True)
    found = read_gradients(tmp_path / "gradients.csv", attention)
    assert found.shape == (6, len(attention)) and (found >= 0).all() and median_norm(found) > 0


# ---- sigma_s.


def noise_raised(plan):
    """By how much DP-SGD's noise rises beside the scores of a plan."""
    return plan.releases[1].noise_multiplier / plan.dp_sgd_noise_alone - 1


@pytest.mark.parametrize(
    ("images", "target", "steps"),
    [
        (3500, 1.0, 15),
        (3500, 10.0, 15),
        (1200, 10.0, 15),
        pytest.param(45000, 10.0, 100, marks=pytest.mark.slow),
        (3500, 0.5, 90),
    ],
)
def test_an_automatic_sigma_raises_the_noise_by_at_most_one_percent_and_is_the_least(
    tmp_path, dataset_record, images, target, steps
):
    record = replace(dataset_record, train=images)
    plan = planned(tmp_path, record, sigma_s="auto", epsilon=target, steps=steps)
    sigma = plan.releases[0].noise_multiplier
    assert 0 < noise_raised(plan) <= 0.01
    smaller = planned(tmp_path, record, sigma_s=0.8 * sigma, epsilon=target, steps=steps)
    assert noise_raised(smaller) > 0.01
    assert all(epsilon(name, plan.releases, plan.delta) <= target for name in CERTIFIERS)


def test_runs_that_share_scores_find_the_same_sigma(tmp_path, dataset_record):
    """Whatever else they plan: another ratio, level, learning rate, seed of the same scores."""
    changes = [{}, {"ratio": 0.5}, {"level": "layer"}, {"learning_rate": 0.04}, {"lora_rank": 2}]
    plans = [planned(tmp_path, dataset_record, sigma_s="auto", **each) for each in changes]
    assert len({plan.run.scores_id for plan in plans}) == len({plan.releases[0] for plan in plans}) == 1


@pytest.mark.parametrize("changes", [{"epsilon": 1.0}, {"training_steps": 90}, {"batch_size": 700}])
def test_what_decides_sigma_has_scores_of_its_own(tmp_path, dataset_record, changes):
    one, other = (planned(tmp_path, dataset_record, sigma_s="auto", **each) for each in ({}, changes))
    assert one.releases[0] != other.releases[0] and one.run.scores_id != other.run.scores_id
    fixed = [planned(tmp_path, dataset_record, **each).run.scores_id for each in ({}, changes)]
    assert fixed[0] == fixed[1], "a number is shared"


def test_an_automatic_sigma_is_of_the_gaussian_mechanism(tmp_path, dataset_record):
    with pytest.raises(UserError, match="sigma_s = 'auto': needs mechanism gaussian"):
        plan_privacy(options(tmp_path, dataset_record, sigma_s="auto", mechanism="exponential"))


def test_a_look_beforehand_searches_no_noise(tmp_path, dataset_record, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a dry run must not search for noise")

    monkeypatch.setattr("dpsapf.privacy.calibrations.calibrate", refuse)
    check_plan(options(tmp_path, dataset_record, sigma_s="auto", saliency=SaliencyConfig(clipping_norm="auto")))
    with pytest.raises(UserError, match="epsilon = 0.005"):
        check_plan(options(tmp_path, dataset_record, sigma_s="auto", epsilon=0.005))


# ---- What noise leaves.


def release(sigma, sensitivity=1.0, **changes):
    values = {"name": "saliency", "noise_multiplier": sigma, "sensitivity": sensitivity, "sampling_rate": 1.0, "steps": 1}
    return Release(**(values | changes))


def kept(found, sigma, bound=1.0, run=RUN, population=1000):
    return kept_of_selection(found, TABLE, run, release(sigma, bound**2), population, Bounds(clipping_norm=bound, votes=2))


def test_without_much_noise_all_is_kept_and_with_much_what_chance_gives():
    found = squared(np.full(50, 0.5))
    assert kept(found, 1e-6) == (1.0, 0.3)
    share, chance = kept(found, 1e9)
    assert share == pytest.approx(chance, abs=0.1)  # 100 draws of 3 of 10: three standard errors are 0.04


def test_more_images_and_a_tighter_bound_keep_more():
    found = squared(np.full(50, 0.1))
    loose, many, tight = kept(found, 5.0)[0], kept(found, 5.0, population=100_000)[0], kept(found, 5.0, bound=0.1)[0]
    assert loose < tight and loose < many


def test_it_foretells_what_a_release_of_images_like_the_samples_keeps():
    """Against noise that is added here, to scores that are summed here."""
    draws = np.random.default_rng(5)
    norms = draws.uniform(0.02, 0.3, 2000)
    exact = squared(norms).sum(0)
    top = set(np.argsort(-exact)[:3])
    shares = [len(top & set(np.argsort(-(exact + 5.0 * draws.standard_normal(10)))[:3])) / 3 for _ in range(2000)]
    foretold, _ = kept(squared(norms), 5.0, population=2000)
    assert foretold == pytest.approx(np.mean(shares), abs=0.08)  # 100 draws of a share whose deviation is 0.25: three errors


@pytest.mark.parametrize(
    ("changes", "mechanism"),
    [
        ({"score": "signal"}, "gaussian"),
        ({"rule": "random"}, "gaussian"),
        ({"ratio": 1.0}, "gaussian"),
        ({"mechanism": "exponential"}, "exponential"),
    ],
)
def test_nothing_is_foretold_where_noisy_sums_do_not_choose(changes, mechanism):
    run = replace(RUN, **changes)
    found = kept_of_selection(
        squared(np.ones(4)), TABLE, run, release(5.0, mechanism=mechanism), 100, Bounds(clipping_norm=1.0, votes=2)
    )
    assert found is None


def test_a_plan_warns_where_the_selection_is_near_chance_and_only_there(tmp_path, dataset_record, caplog):
    small = replace(dataset_record, train=300)
    plan = planned(tmp_path, small, ratio=0.3, epsilon=3.0)
    assert "near chance; try saliency.clipping_norm auto" in plan.selection_kept and plan.selection_kept in caplog.text
    assert plan.selection_kept.startswith("noise is expected to keep ") and "\n" not in plan.selection_kept
    many = replace(dataset_record, train=3_000_000)
    plan = planned(tmp_path, many, ratio=0.3)
    assert "near chance" not in plan.selection_kept


def test_what_is_told_of_a_share_half_way_from_chance():
    half = told((0.65, 0.3), RUN, release(5.0), 100, 1.0)
    assert "near chance" not in half and "near chance" in told((0.64, 0.3), RUN, release(5.0), 100, 1.0)


def test_torch_waits_for_the_stage_that_needs_it():
    """A dry run checks plans in Snakemake's own process."""
    import subprocess
    import sys

    code = "import sys, dpsapf.saliency.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert math.isfinite(torch.ones(1).item())
