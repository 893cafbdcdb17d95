"""Verdicts on a fake results folder whose truth is known: what is compared, what came out, and how it is told."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from dpsapf.experiment.runs import Study, expand
from dpsapf.experiment.settings import parse_config
from dpsapf.experiment.stages import CompareWithPaper
from dpsapf.support.errors import UserError
from paper_figures import claims, comparisons, margins, published, verdicts
from paper_figures.claims import ACCURACY, CLAIMS, FID
from paper_figures.judging import NEEDS, NOT_REPRODUCED, NOT_RUN, OPEN, REPRODUCED, VERDICTS
from paper_figures.published import MATRICES
from paper_figures.results import load_results
from paper_figures.tables import markdown
from paper_figures.verdicts import judge_all
from tests.fake_results import write_results

BY_ID = {claim.id: claim for claim in CLAIMS}
CONFIG = Path(__file__).parents[2] / "config"


# --- what is compared -------------------------------------------------------------------------------------------------


STUDIES = {
    "main": Study(dataset=("mnist5k", "histo-mini"), method=("dp-sapf", "dp-lora", "random", "no-finetune"), seed=(0, 1, 2)),
    "ratios": Study(dataset=("mnist5k",), method=("dp-sapf",), ratio=(0.2, 0.4, 0.5, 0.7), seed=(0, 1, 2)),
    "noise": Study(dataset=("mnist5k",), method=("dp-sapf",), sigma_s=(10, 25), seed=(0, 1, 2)),
    "mechanisms": Study(dataset=("mnist5k",), method=("dp-sapf",), mechanism=("exponential",), seed=(0, 1, 2)),
}


def scored(run):
    """Accuracy and FID whose truth is known: see `TRUTH`."""
    wobble = 0.001 * np.random.default_rng(sum(map(ord, run.id))).normal()
    gain = {"dp-sapf": 0.1, "random": 0.1, "dp-lora": 0.0, "no-finetune": -0.2}[run.method]
    gain += 0.05 * (run.method == "dp-lora" and run.dataset == "histo-mini") * 4  # there DP-LoRA is ahead
    fid = {"no-finetune": 50.0, "dp-lora": 60.0}.get(run.method, 30.0) * (3 if run.ratio == 0.7 else 1)
    fid *= 2 if run.mechanism == "exponential" else 1
    return {"accuracy": 0.6 + gain + wobble, "fid": fid * math.exp(10 * wobble)}


TRUTH = {
    ("dp-lora", "accuracy"): NOT_REPRODUCED,  # behind on one of two datasets
    ("dp-lora", "FID"): REPRODUCED,
    ("resources", "trained parameters"): REPRODUCED,
    ("resources", "fine-tuning time"): NOT_REPRODUCED,  # all runs took as long
    ("random", "accuracy"): NOT_REPRODUCED,  # level
    ("layers", "FID"): NOT_RUN,
    ("stable", "accuracy"): REPRODUCED,
    ("stable", "FID"): REPRODUCED,
    ("collapse", "FID"): REPRODUCED,
    ("collapse-of-more", "FID"): REPRODUCED,
    ("selection-noise", "FID"): OPEN,  # sigma_s 20 was not run
    ("exponential", "accuracy"): REPRODUCED,
    ("exponential", "FID"): NOT_REPRODUCED,  # twice the FID is not as good
    ("ptr", "FID"): NEEDS,
    ("transformer", "FID"): NEEDS,
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


def row_of(data, claim, metric):
    return data[(data["kind"] == "claim") & (data["claim"] == claim) & (data["metric"] == metric)].iloc[0]


def compared(results, claim_ids=("dp-lora", "random", "resources")):
    """The values that are compared, by claim, dataset and kind of learning rate; of all metrics the first."""
    found = [(BY_ID[name], BY_ID[name].metrics[0]) for name in claim_ids]
    chosen = [
        (claim.id, one) for claim, metric in found for one in comparisons.one_each(comparisons.of_claim(claim, metric, results))
    ]
    return {(name, one.entry): (sorted(one.ours), sorted(one.theirs)) for name, one in chosen}


@pytest.mark.parametrize(("key", "told"), TRUTH.items(), ids=map("-".join, TRUTH))
def test_claims_come_out_as_the_invented_runs_are(data, key, told):
    row = row_of(data, *key)
    assert row["verdict"] == told, row["why"]


def test_ours_is_the_difference_of_the_means(data, fake):
    row = row_of(data, "dp-lora", "accuracy")
    assert row["where"] == "histo-mini, public-mini, ε = 10 (fake)", "the dataset against the paper decides"
    runs = fake.runs[(fake.runs["dataset"] == "histo-mini") & (fake.runs["sigma_s"].isna() | (fake.runs["sigma_s"] == 5))]
    mean = runs.groupby("method")["accuracy"].mean()
    assert row["ours"] == pytest.approx(100 * (mean["dp-sapf"] - mean["dp-lora"]))
    assert (row["comparisons"], row["ahead"], row["behind"], row["seeds"]) == (2, 1, 1, 3)


def test_seeds_are_not_paired(fake):
    """Which seed a run has changes nothing: its partner is no nearer to it than the other seeds."""
    ours = (fake.runs["method"] == "dp-sapf").to_numpy()
    others = fake.runs["seed"].where(~ours, (fake.runs["seed"] + 1) % 3)
    assert compared(dataclasses.replace(fake, runs=fake.runs.assign(seed=others))) == compared(fake)
    apart = fake.runs["seed"].where(~ours, fake.runs["seed"] + 10)
    assert compared(dataclasses.replace(fake, runs=fake.runs.assign(seed=apart))) == compared(fake)


def test_tables_without_the_used_rate_are_judged_at_the_configs(fake):
    older = dataclasses.replace(fake, runs=fake.runs.drop(columns="used_learning_rate"))
    assert compared(older) == compared(fake) != {}


def test_collapse_is_judged_at_every_learning_rate_and_says_where_it_begins(swept):
    runs = swept.runs.assign(ratio=swept.runs["ratio"].replace(0.5, 0.7))
    row = row_of(judge_all([dataclasses.replace(swept, runs=runs)]), "collapse", "FID")
    floor = runs[runs["method"] == "no-finetune"].groupby("dataset")["fid"].mean()
    rows = runs[(runs["rule"] == "top") & (runs["ratio"] == 0.7)]
    above = rows.groupby(["dataset", "used_learning_rate"])["fid"].min().unstack(0) > 1.3 * floor
    begins = {above.index[above[name]][0] for name in floor.index}
    assert row["verdict"] == REPRODUCED and row["comparisons"] == len(floor), "one entry for a dataset and epsilon"
    assert all(f"begins to hold at {rate:g}" in row["why"] or f"; at {rate:g}" in row["why"] for rate in begins), row["why"]


def test_a_claim_over_learning_rates_that_begins_at_none_says_so(data, fake):
    runs = fake.runs.assign(fid=fake.runs["fid"].where(fake.runs["ratio"] != 0.7, 1.0))
    row = row_of(judge_all([dataclasses.replace(fake, runs=runs)]), "collapse", "FID")
    assert row["verdict"] == NOT_REPRODUCED and "begins to hold at none (mnist5k, ε = 10)" in row["why"]
    assert "begins to hold at 0.02 (mnist5k, ε = 10)" in row_of(data, "collapse", "FID")["why"]


def test_a_claim_that_does_not_compare_sigma_s_holds_it(fake):
    runs = fake.runs[(fake.runs["dataset"] == "mnist5k") & (fake.runs["method"] == "dp-sapf") & (fake.runs["ratio"] == 0.3)]
    runs = runs[(runs["mechanism"] == "gaussian") & (runs["sigma_s"] == 5)]
    ours, _ = compared(fake)["random", comparisons.Comparison("", "", SETTING, {}, [], []).entry]
    assert ours == pytest.approx(sorted(100 * runs["accuracy"])) and len(runs) == 3


SETTING = {"dataset": "mnist5k", "public_model": "public-mini", "epsilon": 10.0, "kind": "given"}


def test_sides_of_another_epsilon_are_not_compared(fake):
    others = fake.runs[fake.runs["method"] == "random"].assign(epsilon=1.0, accuracy=0.01)
    assert compared(dataclasses.replace(fake, runs=pd.concat([fake.runs, others]))) == compared(fake)


def test_the_rate_that_noise_allows_is_a_comparison_of_its_own(fake):
    auto = fake.runs.assign(learning_rate="auto", accuracy=fake.runs["accuracy"] / 2)
    found = compared(dataclasses.replace(fake, runs=pd.concat([fake.runs, auto], ignore_index=True)))
    assert len(found) == 2 * len(compared(fake))
    assert {dict(entry)["kind"] for _, entry in found} == {"given", "auto"}


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
    others = [ours.assign(**{"rule": rule, axis: value, "accuracy": 0.01, "seed": ours["seed"] + 3 * n}) for n in range(3)]
    return dataclasses.replace(results, runs=pd.concat([results.runs, *others], ignore_index=True))


@pytest.mark.parametrize("axis", OTHERS)
def test_a_study_with_another_rule_takes_no_comparison_away(fake, axis):
    """Its settings may be the commonest in the folder; they are chosen among the rows that the claim asks for."""
    assert compared(fake) and compared(with_another_study(fake, axis, OTHERS[axis], rule="noise-budget")) == compared(fake)


@pytest.mark.parametrize("axis", OTHERS)
def test_a_setting_that_only_one_side_has_takes_no_comparison_away(fake, axis):
    claim = dataclasses.replace(BY_ID["layers"], ours=MATRICES | {"ratio": 0.3}, theirs=MATRICES | {"ratio": 0.7})
    more = with_another_study(fake, axis, OTHERS[axis])
    one_sided = more.runs[(more.runs["accuracy"] != 0.01) | (more.runs["ratio"] != 0.7)]
    before, after = (comparisons.of_claim(claim, FID, one) for one in (fake, dataclasses.replace(more, runs=one_sided)))
    assert before and [sorted(one.theirs) for one in after] == [sorted(one.theirs) for one in before]


def test_every_axis_that_is_held_is_tried():
    assert set(OTHERS) == {*comparisons.HELD, "learning_rate"}


def test_a_folder_that_no_claim_uses_is_named_with_the_reason(root, fake, tmp_path, caplog):
    lone = write_results(tmp_path / "lone", expand({"a": Study(dataset=("digits",), method=("dp-lora",))}), images=False)
    again = write_results(tmp_path / "again", expand(STUDIES)[:14], images=False, changes=scored)
    verdicts.compare_with_paper(CompareWithPaper(results=(root, lone, again), out=tmp_path / "verdicts.csv"))
    text, lines = (tmp_path / "verdicts.md").read_text(encoding="utf-8"), caplog.text
    for told in (text, lines):
        assert "lone: No two settings of its runs (of dp-lora) are the two sides of a claim" in told
        assert "again: What it compares has more seeds, or is nearer to the paper's setting, in fake." in told
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


@pytest.mark.parametrize(("claim", "metric"), [(claim, metric) for claim in CLAIMS for metric in claim.metrics])
def test_the_papers_own_values_fit_what_it_claims(claim, metric):
    """No effect that the paper has is within the margin of its claim, and none that it calls stable beyond it."""
    allowed, effects = margins.margin(claim, metric), margins.paper_effects(claim, metric)
    if claim.expected == "level":
        assert max(map(abs, effects), default=0) <= allowed
    else:
        side = 1 if (claim.expected == "ahead") == (metric.better > 0) else -1
        assert all(side * effect > allowed for effect in effects)


def test_margins_are_read_from_the_papers_plateau_and_its_effects():
    table = pd.read_csv(published.REFERENCE / "selection_ratio.csv").set_index(["dataset", "public_model", "selection_ratio"])
    at_30 = table.xs(0.3, level="selection_ratio")
    gaps = [table.xs(ratio, level="selection_ratio")["accuracy_pct"] - at_30["accuracy_pct"] for ratio in (0.2, 0.4, 0.5)]
    assert margins.margin(BY_ID["dp-lora"], ACCURACY) == pytest.approx(pd.concat(gaps).abs().max())
    variants = pd.read_csv(published.REFERENCE / "variants.csv").set_index(["variant", "dataset"])["accuracy_pct"].unstack()
    smallest = (variants.loc["DP-SAPF"] - variants.loc["w/o LoRA"]).min()
    assert margins.margin(BY_ID["no-lora"], ACCURACY) == pytest.approx(smallest / 2)


def test_an_effect_of_the_papers_size_is_said_to_be_excluded(data):
    smallest = margins.smallest_effect(BY_ID["random"], ACCURACY)
    row = row_of(data, "random", "accuracy")
    assert f"smallest effect, {smallest:+.1f}, is excluded in 2 of 2 comparisons" in row["why"]


def test_values_that_were_not_run_are_named_and_keep_a_claim_open(data):
    row = row_of(data, "selection-noise", "accuracy")
    assert row["level"] == row["comparisons"] == 2 and row["verdict"] == OPEN
    assert "Not run: sigma_s 20.0." in row["why"]


def sides_of(claim, runs):
    """How many runs of a config each side of a claim has."""
    table = pd.DataFrame([run.model_dump() for run in runs])
    table = table.assign(network=[comparisons.network(model) for model in table["public_model"]])
    return [len(comparisons.matching(table, side)) for side in (claim.ours, claim.theirs)]


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim.needs], ids=lambda claim: claim.id)
def test_the_config_that_would_decide_a_claim_has_both_of_its_sides(claim):
    (name,) = re.findall(r"config/[\w-]+\.yaml", claim.needs)
    assert all(sides_of(claim, runs_of(name)))


def runs_of(name, **studies):
    document = yaml.safe_load((CONFIG.parent / name).read_text(encoding="utf-8"))
    document["studies"] |= studies
    return expand(parse_config(document).studies)


def test_the_config_that_would_decide_a_published_number_has_its_runs():
    documents = {name: runs_of(name) for name in ("config/paper.yaml", "config/paper-dit.yaml")}
    models = tuple(published.PUBLIC_MODELS.values())
    swept = runs_of("config/paper.yaml", ratios=ratios_of(models))
    for row in pd.concat([published.published(table) for table in published.TABLES]).to_dict("records"):
        told = verdicts.config_of(row)
        if " with " in told:
            assert not has(documents["config/paper.yaml"], row), "it is there already"
            assert has(swept, row), (told, row)
        else:
            assert has(documents[told], row), (told, row)


def ratios_of(models):
    document = yaml.safe_load((CONFIG / "paper.yaml").read_text(encoding="utf-8"))
    return document["studies"]["ratios"] | {"public_model": list(models)}


def has(runs, row):
    wanted = {key: None if pd.isna(row[key]) else row[key] for key in published.KEYS}
    return any(all(getattr(run, key) == value for key, value in wanted.items()) for run in runs)


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
        ("demo-v1", 0.746, NEEDS),  # another protocol: no number can be set beside the paper's
    ],
)
def test_a_published_number_needs_dataset_model_setting_and_protocol(tmp_path_factory, protocol, accuracy, told):
    data = published_runs(tmp_path_factory, protocol, accuracy)
    numbers = data[(data["kind"] == "published number") & (data["metric"] == "accuracy")]
    row = numbers[numbers["text"] == "DP-SAPF on cifar10, sd-v1-5, 30 %, ε = 10"]
    assert set(row["verdict"]) == {told} and len(row) == 3, "in three of the published tables"
    assert set(numbers[numbers["text"].str.contains("celeba")]["verdict"]) == {NEEDS}


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_claim_and_published_number_has_one_row(data):
    assert data[data["kind"] == "claim"].groupby("claim").size().to_dict() == {c.id: len(c.metrics) for c in CLAIMS}
    sizes = {table: 2 * len(pd.read_csv(published.REFERENCE / f"{table}.csv")) for table in published.TABLES}
    assert data[data["kind"] == "published number"].groupby("claim").size().to_dict() == sizes
    assert set(data["verdict"]) <= set(VERDICTS) and data["why"].str.endswith(".").all()
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
