import base64
import hashlib
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dpsapf.cli.main import main
from dpsapf.experiment.records import Ledger
from dpsapf.experiment.registries import load_yaml
from dpsapf.experiment.runs import Study, expand
from dpsapf.experiment.settings import Config
from dpsapf.experiment.stages import WriteReport
from dpsapf.support.checked import parse, replace
from dpsapf.support.records import as_json, read_record, write_record
from paper_figures.captions import Captions
from paper_figures.draw import ITEMS
from paper_figures.grids import Entry, drawn_grid, ledger_grid, run_grid, summary_grid
from paper_figures.report import AXIS_OF, LARGEST_SHEET, render, write_report
from paper_figures.results import load_results
from paper_figures.tables import Cell, Table, markdown
from tests.fake_results import write_results
from tests.paper_figures.page_parser import Page

ROOT = Path(__file__).parents[2]
CAPTIONS = ROOT / "workflow" / "report" / "figure.rst"
STUDIES = {  # as `demo_runs` has them
    "main": {"dataset": ["mnist5k", "oct-mini"], "method": ["dp-sapf", "dp-lora", "no-finetune"], "seed": [0, 1]},
    "layers": {"dataset": ["mnist5k"], "method": ["dp-sapf"], "level": ["layer"], "seed": [0, 1]},
    "ratios": {"dataset": ["mnist5k"], "method": ["dp-sapf"], "ratio": [0.1, 0.3, 0.5, 0.9], "seed": [0, 1]},
    "budgets": {"dataset": ["mnist5k"], "method": ["dp-sapf", "dp-lora"], "epsilon": [1], "seed": [0, 1]},
}
SECRETS = {
    "salt": "salt-of-the-meter",
    "batches": (987651, 987652, 987653),
    "largest_contribution": 0.876543219,
    "squares": (76543.219,),
}
LOSS = 0.3216549871
VERDICTS = (("ahead of DP-LoRA", "not reproduced"), ("ahead of random", "cannot tell at this power"), ("stable", "reproduced"))


def config_of(studies, **changes):
    data = load_yaml(ROOT / "config" / "config.yaml") | {"name": "shown", "studies": studies} | changes
    return parse(Config, json.loads(json.dumps(data)), "config")


@pytest.fixture(scope="module")
def folder(demo, tmp_path_factory):
    """The drawn demo with sheets of samples, private records that would be recognised, and verdicts."""
    root = tmp_path_factory.mktemp("page") / "demo"
    shutil.copytree(demo, root)
    for number, run in enumerate(sorted((root / "runs").iterdir())):
        size = (90, 60) if number else (3 * LARGEST_SHEET, 40)
        Image.fromarray(np.full((size[1], size[0], 3), number, np.uint8)).save(run / "contact_sheet.png")
        if (run / "private.json").exists():
            private = json.loads((run / "private.json").read_text()) | SECRETS
            (run / "private.json").write_text(json.dumps(private))
        if (run / "private_log.csv").exists():
            pd.read_csv(run / "private_log.csv").assign(loss=LOSS).to_csv(run / "private_log.csv")
    rows = tuple(
        (Cell(claim), Cell("-0.3 [-1, 0]"), Cell("+1.2"), Cell(verdict, bold=True), Cell("so")) for claim, verdict in VERDICTS
    )
    table = Table(("claim", "ours", "the paper", "verdict", "why"), rows, names=5)
    (root / "figures" / "verdicts.md").write_text(markdown(table))
    return root


@pytest.fixture(scope="module")
def text(folder):
    return render(folder, config_of(STUDIES), CAPTIONS)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def sections(text):
    """The text of each section, by its heading."""
    parts = re.split(r"<section [^>]*>", text.split("</main>")[0])[1:]
    return {Page(part).texts("h2")[0]: part for part in parts}


def test_every_figure_and_table_stands_once_with_its_caption(page, text, folder):
    captions = Captions(CAPTIONS, as_json(config_of(STUDIES)))
    drawn = {path.stem for path in (folder / "figures").iterdir()}
    assert len(drawn) > 8 and drawn <= {item.name for item in ITEMS}
    articles = {attributes["id"]: told for _, attributes, told in page.all("article")}
    assert set(articles) == drawn and text.count("<article") == len(drawn)
    for name in drawn:
        assert captions.of(name).html in text
        assert f"Drawn from {name}.csv." in articles[name]
        png = folder / "figures" / f"{name}.png"
        assert not png.exists() or text.count(base64.b64encode(png.read_bytes()).decode()) == 1


