import dataclasses
import shutil

import pandas as pd
import pytest
import yaml

from dpsapf.aggregation.aggregate import aggregate
from dpsapf.experiment.layout import Layout
from dpsapf.experiment.registries import load_yaml
from dpsapf.experiment.runs import Study, expand
from dpsapf.support.checked import replace
from dpsapf.support.errors import UserError
from paper_figures import epsilon_curves, main_table, privacy_cost, resources, variants
from paper_figures.draw import draw_all
from paper_figures.grids import ledger_grid
from paper_figures.report import render
from paper_figures.results import load_results, with_labels
from paper_figures.tables import markdown
from tests.fake_results import ROOT, aggregate_options
from tests.sealed_results import sealed_results, theirs

OURS = Study(dataset=("mnist5k",), method=("dp-sapf", "dp-lora", "no-finetune"), seed=(0, 1))
CLAIM = "claimed, not audited by this suite"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs of this suite at two epsilons, and another group's at the same, of two seeds; a second method claims nothing."""
    ours = Study(dataset=("mnist5k",), method=("dp-sapf", "dp-lora", "no-finetune"), epsilon=(1.0, 10.0), seed=(0, 1))
    taken = [theirs(epsilon, seed) for epsilon in (1.0, 10.0) for seed in (0, 1)]
    root = sealed_results(tmp_path_factory.mktemp("external") / "r", expand({"s": ours}), [*taken, theirs(None, name="open")])
    return load_results(root)


def test_another_groups_method_stands_in_the_main_table_with_its_claim(results):
    table = markdown(main_table.draw(main_table.prepare(results)))
    rows = [line for line in table.splitlines() if "Their method (2025)" in line]
    assert len(rows) == 3 and sum("Their method (2025), ε claimed, not audited | 10 | 2 | — |" in row for row in rows) == 1
    assert sum("Their method (2025), made elsewhere, not audited | ∞ | 1 |" in row for row in rows) == 1
    assert f"ε of other groups' methods is {CLAIM}." in table and "Methods of other groups are not ranked." in table


def test_without_other_groups_nothing_is_said_of_them(results):
    runs, summary = (table[table["method"] != "external"] for table in (results.runs, results.summary))
    alone = type(results)(results.layout, runs, summary, results.selections)
    table = markdown(main_table.draw(main_table.prepare(alone)))
    assert "claimed" not in table and "other groups" not in table and "not audited" not in table


@pytest.mark.parametrize("tables", sorted(ROOT.glob("results/reference/*/tables")), ids=lambda path: path.parent.name)
def test_tables_of_before_there_were_other_groups_say_nothing_of_them(tables):
    kept = load_results(tables.parent, selections_needed=False)
    assert (kept.elsewhere, kept.claim_note) == ({}, "")


def test_what_was_not_audited_is_never_the_best_under_differential_privacy(results):
    better = results.summary.assign(
        accuracy_mean=results.summary["accuracy_mean"].where(results.summary["method"] != "external", 0.999),
        fid_mean=results.summary["fid_mean"].where(results.summary["method"] != "external", 0.001),
    )
    data = main_table.prepare(type(results)(results.layout, results.runs, better, results.selections))
    best = data[data["best_accuracy_pct"] == True]  # noqa: E712 - empty for floor and ceiling
    assert set(best["method"]) <= {"dp-sapf", "dp-lora"} and len(best) == 2
    assert set(data.loc[data["best_fid"] == True, "method"]) <= {"dp-sapf", "dp-lora"}  # noqa: E712


def test_every_figure_says_that_epsilon_is_claimed(results):
    curves = epsilon_curves.prepare(results)
    names = set(curves.loc[curves["series"].str.startswith("external"), "label"])
    assert names == {"Their method (2025), ε claimed, not audited"}
    assert curves[curves["series"] == "external-1"]["x"].tolist() == [1.0, 10.0]
    costs = resources.prepare(results)
    assert any("not audited" in label for label in costs["label"])


def test_the_table_of_what_privacy_costs_leaves_out_what_is_not_known(results):
    assert "external" not in set(privacy_cost.prepare(results)["method"])


def test_tables_say_it_in_a_column(results):
    for table in (results.runs, results.summary):
        elsewhere = table["method"] == "external"
        assert (table.loc[elsewhere, "claim"] == CLAIM).all() and table.loc[~elsewhere, "claim"].isna().all()
        assert elsewhere.any()
    spent = [name for name in results.runs if name.startswith("spent_epsilon")]
    assert spent and results.runs.loc[results.runs["method"] == "external", spent].isna().all(axis=None)
    assert results.runs.loc[results.runs["method"] == "external", "not_for_release"].str.contains(CLAIM).all()


def test_seeds_of_another_groups_method_are_one_setting(results):
    rows = results.summary[results.summary["external"] == "theirs"]
    assert rows["n"].tolist() == [2, 2] and rows["accuracy_sd"].notna().all()


