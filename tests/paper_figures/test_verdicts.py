"""Verdicts: the rule on constructed comparisons, the pairing on a fake results folder whose truth is known."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from dpsapf.aggregation.multiple_tests import holm
from dpsapf.experiment.runs import Study, expand
from dpsapf.experiment.stages import CompareWithPaper
from dpsapf.support.errors import UserError
from paper_figures import claims, comparisons, published, verdicts
from paper_figures.claims import ACCURACY, CLAIMS, FID, FID_FACTOR, PARAMETERS
from paper_figures.comparisons import Comparison
from paper_figures.published import MATRICES
from paper_figures.results import load_results
from paper_figures.tables import markdown
from paper_figures.verdicts import NOT_REPRODUCED, NOT_RUN, OPEN, REPRODUCED, judge, judge_all, region, verdict
from tests.fake_results import write_results

BY_ID = {claim.id: claim for claim in CLAIMS}
HERE = {"dataset": "mnist5k", "public_model": "public-mini"}


def comparison(*differences, folder="one", protocol="test-v1", **setting):
    values = frozenset((float(seed), value, 0.0) for seed, value in enumerate(differences))
    return Comparison(folder, protocol, HERE | setting, np.array(differences, float), values)


def verdicts_of(differences, metric=ACCURACY, expected="ahead"):
    return [one.verdict for one in judge([comparison(*row) for row in differences], region(metric, expected), metric.exact)]


@pytest.mark.parametrize(
    ("metric", "expected", "differences", "told"),
    [
        (ACCURACY, "ahead", (4, 5, 6), REPRODUCED),
        (ACCURACY, "ahead", (-4, -5, -6), NOT_REPRODUCED),
        (ACCURACY, "ahead", (-4, 5, 6), OPEN),
        (FID, "ahead", (-4, -5, -6), REPRODUCED),
        (FID, "ahead", (4, 5, 6), NOT_REPRODUCED),
        (FID_FACTOR, "behind", (0.9, 1, 1.1), REPRODUCED),
        (FID_FACTOR, "behind", (-0.9, -1, -1.1), NOT_REPRODUCED),
        (ACCURACY, "level", (0.1, -0.1, 0.05), REPRODUCED),
        (ACCURACY, "level", (9.9, 10, 10.1), NOT_REPRODUCED),
        (ACCURACY, "level", (4.9, 5, 5.2), OPEN),
        (ACCURACY, "level", (-20, 20, 0.0), OPEN),  # wide around the margin: level or not, it cannot be told
        (ACCURACY, "ahead", (0, 0, 0), OPEN),  # no difference and no spread: neither ahead nor behind
        (ACCURACY, "ahead", (2, 2, 2), REPRODUCED),
        (ACCURACY, "ahead", (5,), OPEN),  # one seed has no interval
        (PARAMETERS, "ahead", (-5,), REPRODUCED),  # but what is counted needs none
        (PARAMETERS, "ahead", (-5, 5), OPEN),
        (PARAMETERS, "ahead", (5, 6), NOT_REPRODUCED),
    ],
)
def test_the_rule(metric, expected, differences, told):
    assert verdicts_of([differences], metric, expected) == [told]


@pytest.mark.parametrize("wanted", [(0, math.inf), (-5, 5)])
def test_the_interval_is_the_paired_t_interval_at_holms_level(wanted):
    rows = [(4, 5, 6.5), (1, 2, 4.0), (-3, 1, 2.0), (9, 9.5, 11.0), (-0.1, 0.1, 0.2)]
    judged = judge([comparison(*row) for row in rows], wanted, exact=False)
    ends = [end for end in wanted if math.isfinite(end)]
    corrected = holm([max(stats.ttest_1samp(row, end).pvalue for end in ends) for row in rows])
    for one, row, p, level in zip(judged, rows, corrected.p, corrected.levels, strict=True):
        interval = stats.ttest_1samp(row, 0).confidence_interval(1 - level)
        assert (one.low, one.high) == pytest.approx((interval.low, interval.high))
        assert one.p_corrected == pytest.approx(p)
        assert (one.verdict != OPEN) == (p <= 0.05) == (not any(one.low < end < one.high for end in ends))
    assert {one.verdict for one in judged} > {OPEN}


def test_more_comparisons_need_more_evidence():
    clear, alone = (4, 5, 7.4), [(4, 5, 7.4)]
    assert verdicts_of(alone) == [REPRODUCED]
    assert verdicts_of(alone + [(-1, 1, 0.3)] * 9)[0] == OPEN
    assert stats.ttest_1samp(clear, 0).pvalue < 0.05 < 10 * stats.ttest_1samp(clear, 0).pvalue


def test_a_true_difference_of_zero_is_called_in_five_of_a_hundred_studies():
    draws = np.random.default_rng(0).normal(0, 1, (1500, 3, 4))
    called = [set(verdicts_of(study)) != {OPEN} for study in draws]
    assert np.mean(called) == pytest.approx(0.05, abs=0.0225)  # four standard errors


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([(4, 5, 6)], REPRODUCED),
        ([(4, 5, 6), (40, 50, 61)], REPRODUCED),
        ([(40, 50, 61), (-1, 1, 2)], OPEN),
        ([(400, 500, 601), (-1, 1, 2), (-400, -500, -601)], NOT_REPRODUCED),
        ([], NOT_RUN),
    ],
)
def test_a_claim_is_about_all_of_its_comparisons(rows, told):
    assert verdict(judge([comparison(*row) for row in rows], (0, math.inf), exact=False)) == told


def test_an_open_verdict_names_the_smallest_difference_that_would_be_seen():
    judged = judge([comparison(-4, 5, 6)], (0, math.inf), exact=False)
    visible = verdicts.smallest_visible(3) * np.std([-4, 5, 6], ddof=1)
    assert judged[0].visible == pytest.approx(visible)
    assert f"smallest difference to be seen in the least clear one is {visible:.2g} points" in verdicts.why(
        judged, ACCURACY, "ahead"
    )


def test_one_seed_is_told_and_not_judged():
    text = verdicts.why(judge([comparison(5), comparison(40, 50, 61)], (0, math.inf), exact=False), ACCURACY, "ahead")
    assert "1 of 2 comparisons; 1 has one seed and so no interval" in text


@pytest.mark.parametrize(
    ("dataset", "model", "protocol", "elsewhere"),
    [
        ("cifar10", "sd-v1-5", "paper-text-v1", False),
        ("cifar10", "sd-v1-5", "demo-v1", True),
        ("mnist5k", "sd-v1-5", "paper-text-v1", True),
        ("cifar10", "public-mini", "paper-code-v1", True),
    ],
)
def test_another_setting_than_the_papers_is_judged_in_direction_only_and_says_so(dataset, model, protocol, elsewhere):
    one = comparison(4, 5, 6, protocol=protocol, dataset=dataset, public_model=model)
    text = verdicts.why(judge([one], (0, math.inf), exact=False), ACCURACY, "ahead")
    assert ("Direction only" in text) == elsewhere


def test_runs_that_two_folders_share_count_once():
    whole, part, other = comparison(1, 2, 3), comparison(1, 2, folder="two"), comparison(1, 2.5, folder="three")
    assert comparisons.unique([part, whole, other]) == [whole, other]
    nan = comparison(1, 2, 3, epsilon=math.nan)
    assert comparisons.unique([whole, nan]) == [whole], "an axis that is empty is no other setting"


def test_one_seed_is_left_out_where_its_dataset_has_more():
    single, more = comparison(7, folder="demo"), comparison(1, 2, 3)
    elsewhere = comparison(7, dataset="digits")
    assert comparisons.unique([single, more, elsewhere]) == [more, elsewhere]


# --- on results -------------------------------------------------------------------------------------------------------


STUDIES = {
    "main": Study(dataset=("mnist5k", "histo-mini"), method=("dp-sapf", "dp-lora", "random", "no-finetune"), seed=(0, 1, 2)),
    "ratios": Study(dataset=("mnist5k",), method=("dp-sapf",), ratio=(0.5, 0.7), seed=(0, 1, 2)),
    "noise": Study(dataset=("mnist5k",), method=("dp-sapf",), sigma_s=(10, 25), seed=(0, 1, 2)),
    "mechanisms": Study(dataset=("mnist5k",), method=("dp-sapf",), mechanism=("exponential",), seed=(0, 1, 2)),
}


def scored(run):
    """Accuracy and FID whose truth is known: see `TRUTH`."""
    wobble = 0.001 * np.random.default_rng(sum(map(ord, run.id))).normal()
    gain = {"dp-sapf": 0.1, "random": 0.1, "dp-lora": 0.0, "no-finetune": -0.2}[run.method]
    gain += 0.05 * (run.method == "dp-lora" and run.dataset == "histo-mini") * 4  # there DP-LoRA is ahead
    fid = {"no-finetune": 50.0, "dp-lora": 40.0}.get(run.method, 30.0) * (3 if run.ratio == 0.7 else 1)
    fid *= 2 if run.mechanism == "exponential" else 1
    return {"accuracy": 0.6 + gain + wobble, "fid": fid * math.exp(10 * wobble)}


TRUTH = {
    ("dp-lora", "accuracy"): NOT_REPRODUCED,  # behind on one of two datasets
    ("dp-lora", "FID"): REPRODUCED,
    ("parameters", "trained parameters"): REPRODUCED,
    ("random", "accuracy"): OPEN,
    ("layers", "FID"): NOT_RUN,
    ("stable", "accuracy"): REPRODUCED,
    ("stable", "FID"): REPRODUCED,
    ("collapse", "FID"): REPRODUCED,
    ("selection-noise", "FID"): REPRODUCED,
    ("mechanisms", "accuracy"): REPRODUCED,
    ("mechanisms", "FID"): NOT_REPRODUCED,  # twice the FID is not as good
    ("transformer", "FID"): NOT_RUN,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("verdicts") / "fake", expand(STUDIES), images=False, changes=scored)


@pytest.fixture(scope="module")
def fake(root):
    return load_results(root)


@pytest.fixture(scope="module")
def data(fake):
    return judge_all([fake])


@pytest.mark.parametrize(("key", "told"), TRUTH.items(), ids=map("-".join, TRUTH))
def test_claims_come_out_as_the_invented_runs_are(data, key, told):
    row = data[(data["kind"] == "claim") & (data["claim"] == key[0]) & (data["metric"] == key[1])].iloc[0]
    assert row["verdict"] == told, row["why"]


def test_ours_is_the_mean_of_the_paired_differences(data, fake):
    row = data[(data["claim"] == "dp-lora") & (data["metric"] == "accuracy")].iloc[0]
    assert row["where"] == "histo-mini, public-mini, ε = 10 (fake)", "the dataset against the paper decides"
    runs = fake.runs[(fake.runs["dataset"] == "histo-mini") & (fake.runs["sigma_s"].isna() | (fake.runs["sigma_s"] == 5))]
    mean = runs.groupby("method")["accuracy"].mean()
    assert row["ours"] == pytest.approx(100 * (mean["dp-sapf"] - mean["dp-lora"]))
    assert (row["comparisons"], row["reproduced"], row["not_reproduced"], row["seeds"]) == (2, 1, 1, 3)


def test_collapse_is_measured_against_the_public_model_as_a_factor(data, fake):
    row = data[data["claim"] == "collapse"].iloc[0]
    runs = fake.runs[fake.runs["dataset"] == "mnist5k"]
    at_70 = runs[runs["ratio"] == 0.7].set_index("seed")["fid"]
    floor = runs[runs["method"] == "no-finetune"].set_index("seed")["fid"]
    assert row["ours"] == pytest.approx(math.exp(np.log(at_70 / floor).mean()))
    assert row["low"] < row["ours"] < row["high"]


def test_runs_at_another_learning_rate_are_not_compared(fake):
    others = fake.runs[fake.runs["dataset"] == "mnist5k"].assign(learning_rate=0.5, fid=1.0, accuracy=0.01)
    others = others.assign(run_id=others["run_id"] + "--lr0.5")
    both = dataclasses.replace(fake, runs=pd.concat([fake.runs, others], ignore_index=True))
    claim = BY_ID["random"]
    before, after = (comparisons.of_claim(claim, FID, results) for results in (fake, both))
    assert [one.values for one in before] == [one.values for one in after]


def test_a_claim_that_does_not_compare_sigma_s_holds_it(fake):
    (one,) = [one for one in comparisons.of_claim(BY_ID["random"], FID, fake) if one.setting["dataset"] == "mnist5k"]
    runs = fake.runs[(fake.runs["dataset"] == "mnist5k") & (fake.runs["method"] == "dp-sapf") & (fake.runs["ratio"] == 0.3)]
    runs = runs[(runs["mechanism"] == "gaussian") & (runs["sigma_s"] == fake.headline["sigma_s"])]
    assert sorted(ours for _, ours, _ in one.values) == sorted(runs["fid"]) and len(runs) == 3


def test_sides_of_another_epsilon_are_not_paired(fake):
    others = fake.runs[fake.runs["method"] == "random"].assign(epsilon=1.0, accuracy=0.01)
    both = dataclasses.replace(fake, runs=pd.concat([fake.runs, others.assign(run_id=others["run_id"] + "--eps1")]))
    before, after = (comparisons.of_claim(BY_ID["random"], ACCURACY, results) for results in (fake, both))
    assert [one.values for one in before] == [one.values for one in after]


def test_the_rate_that_noise_allows_is_a_comparison_of_its_own(fake):
    auto = fake.runs.assign(learning_rate="auto", run_id=fake.runs["run_id"] + "--lrauto", accuracy=fake.runs["accuracy"] / 2)
    both = dataclasses.replace(fake, runs=pd.concat([fake.runs, auto], ignore_index=True))
    found = comparisons.of_claim(BY_ID["random"], ACCURACY, both)
    assert len(found) == 2 * len(comparisons.of_claim(BY_ID["random"], ACCURACY, fake))
    assert {one.setting["learning_rate"] for one in found if not pd.isna(one.setting["learning_rate"])} == {"auto"}


OTHERS = {
    "score": "signal",
    "mechanism": "exponential",
    "rule": "noise-budget",
    "candidates": "all-params",
    "adapter": "lokr",
    "sigma_s": 25.0,
    "learning_rate": 0.5,
    "training_steps": 60.0,
    "batch_size": 8.0,
    "lora_rank": 16.0,
    "optimizer": "sgd",
}


def with_another_study(results, axis, value, rule="top"):
    """Add three times as many runs of DP-SAPF that differ from the others in one axis, and have no partner there."""
    ours = results.runs[results.runs["method"] == "dp-sapf"]
    others = [
        ours.assign(**{"rule": rule, axis: value, "accuracy": 0.01}).assign(run_id=ours["run_id"] + f"--{n}") for n in "abc"
    ]
    return dataclasses.replace(results, runs=pd.concat([results.runs, *others], ignore_index=True))


def compared(results, claim_ids=("dp-lora", "random", "parameters")):
    return [one.values for claim in claim_ids for one in comparisons.of_claim(BY_ID[claim], BY_ID[claim].metrics[0], results)]


@pytest.mark.parametrize("axis", OTHERS)
def test_a_study_with_another_rule_takes_no_comparison_away(fake, axis):
    """Its settings may be the commonest in the folder; they are chosen among the rows that the claim asks for."""
    both = with_another_study(fake, axis, OTHERS[axis], rule="noise-budget")
    assert compared(fake) and compared(both) == compared(fake)


@pytest.mark.parametrize("axis", OTHERS)
def test_a_setting_that_only_one_side_has_takes_no_comparison_away(fake, axis):
    claim = dataclasses.replace(BY_ID["layers"], ours=MATRICES | {"ratio": 0.3}, theirs=MATRICES | {"ratio": 0.7})
    more = with_another_study(fake, axis, OTHERS[axis])
    one_sided = more.runs[(more.runs["accuracy"] != 0.01) | (more.runs["ratio"] != 0.7)]
    before, after = (comparisons.of_claim(claim, FID, one) for one in (fake, dataclasses.replace(more, runs=one_sided)))
    assert before and [one.values for one in after] == [one.values for one in before]


def test_every_axis_that_is_held_is_tried():
    assert set(OTHERS) == set(comparisons.HELD)


def test_a_folder_that_no_claim_uses_is_named_with_the_reason(root, fake, tmp_path, caplog):
    lone = write_results(tmp_path / "lone", expand({"a": Study(dataset=("digits",), method=("dp-lora",))}), images=False)
    again = write_results(tmp_path / "again", expand(STUDIES)[:14], images=False, changes=scored)
    verdicts.compare_with_paper(CompareWithPaper(results=(root, lone, again), out=tmp_path / "verdicts.csv"))
    text, lines = (tmp_path / "verdicts.md").read_text(encoding="utf-8"), caplog.text
    for told in (text, lines):
        assert "lone: No two of its runs (of dp-lora) are the two sides of a claim" in told
        assert "again: Each of its comparisons is one of another folder's" in told
        assert "fake: " not in told


def test_outer_blocks_are_the_first_and_the_last_of_the_network(fake):
    selections = fake.selections.copy()
    outer = selections["block"].isin(["down_blocks.0", "up_blocks.1"])
    selections.loc[selections["noisy_score"].notna(), "noisy_score"] = np.where(outer, 4.0, 1.0)[
        selections["noisy_score"].notna()
    ]
    table = comparisons.places(dataclasses.replace(fake, selections=selections))
    means = table.groupby("place")["relative_score"].unique()
    assert means["outer"][0] / means["inner"][0] == pytest.approx(4)
    assert len(table) == 2 * 3 * 2 + 2 * 2 * 3, "one release per dataset, sigma_s and seed: sigma_s 5 on two, 10 and 25 on one"


def test_results_without_selections_are_judged_by_their_runs(root, data, tmp_path):
    (tmp_path / "tables").mkdir()
    for name in ("runs", "summary"):
        (tmp_path / "tables" / f"{name}.csv").write_bytes((root / "tables" / f"{name}.csv").read_bytes())
    other = judge_all([load_results(tmp_path, selections_needed=False)]).set_index(["claim", "metric"])
    assert other.loc[("edges", "released score per matrix"), "verdict"] == NOT_RUN
    assert other.loc[("dp-lora", "FID"), "verdict"] == REPRODUCED


# --- the paper's side -------------------------------------------------------------------------------------------------


def test_the_papers_own_values_fit_what_it_claims():
    """What stable and collapsed mean is defined so that the published curves are both; and every direction is the paper's."""
    for claim in CLAIMS:
        for metric in claim.metrics:
            if claim.published is None or metric.exact:
                continue
            low, high = region(metric, claim.expected)
            shown = verdicts.papers_own(claim, metric).removesuffix(" of 30 %'s").replace("×", "").split(" to ")
            values = [math.log(float(text)) if metric.log else float(text) for text in shown]
            assert all(low < value < high for value in values), (claim.id, metric.name, shown)


