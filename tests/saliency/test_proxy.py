"""Selection that costs nothing: planned, selected, audited; and what would be learnt from the private images without noise."""

import numpy as np
import pandas as pd
import pytest

from dpsapf.experiment.columns import CANDIDATES, FRAGILITY_SHRUNK, MATRIX, SCORE, SELECTED
from dpsapf.experiment.methods import AXES, FRAGILITY, METHODS
from dpsapf.experiment.records import Plan, Selection, Spend
from dpsapf.experiment.runs import RunSpec, normalise
from dpsapf.experiment.stages import PlanPrivacy, SelectMatrices
from dpsapf.privacy import spends
from dpsapf.privacy.audit import audit_privacy, not_for_release
from dpsapf.saliency.plan import plan_privacy
from dpsapf.saliency.select import select_matrices
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from dpsapf.support.files import sha256
from dpsapf.support.records import read_record, write_record
from tests.prepared_dataset import write_dataset
from tests.privacy.conftest import Run
from tests.true_files import NAMES, SETTINGS, write_public, write_scores

PROXY = {"method": "proxy", "level": "matrix", "ratio": 0.3, "epsilon": 10.0}


@pytest.fixture
def work(tmp_path, dataset_record):
    """A private dataset and a public one, each with images of its own, and what a plan reads."""
    return Work(tmp_path, dataset_record)


class Work:
    def __init__(self, folder, record):
        self.folder = folder
        self.records = {name: self.dataset(record, name, place) for place, name in enumerate(("mnist5k", "digits"))}
        write_public(folder / "model", folder / "candidates.csv")

    def dataset(self, record, name, first):
        """Write four images that no other dataset has, unless ``first`` is that of another one."""
        images = np.arange(first * 64, first * 64 + 64, dtype=np.uint8).reshape(4, 4, 4, 1)
        path = self.folder / f"{name}.safetensors"
        path.unlink(missing_ok=True)
        identity = sha256(write_dataset(path, {"train": (images, np.array([0, 1, 0, 1]))}, salt=name.encode().ljust(32)))
        known = replace(record, name=name, id=identity)
        write_record(self.folder / f"{name}.json", known)
        return known

    def plan(self, proxy, noise="seed", **changes):
        of = {"proxy_dataset": self.folder / "digits.json", "proxy_archive": self.folder / "digits.safetensors"}
        files = {"dataset": self.folder / "mnist5k.json", "archive": self.folder / "mnist5k.safetensors"}
        files |= {"candidate_table": self.folder / "candidates.csv", "out": self.folder / "plan.json"}
        files |= of if proxy not in ("mnist5k", FRAGILITY) else {}
        settings = {"public_model": "public-mini", "steps": 20, "expected_batch_size": 350, "noise": noise}
        plan_privacy(PlanPrivacy(**PROXY | files | settings | {"proxy": proxy} | changes))
        return read_record(self.folder / "plan.json", Plan)

    def select(self, plan):
        names = {"plan": "plan.json", "candidate_table": "candidates.csv", "out": "selection.csv", "record": "selection.json"}
        if plan.run.scored_dataset:
            write_scores(self.folder / "scores.csv")
            names["scores"] = "scores.csv"
        fragility = pd.DataFrame({MATRIX: NAMES, FRAGILITY_SHRUNK: np.arange(len(NAMES), dtype=float) ** 2 % 37})
        fragility.to_csv(self.folder / "fragility.csv", index=False)
        names["fragility"] = "fragility.csv"
        select_matrices(SelectMatrices(**{key: self.folder / name for key, name in names.items()}, **SETTINGS))
        return pd.read_csv(self.folder / "selection.csv")


def spec(proxy, **changes):
    axes = {"score": "energy", "candidates": "attention", "adapter": "lora"} | PROXY | {"proxy": proxy}
    return normalise(RunSpec(dataset="mnist5k", public_model="m", **(axes | changes)))


def test_ids_say_what_chooses_and_scores_are_shared_with_runs_without_noise():
    assert spec(FRAGILITY).id == "mnist5k--m--proxy-matrix-r30-fragility--eps10--seed0"
    assert spec("digits").id == "mnist5k--m--proxy-matrix-r30-digits-energy--eps10--seed0"
    exact = RunSpec(dataset="digits", public_model="m", method="no-dp", score="energy", candidates="attention")
    assert spec("digits").scores_id == exact.scores_id != spec("mnist5k").scores_id