def test_methods_of_several_groups_have_looks_of_their_own(results):
    labelled = with_labels(results.summary, results)
    assert set(labelled.loc[labelled["method"] == "external", "series"]) == {"external-1", "external-2"}


def test_more_methods_than_looks_are_refused(results):
    many = pd.concat([results.runs.tail(1).assign(external=f"m{number}") for number in range(7)])
    crowded = type(results)(results.layout, many, results.summary, results.selections)
    with pytest.raises(UserError, match="external = 7: figures tell 6 methods of other groups apart"):
        crowded.elsewhere  # noqa: B018


def test_everything_is_drawn(results, tmp_path):
    drawn = draw_all(results.layout.root, tmp_path / "figures")
    assert {"main_table", "epsilon_curves", "resources", "privacy_cost", "contact_sheet"} <= set(drawn)


def test_the_page_says_of_another_groups_method_that_nothing_was_audited(results, tmp_path):
    root = shutil.copytree(results.layout.root, tmp_path / "r", ignore=shutil.ignore_patterns("ledger.json"))
    results = load_results(root)
    given = results.runs["method"] == "external"
    results = replace_runs(results, results.runs.assign(delta=results.runs["delta"].where(~given, 1e-5)))
    rows = [row for row in ledger_grid(results.runs, {}, results, "x").rows if "not audited" in row[0].text]
    assert len(rows) == given.sum() > 0
    assert all(f"made elsewhere: its ε is {CLAIM}" in [entry.text for entry in row] for row in rows)
    page = render(results.layout.root, None, ROOT / "workflow/report/figure.rst")
    ours = (results.runs["delta"].notna() & ~given).sum()
    told = f"{ours} released something of private images, and {given.sum()} made elsewhere, whose ε is {CLAIM}"
    assert told in page and f"Not for release as private: {ours} of these {ours};" in page


def replace_runs(results, runs):
    """The same results with other runs, in tables and on disk."""
    runs.to_csv(results.layout.table("runs.csv"), index=False)
    return dataclasses.replace(results, runs=runs)


def test_what_another_group_did_not_give_is_missing_under_its_label(tmp_path):
    """One method has one of two seeds, another one nothing."""
    root = sealed_results(tmp_path / "r", expand({"s": OURS}), [theirs()])
    images = {"dataset": "mnist5k", "images": "x.zip", "epsilon": 10}
    labels = {"theirs": "Their method (2025)", "gone": "Lost (2024)"}
    data = load_yaml("config/config.yaml") | {"compare_scores": [], "measure_fragility": []}
    data["studies"] = {"s": {axis: list(getattr(OURS, axis)) for axis in OURS.model_fields_set}}
    data["external"] = {name: {"label": label, "runs": [images, images | {"seed": 1}]} for name, label in labels.items()}
    data |= {"evaluation": {"protocol": "test-v1"}, "protocols_file": str(tmp_path / "protocols.yaml")}
    entry = next(iter(load_yaml("config/protocols.yaml").values()))
    (tmp_path / "protocols.yaml").write_text(yaml.safe_dump({"test-v1": entry}))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    runs = [*expand({"s": OURS}), theirs()]
    aggregate(replace(aggregate_options(Layout(root), runs), configfile=tmp_path / "config.yaml"))
    table = markdown(main_table.draw(main_table.prepare(load_results(root))))
    assert "| Lost (2024), ε claimed, not audited | 10 | 0 | — | missing | missing |" in table
    assert "| Their method (2025), ε claimed, not audited | 10 | 1 | — |" in table and "Missing: 3 of" in table
    told = pd.read_csv(root / "tables" / "runs.csv").query("status == 'missing'")
    assert set(told["claim"]) == {CLAIM} and sorted(set(told["label"])) == sorted(labels.values())
    assert {"main_table", "all_metrics", "differences"} <= set(draw_all(root, tmp_path / "figures"))


def test_variants_name_another_group_by_its_label(tmp_path):
    ours = Study(dataset=("mnist5k",), method=("dp-sapf", "random", "noisy", "no-lora"))
    root = sealed_results(tmp_path / "r", expand({"s": ours}), [theirs()])
    labels = variants.prepare(load_results(root))["label"].tolist()
    assert "Their method (2025), ε claimed, not audited" in labels and not any("made elsewhere" in label for label in labels)


def test_a_record_whose_claim_was_taken_out_is_not_aggregated(tmp_path):
    root = sealed_results(tmp_path / "r", [], [theirs()])
    path = next(root.glob("runs/*/metrics.json"))
    path.write_text(path.read_text().replace(f'"{CLAIM}"', "null"))
    with pytest.raises(UserError, match="made elsewhere, and no others"):
        aggregate(aggregate_options(Layout(root), [theirs()]))