def test_what_the_paper_shows_is_read_from_the_published_table():
    table = pd.read_csv(published.REFERENCE / "variants.csv").set_index(["dataset", "variant"])["accuracy_pct"]
    gaps = sorted(table[name, "DP-SAPF"] - table[name, "Random"] for name in ("CIFAR-10", "CelebA"))
    assert verdicts.papers_own(BY_ID["random"], ACCURACY) == f"{gaps[0]:+.1f} to {gaps[1]:+.1f}"


@pytest.mark.parametrize("table", published.TABLES)
def test_every_published_row_has_a_setting_of_ours(table):
    rows, source = published.published(table), pd.read_csv(published.REFERENCE / f"{table}.csv")
    assert len(rows) == len(source) and rows[["dataset", "public_model", "method", "epsilon"]].notna().all(axis=None)
    assert rows[["accuracy_pct", "fid"]].to_numpy().tolist() == source[["accuracy_pct", "fid"]].to_numpy().tolist()
    assert not rows.duplicated(["dataset", "public_model", "method", "level", "mechanism", "ratio", "epsilon"]).any()


def test_the_papers_datasets_and_models_are_names_of_the_registries():
    config = Path(__file__).parents[2] / "config"
    names = {file: set(yaml.safe_load((config / f"{file}.yaml").read_text())) for file in ("datasets", "public_models")}
    assert set(published.DATASETS.values()) <= names["datasets"]
    assert {*published.PUBLIC_MODELS.values(), *published.TRANSFORMERS} <= names["public_models"]