def test_drawn_tables_keep_their_cells_and_what_is_bold(folder, page):
    written = (folder / "figures" / "main_table.md").read_text().splitlines()
    article = next(told for _, attributes, told in page.all("article") if attributes["id"] == "main_table")
    cells = [
        cell.replace("**", "").replace("\\", "").strip() for line in written[2:] if "|" in line for cell in line.split("|")[1:-1]
    ]
    assert len(cells) > 20 and all(cell in article for cell in cells)
    bold = sum(line.count("**") for line in written) // 2
    best = [attributes for _, attributes, _ in page.all("td") if "best" in (attributes.get("class") or "")]
    coloured = ("main_table", "verdicts")
    others = sum(path.read_text().count("**") // 2 for path in (folder / "figures").glob("*.md") if path.stem not in coloured)
    assert len(best) == bold + others > 0


def test_a_browser_has_nothing_to_fetch(page, text):
    assert page.fetched() == []
    for twin in (
        '<img src="https://example.org/x.png">',
        '<link rel="stylesheet" href="//example.org/x.css">',
        '<script src="x.js"></script>',
        "<style>p { background: url(http://example.org/x.png) }</style>",
        '<style>@import "https://example.org/x.css";</style>',
        '<p style="background: url(x.png)">',
    ):
        assert len(Page(text + twin).fetched()) == 1, twin
    policy = next(attributes["content"] for _, attributes, _ in page.all("meta") if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; img-src data:;") and "http" not in policy and "unsafe-eval" not in policy


def test_only_the_reports_own_script_may_run(page, text):
    digest = re.search(r"script-src 'sha256-([^']+)' blob:;", text)[1]
    (script,) = re.findall(r'<script type="module">(.*?)</script>', text, re.S)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == digest
    assert [attributes["type"] for _, attributes, _ in page.all("script")] == ["application/gzip", "module"]
    assert not [name for _, attributes, _ in page.elements for name in attributes if name.startswith("on")]


def test_nothing_private_is_shown(text, folder):
    for file in (folder / "runs").rglob("private.json"):
        assert SECRETS["salt"] in file.read_text(), "the secrets are where the report could have read them"
    shown = re.sub(r"base64,[^\"]*", "", re.sub(r'<script type="application/gzip".*?</script>', "", text, flags=re.S))
    assert len(shown) < len(text) / 2
    secrets = [SECRETS["salt"], *map(str, SECRETS["batches"]), "987,65", "0.8765", "76543", "76,543", "0.3216", "0.322"]
    assert [secret for secret in secrets if secret in shown] == []
    assert not re.search(r"private\.json|private_log|used.batch|\bloss(es)?\b", shown)
    assert "/tmp/" not in shown and str(folder) not in shown


def test_runs_stand_in_the_studies_they_belong_to(text, folder):
    config, runs = config_of(STUDIES), pd.read_csv(folder / "tables" / "runs.csv")
    shown = sections(text)
    order = list(shown)
    assert order[:3] == ["Overview", "Verdicts on the paper's claims", "All studies together"]
    assert order[3:] == [
        "Study: main",
        "Study: layers",
        "Study: ratios",
        "Study: budgets",
        "Runs: of no study",
        "Privacy ledger",
        "Provenance",
    ]
    for name, study in config.studies.items():
        expected = {run.id for run in expand({name: study})}
        assert {run for run in runs["run_id"] if f">{run}<" in shown[f"Study: {name}"]} == expected
    of_none = {run for run in runs["run_id"] if f">{run}<" in shown["Runs: of no study"]}
    assert of_none == {run for run in runs["run_id"] if "dp-full" in run}
    assert all(f">{run}<" in shown["Privacy ledger"] for run in runs["run_id"])
    assert "ratio_curves" in shown["Study: ratios"] and 'id="epsilon_curves"' in shown["Study: budgets"]
    assert 'id="main_table"' in shown["All studies together"]


def test_a_run_that_the_config_has_and_the_results_lack_is_named(folder):
    more = STUDIES | {"more": {"dataset": ["digits"], "method": ["dp-lora"]}}
    overview = Page(render(folder, config_of(more), CAPTIONS)).texts("p")
    assert "Missing, of the config's 25 runs: digits--public-mini--dp-lora--eps10--seed0." in overview


def test_of_many_missing_runs_some_are_named_and_the_others_counted(folder):
    more = STUDIES | {"more": {"dataset": ["digits"], "method": ["dp-lora"], "seed": list(range(30))}}
    (told,) = [text for text in Page(render(folder, config_of(more), CAPTIONS)).texts("p") if text.startswith("Missing")]
    assert told.count("digits--") == 20 and told.endswith(" and 10 more.") and "54 runs" in told


def test_a_figure_about_an_axis_names_an_axis_of_a_study():
    assert AXIS_OF.keys() <= {item.name for item in ITEMS}
    assert set(AXIS_OF.values()) <= set(Study.model_fields)


def test_a_run_at_the_configs_own_learning_rate_belongs_to_the_study_that_says_that_rate(folder):
    study = {"dataset": ["oct-mini"], "method": ["dp-lora"], "learning_rate": [0.02], "seed": [0, 1]}
    shown = sections(render(folder, config_of({"rates": study}), CAPTIONS))
    assert shown["Study: rates"].count(">oct-mini--public-mini--dp-lora--eps10--seed0<") == 1


def test_without_a_config_a_section_is_a_dataset(folder):
    shown = sections(render(folder, None, CAPTIONS))
    assert [name for name in shown if name.startswith(("Study", "Runs"))] == ["Runs: mnist5k", "Runs: oct-mini"]
    assert "trained on  synthetic" not in " ".join(Page(" ".join(shown.values())).text.split()).replace(
        "trained on synthetic", ""
    )


def test_the_ledger_says_what_each_run_spent_and_what_may_not_be_released(folder, page, tmp_path):
    results = load_results(folder)
    ledgers = {path.parent.name: read_record(path, Ledger) for path in (folder / "runs").rglob("ledger.json")}
    some = next(run for run, ledger in ledgers.items() if ledger.not_for_release)
    ledgers[some] = replace(ledgers[some], unit="user")
    grid = ledger_grid(results.runs, ledgers, results, "x")
    assert len(grid.rows) == len(results.runs) and {len(row) for row in grid.rows} == {len(grid.header)}
    for row in grid.rows:
        told, ledger = dict(zip(grid.header, row, strict=True)), ledgers[row[-1].text]
        assert told["unit"].text == ledger.unit
        if not ledger.releases:
            assert told["spent\xa0ε, PLD"] == Entry("—", "") and told["may be released as private"].look == ""
            continue
        for accountant, spent in ledger.spent_epsilon.items():
            assert float(told[f"spent\xa0ε, {accountant.upper()}"].order) == pytest.approx(spent, rel=1e-9)
        assert float(told["target ε"].order) == ledger.target_epsilon and float(told["δ"].order) == ledger.delta
        assert told["may be released as private"] == Entry(f"no: {ledger.not_for_release}", look="refused")
        for release in ledger.releases:
            assert f"{release.name} {'once' if release.steps == 1 else f'{release.steps} times'}" in told["releases"].text
    held = (results.runs["not_for_release"].notna()).sum()
    assert sum("refused" in (attributes.get("class") or "") for _, attributes, _ in page.all("td")) == held > 5
    assert f"Not for release as private: {held} of these {held}; the ledger says why." in page.texts("p")


def test_a_run_that_may_be_released_is_told_so(folder):
    results = load_results(folder)
    runs = results.runs.assign(not_for_release=None)
    spent = runs["delta"].notna()
    place = ledger_grid(runs, {}, results, "x").header.index("may be released as private")
    told = [row[place].text for row in ledger_grid(runs, {}, results, "x").rows]
    assert told == ["yes" if private else "nothing private was released" for private in spent]
    older = ledger_grid(runs.drop(columns="not_for_release"), {}, results, "x")
    assert {row[place].text for row in older.rows} == {"not told", "nothing private was released"}


def test_tables_sort_by_the_full_value_and_show_a_rounded_one(folder):
    results = load_results(folder)
    grid = run_grid(results.runs, results, "x")
    for name in ("accuracy", "FID", "trainable parameters"):
        place, column = grid.header.index(name), results.runs[name.lower().replace(" ", "_")]
        assert [float(row[place].order) for row in grid.rows] == pytest.approx(list(column), rel=1e-9)
        assert grid.numbers[place] and not grid.numbers[0]
    summary = summary_grid(results.summary, results, "x")
    place = summary.header.index("accuracy")
    assert [float(row[place].order) for row in summary.rows] == pytest.approx(list(results.summary["accuracy_mean"]), rel=1e-9)
    assert all("±" in row[place].text for row in summary.rows)
    assert summary.header.index("dataset") and "public model" not in summary.header, "what all have alike is no column"


@pytest.mark.parametrize(
    ("shown", "order"),
    [
        ("71.0 ± 12.3", "71.0"),
        ("5,504–6,144", "5504"),
        ("-0.33 ± 0.16", "-0.33"),
        ("> 0.2", "0.2"),
        ("3.5e-05", "3.5e-05"),
        ("—", ""),
    ],
)
def test_a_drawn_cell_sorts_by_the_number_it_begins_with(shown, order):
    table = Table(("name", "number"), ((Cell("a | b * <i>"), Cell(shown, bold=True)),), note="Bold: *so*.")
    grid = drawn_grid(markdown(table), "caption")
    assert grid.rows == ((Entry("a | b * <i>"), Entry(shown, order, "best")),)
    assert grid.header == ("name", "number") and grid.numbers == (False, True) and grid.note == "Bold: *so*."


def test_sheets_of_samples_are_there_once_and_large_ones_shrunk(text, page, folder):
    runs = pd.read_csv(folder / "tables" / "runs.csv")
    first = runs[runs["seed"] == 0]
    sheets = [attributes for _, attributes, _ in page.all("img") if attributes["alt"].startswith("Synthetic images")]
    assert len(sheets) == len(first) > 8
    kinds = [re.match(r"data:image/(\w+);", attributes["src"])[1] for attributes in sheets]
    assert sorted(set(kinds)) == ["png", "webp"] and kinds.count("webp") == 1
    for run in first["run_id"]:
        content = (folder / "runs" / run / "contact_sheet.png").read_bytes()
        large = max(Image.open(folder / "runs" / run / "contact_sheet.png").size) > LARGEST_SHEET
        assert text.count(base64.b64encode(content).decode()) == (0 if large else 1)
    assert len({attributes["alt"] for attributes in sheets}) == len(sheets), "each says what it shows"


def test_verdicts_are_counted_and_coloured(page):
    looks = {told: attributes["class"] for _, attributes, told in page.all("td") if "badge" in (attributes.get("class") or "")}
    assert looks == {"not reproduced": "badge bad", "cannot tell at this power": "badge unsure", "reproduced": "badge good"}
    assert "+1.2" in page.texts("td"), "as it was written"


def test_verdicts_stand_once_and_first(page):
    titles = page.texts("h2", "h3")
    assert titles.count("Verdicts") == 1 and titles.index("Verdicts") < titles.index("All studies together")


def test_the_page_can_be_read_without_eyes_or_mouse(page):
    levels = [int(tag[1]) for tag, *_ in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    images = [attributes for _, attributes, _ in page.all("img") if attributes.get("id") != "zoomed"]
    assert len(images) > 10 and all(len(attributes["alt"]) > 20 and attributes["decoding"] == "async" for attributes in images)
    assert len(page.all("table")) == len([told for told in page.texts("caption") if told]) > 8
    assert {attributes["scope"] for _, attributes, _ in page.all("th")} == {"col", "row"}
    targets = {attributes["href"] for _, attributes, _ in page.all("a")}
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids) and targets <= {f"#{name}" for name in ids} and len(targets) > 8
    assert next(attributes["lang"] for _, attributes, _ in page.all("html")) == "en"


def test_equal_results_give_equal_bytes(folder, text):
    assert render(folder, config_of(STUDIES), CAPTIONS) == text


def test_what_people_wrote_is_text_and_never_markup(tmp_path):
    evil = "<img src=x onerror=alert(1)> & ``co``"
    runs = expand({"a": Study(dataset=(evil,), method=("dp-lora", "no-finetune"))})
    root = write_results(tmp_path / "r", runs, images=False)
    folder = root / "figures"
    folder.mkdir()
    (folder / "main_table.md").write_text(markdown(Table((evil,), ((Cell(evil),),))))
    (folder / "verdicts.md").write_text(markdown(Table((evil,), ((Cell(evil, bold=True),),), names=1)))
    tables = pd.read_csv(root / "tables" / "runs.csv").assign(protocol=evil, not_for_release=f"</script>{evil}")
    tables.to_csv(root / "tables" / "runs.csv", index=False)
    studies = {evil: {"dataset": [evil], "method": ["dp-lora", "no-finetune"]}}
    for config in (config_of(studies, evaluation={"protocol": evil}), None):
        page = Page(render(root, config, CAPTIONS))
        assert [attributes for _, attributes, _ in page.all("img")] == [{"id": "zoomed", "alt": ""}]
        assert page.fetched() == [] and not [
            name for _, attributes, _ in page.elements for name in attributes if name == "onerror"
        ]
        assert f"{'Study' if config else 'Runs'}: {evil}" in page.texts("h2")
        assert page.texts("th", "td").count(evil) >= 4, "the drawn tables' heads and cells"


@pytest.mark.parametrize("config", ["config/config.yaml", None])
def test_kept_results_without_records_have_a_page_that_says_what_it_lacks(config, tmp_path):
    options = WriteReport(
        results=ROOT / "results" / "reference" / "demo",
        configfile=config and ROOT / config,
        captions=CAPTIONS,
        report=tmp_path / "page.html",
    )
    write_report(options)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    notes = page.texts("p")
    assert "24 of 24 runs have no ledger.json here: their unit and releases are not told." in notes
    assert "The records of the runs are not in this results folder: what made them is not told." in notes
    assert "No sheets of samples: the results have no runs/RUN/contact_sheet.png of these runs." in notes
    drawn = {path.stem for suffix in ("png", "md") for path in (options.results / "figures").glob(f"*.{suffix}")}
    assert len(page.all("article")) == len(drawn) > 10 and page.fetched() == []
    assert [told for told in page.texts("h2") if told.startswith("Study")] == (
        [f"Study: {name}" for name in ("main", "layers", "full", "ratios", "unstable", "epsilons")] if config else []
    )


def test_results_without_figures_have_a_page_that_says_so(folder, tmp_path):
    shutil.copytree(folder / "tables", tmp_path / "tables")
    page = Page(render(tmp_path, None, CAPTIONS))
    assert any(told.startswith("No figures and drawn tables") for told in page.texts("p"))
    assert page.all("article") == [] and len(page.all("table")) > 3


def test_a_warning_says_that_real_images_are_shown_where_they_are(folder, page, tmp_path):
    assert "real training images" in page.texts("p")[0]
    shutil.copytree(folder / "tables", tmp_path / "tables")
    assert "real training images" not in Page(render(tmp_path, None, CAPTIONS)).texts("p")[0]


def test_provenance_counts_what_made_the_ledgers(folder, tmp_path):
    root = tmp_path / "r"
    shutil.copytree(folder, root)
    for number, path in enumerate(sorted((root / "runs").rglob("ledger.json"))):
        made = {"python": "3.11.7", "platform": "Linux", "versions": {"torch": "2.9"}, "git_commit": "abc" if number else "def"}
        write_record(path, replace(read_record(path, Ledger), provenance=made))
    shown = Page(sections(render(root, None, CAPTIONS))["Provenance"])
    count = len(list((root / "runs").iterdir()))
    terms = list(zip(shown.texts("dt"), shown.texts("dd"), strict=True))
    assert terms[:4] == [("ledgers", str(count - 1)), ("commit", "abc"), ("Python", "3.11.7 on Linux"), ("versions", "torch 2.9")]
    assert terms[4:6] == [("ledgers", "1"), ("commit", "def")]


def test_results_without_tables_are_one_line(tmp_path, capsys):
    words = ["write-report", "--results", str(tmp_path), "--captions", str(CAPTIONS), "--report", str(tmp_path / "r.html")]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "runs.csv" in line and "does not exist; run `dpsapf aggregate`" in line
    assert list(tmp_path.iterdir()) == []