def test_a_free_selection_leaves_dp_sgd_the_whole_target(work):
    alone = work.plan(None, method="dp-lora", level=None, ratio=None)
    for proxy, public in ((FRAGILITY, False), ("digits", True)):
        plan = work.plan(proxy)
        assert plan.releases == alone.releases and plan.planned_epsilon == alone.planned_epsilon
        assert (plan.target_epsilon, plan.without_guarantee, plan.selection_epsilon) == (10.0, None, None)
        assert any("every image of digits" in line for line in plan.public) == public
        assert plan.proxy_id == (work.records["digits"].id if public else None)


def test_private_images_that_choose_without_noise_are_told_in_the_plan_and_never_released(work, caplog):
    alone = work.plan(None, method="dp-lora", level=None, ratio=None)
    plan = work.plan("mnist5k")
    assert [(release.name, release.mechanism) for release in plan.releases] == [("saliency", "none"), ("dp-sgd", "gaussian")]
    assert plan.releases[1] == alone.releases[0], "trained with the noise of the target"
    assert plan.target_epsilon is None and plan.planned_epsilon == {}
    assert "without noise: no guarantee" in plan.without_guarantee and plan.without_guarantee in caplog.text
    for noise in ("seed", "system"):
        own = [replace(release, noise=noise if release.noise else None) for release in plan.releases]
        made = replace(plan, noise=noise, releases=tuple(own))
        assert "without noise: no guarantee" in not_for_release(made, ())
    with pytest.raises(UserError, match="proxy = 'mnist5k': is the private dataset .* never for release"):
        work.plan("mnist5k", noise="system")


def test_private_images_under_another_name_may_not_choose_for_a_release(work, dataset_record):
    """Known by their pixels, whatever salt, name and split they have."""
    assert work.plan("digits", noise="system").without_guarantee is None
    work.dataset(dataset_record, "digits", 0)
    with pytest.raises(UserError, match="proxy = 'digits': has an image of mnist5k"):
        work.plan("digits", noise="system", ratio=0.5)


def test_a_dataset_on_which_epsilon_was_spent_is_not_public(work):
    made = work.plan("digits", noise="system")
    spent = Spend(
        subject="digits--m--dp-lora--eps10--seed0",
        release=made.releases[0],
        unit="image",
        population=4,
        dataset_id=work.records["digits"].id,
        made_from={},
        digest="w",
        numbers=1,
        trainable_parameters=1,
        private="p",
        provenance={},
    )
    spends.record(spent)
    with pytest.raises(UserError, match="proxy = 'digits': is private itself, as digits--m--dp-lora.* released dp-sgd"):
        work.plan("digits", noise="system", ratio=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proxy": None}, "proxy = None: method proxy needs it"),
        ({"proxy_dataset": None}, "--proxy-dataset = None: the run selects by scores of digits"),
        ({"proxy": "oct-mini"}, "--proxy-dataset = 'digits': must be the dataset.json of oct-mini"),
        ({"score": "energy", "proxy": FRAGILITY}, "score = 'energy': method proxy does not use it"),
        ({"sigma_s": 5.0}, "method proxy does not use it"),
        ({"rule": "top"}, "method proxy does not use it"),
        ({"ratio": None}, "ratio = 'auto'"),
    ],
)
def test_mistakes_are_refused_and_leave_no_plan(work, changes, message):
    with pytest.raises(UserError, match=message):
        work.plan(**{"proxy": "digits"} | changes)
    assert not (work.folder / "plan.json").exists()


def test_images_of_one_file_are_not_two_datasets(work):
    write_record(work.folder / "digits.json", replace(work.records["mnist5k"], name="digits"))
    with pytest.raises(UserError, match="proxy = 'digits': has the images of mnist5k"):
        work.plan("digits")


def test_the_most_fragile_matrices_are_selected(work):
    table = work.select(work.plan(FRAGILITY))
    fragility = pd.read_csv(work.folder / "fragility.csv")[FRAGILITY_SHRUNK]
    assert table[SELECTED].sum() == 12 and table[SCORE].tolist() == fragility.tolist()
    assert set(table.index[table[SELECTED]]) == set(fragility.sort_values(ascending=False, kind="stable").index[:12])
    assert read_record(work.folder / "selection.json", Selection).scores is None


def test_the_highest_scores_of_other_images_select(work):
    table, scores = work.select(work.plan("digits")), pd.read_csv(work.folder / "scores.csv")[SCORE]
    assert set(table.index[table[SELECTED]]) == set(scores.nlargest(12).index)
    assert read_record(work.folder / "selection.json", Selection).scores == sha256(work.folder / "scores.csv")


# ---- The audit.