def published_runs(tmp_path_factory, protocol, accuracy):
    study = Study(dataset=("cifar10",), public_model=("sd-v1-5",), method=("dp-sapf", "random"), seed=(0, 1, 2))

    def changes(run):
        wobble = 0.001 * (run.seed - 1)
        return {"accuracy": accuracy + wobble, "fid": 26.6 * (1 + wobble), "protocol": protocol}

    root = write_results(tmp_path_factory.mktemp("published") / "own", expand({"own": study}), images=False, changes=changes)
    return judge_all([load_results(root)])


@pytest.mark.parametrize(
    ("protocol", "accuracy", "told"),
    [
        ("paper-text-v1", 0.746, REPRODUCED),
        ("paper-code-v1", 0.735, REPRODUCED),  # within two points
        ("paper-text-v1", 0.6, NOT_REPRODUCED),
        ("demo-v1", 0.746, NOT_RUN),  # another protocol: no number can be set beside the paper's
    ],
)
def test_a_published_number_needs_dataset_model_setting_and_protocol(tmp_path_factory, protocol, accuracy, told):
    data = published_runs(tmp_path_factory, protocol, accuracy)
    numbers = data[(data["kind"] == "published number") & (data["metric"] == "accuracy")]
    row = numbers[numbers["text"] == "DP-SAPF on cifar10, sd-v1-5, 30 %, ε = 10"]
    assert set(row["verdict"]) == {told} and len(row) == 3, "in three of the published tables"
    assert set(numbers[numbers["text"].str.contains("celeba")]["verdict"]) == {NOT_RUN}


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_claim_and_published_number_has_one_row(data):
    assert data[data["kind"] == "claim"].groupby("claim").size().to_dict() == {c.id: len(c.metrics) for c in CLAIMS}
    sizes = {table: 2 * len(pd.read_csv(published.REFERENCE / f"{table}.csv")) for table in published.TABLES}
    assert data[data["kind"] == "published number"].groupby("claim").size().to_dict() == sizes
    assert set(data["verdict"]) <= set(verdicts.VERDICTS) and data["why"].str.endswith(".").all()
    assert len({claim.id for claim in claims.CLAIMS}) == len(CLAIMS)


def test_the_command_writes_both_files_with_the_counts(root, data, tmp_path):
    verdicts.compare_with_paper(CompareWithPaper(results=(root,), out=tmp_path / "verdicts.csv"))
    written = pd.read_csv(tmp_path / "verdicts.csv")
    assert written["verdict"].tolist() == data["verdict"].tolist()
    text = (tmp_path / "verdicts.md").read_text(encoding="utf-8")
    assert text == markdown(verdicts.draw(data))
    claimed = data[data["kind"] == "claim"]["verdict"].value_counts()
    assert f"Claims: {claimed[REPRODUCED]} reproduced, {claimed[NOT_REPRODUCED]} not reproduced" in text


def test_a_folder_twice_or_without_tables_is_refused_and_nothing_written(root, tmp_path):
    with pytest.raises(UserError, match="stands twice"):
        verdicts.compare_with_paper(CompareWithPaper(results=(root, root), out=tmp_path / "verdicts.csv"))
    with pytest.raises(UserError, match="does not exist"):
        verdicts.compare_with_paper(CompareWithPaper(results=(root, tmp_path), out=tmp_path / "verdicts.csv"))
    assert not list(tmp_path.iterdir())