@pytest.fixture
def audited_proxy(tmp_path, plan, dataset_record):
    """Make an audited run that selects by a proxy; gives it and the options that its audit has beside others' ."""

    def make(proxy):
        run = replace(spec(proxy), public_model="public-mini")
        releases = [release for release in plan.releases if release.name == "dp-sgd"]
        other = proxy not in (FRAGILITY, "mnist5k")
        made = Run(
            tmp_path, replace(plan, run=run, releases=tuple(releases), proxy_id="e" * 64 if other else None), dataset_record
        )
        write_public(tmp_path / "model", tmp_path / "candidates.csv")
        write_scores(tmp_path / "scores.csv")
        return made

    return make


def write_spend(made, **changes):
    """Write the spend record of the scores."""
    release = {"name": "saliency", "mechanism": "none", "sensitivity": None, "sampling_rate": 1.0, "steps": 1}
    names = {"model": "model.json", "candidate_table": "candidates.csv"}
    values = {
        "subject": made.plan.run.scores_id,
        "release": release,
        "unit": "image",
        "population": 4,
        "dataset_id": "e" * 64,
        "made_from": {name: sha256(made.path(file)) for name, file in names.items()} | {"latents": "1" * 64},
        "digest": sha256(made.path("scores.csv")),
        "numbers": len(NAMES),
        "trainable_parameters": 0,
        "private": "2" * 64,
        "provenance": {},
    }
    write_record(made.path("proxy.json"), Spend(**values | changes))
    return {"scores": made.path("scores.csv"), "proxy_spend": made.path("proxy.json")}


def test_the_audit_derives_a_selection_by_another_datasets_scores(audited_proxy):
    made = audited_proxy("digits").make()
    audit_privacy(made.options(**write_spend(made)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_id": "d" * 64}, "dataset_id = 'dddd"),  # the private images'
        ({"dataset_id": "f" * 64}, "dataset_id = 'ffff"),
        ({"subject": "mnist5k--public-mini--attention-energy--seed0"}, "subject = 'mnist5k"),
        ({"digest": "0" * 64}, "scores.csv = .*: is not the file that was recorded"),
    ],
)
def test_the_audit_refuses_scores_of_other_images_than_the_plans(audited_proxy, changes, message):
    made = audited_proxy("digits").make()
    with pytest.raises(UserError, match=message):
        audit_privacy(made.options(**write_spend(made, **changes)))
    assert not made.path("ledger.json").exists()


def test_the_audit_refuses_private_scores_that_a_plan_takes_for_public_ones(audited_proxy):
    made = audited_proxy("digits")
    made.plan = replace(made.plan, proxy_id=made.plan.dataset_id)
    made.make()
    with pytest.raises(UserError, match="are scores of the private images: they were not planned"):
        audit_privacy(made.options(**write_spend(made, dataset_id=made.plan.dataset_id)))
    with pytest.raises(UserError, match="--proxy-spend = None"):
        audit_privacy(made.options(scores=made.path("scores.csv")))


# ---- The kind of mistake.

FULL = {
    "level": "matrix",
    "ratio": 0.3,
    "score": "energy",
    "mechanism": "gaussian",
    "sigma_s": 10.0,
    "rule": "top",
    "epsilon": 10.0,
}


@pytest.mark.parametrize("proxy", [FRAGILITY, "digits", "mnist5k"])
@pytest.mark.parametrize("name", METHODS)
def test_a_plan_has_a_guarantee_exactly_if_all_that_is_learnt_from_the_private_images_has_noise(work, name, proxy, monkeypatch):
    monkeypatch.setattr("dpsapf.privacy.calibrations.calibrate", lambda target, delta, build: 9.0)
    table = pd.read_csv(work.folder / "candidates.csv")
    pd.concat([table, table.assign(**{CANDIDATES: "all-params"})]).to_csv(work.folder / "candidates.csv", index=False)
    run = normalise(
        RunSpec(dataset="mnist5k", public_model="m", method=name, proxy=proxy, candidates="attention", adapter="lora", **FULL)
    )
    unused = {axis: None for axis in ("level", "ratio", "epsilon") if getattr(run, axis) is None}
    given = {axis: value for axis, value in dict(run).items() if axis in AXES and axis != "proxy" and value is not None}
    plan = work.plan(run.proxy, **{"method": name, **unused, **given})
    exact = any(release.mechanism == "none" for release in plan.releases)
    assert (plan.target_epsilon is None) == (exact or not plan.releases)
    assert (not_for_release(plan, ()) is None) == (not exact or run.epsilon is None), "told already where epsilon is named"
