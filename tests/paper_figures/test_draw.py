import logging
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from dpsapf.experiment.stages import DrawFigures
from dpsapf.support.errors import UserError
from paper_figures import draw
from paper_figures.__main__ import main
from paper_figures.draw import ITEMS, draw_all, draw_figures
from paper_figures.style import theme

TABLES = ("main_table", "all_metrics", "verdicts", "differences", "selection_table", "privacy_cost", "resources")
STABILITY = {"claims_by_rate", "stability_map", "stability_map_accuracy", "stability_edges", "selection_regret", "noise_rise"}
STABILITY |= {"tuned_and_shared", "tuned_differences"}
NOT_IN_THE_DEMO = {
    "variants",
    "transfer",
    "without_dp",
    "sigma_sensitivity",
    "saliency_agreement",
    "ranking_stability",
    *STABILITY,
}  # have test files of their own
FIGURES = tuple(item.name for item in ITEMS if item.name not in {*TABLES, *NOT_IN_THE_DEMO})


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_and_not_blank(demo, name):
    folder = demo / "figures"
    assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    pixels = matplotlib.image.imread(folder / f"{name}.png")[..., :3]
    assert min(pixels.shape[:2]) > 300
    # a page of white, or of one colour, has one value; axes alone without data fewer than ten
    assert len(np.unique(pixels @ [1, 256, 256**2])) > 50
    assert len(pd.read_csv(folder / f"{name}.csv")) > 0


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_written_three_times_with_equally_many_rows(demo, name):
    folder = demo / "figures"
    markdown = [line for line in (folder / f"{name}.md").read_text().splitlines() if line.startswith("|")]
    latex = (folder / f"{name}.tex").read_text().splitlines()
    assert len(markdown) - 2 == sum(line.endswith(r"\\") for line in latex) - 1 > 2
    assert len({line.replace(r"\|", "").count("|") for line in markdown}) == 1


def test_csvs_name_files_relative_to_the_results(demo):
    archives = pd.read_csv(demo / "figures" / "contact_sheet.csv")["archive"].drop_duplicates()
    assert archives.str.match("(cache|runs)/").all()
    assert all((demo / path).exists() for path in archives)


def test_the_main_table_says_what_is_bold(demo):
    for suffix in (".md", ".tex"):
        assert "Bold: the best method under differential privacy" in (demo / "figures" / f"main_table{suffix}").read_text()


def test_nothing_else_and_nothing_half_written_is_left(demo):
    kinds = dict.fromkeys(TABLES, (".csv", ".md", ".tex")) | dict.fromkeys(FIGURES, (".csv", ".pdf", ".png"))
    expected = {name + suffix for name, suffixes in kinds.items() for suffix in suffixes}
    assert {path.name for path in (demo / "figures").iterdir()} == expected


def test_redrawing_gives_the_same_bytes(demo, tmp_path, monkeypatch):
    names = ("main_table", "ratio_curves", "contact_sheet")  # one of each kind: text, lines, images
    monkeypatch.setattr(draw, "ITEMS", [item for item in ITEMS if item.name in names])
    assert draw_all(demo, tmp_path) == list(names)
    for path in tmp_path.iterdir():
        assert (demo / "figures" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("item", [item for item in ITEMS if item.name in FIGURES], ids=lambda item: item.name)
def test_no_text_is_smaller_than_8_points(results, item):
    with theme():
        figure = item.draw(item.prepare(results))
        assert isinstance(figure, Figure)
        figure.draw_without_rendering()
    texts = [text for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if text.get_text()]
    assert len(texts) > 5
    assert min(text.get_fontsize() for text in texts) >= 8


def test_missing_studies_are_skipped_with_a_reason(smallest, tmp_path, caplog):
    (tmp_path / "ratio_curves.png").write_bytes(b"of an earlier config")
    with caplog.at_level(logging.INFO, logger="dpsapf"):
        drawn = draw_all(smallest, tmp_path)
    skipped = {
        "ratio_curves",
        "epsilon_curves",
        "differences",
        "selection_map",
        "selection_table",
        "contact_sheet",
        *NOT_IN_THE_DEMO,
    }
    assert set(drawn) == {item.name for item in ITEMS} - skipped
    assert not [path for path in tmp_path.iterdir() if path.stem in skipped]
    for name in skipped:
        assert f"{name}: not drawn, no " in caplog.text


def test_results_without_tables_are_refused(tmp_path):
    with pytest.raises(UserError, match="run `dpsapf aggregate` or the workflow first"):
        draw_all(tmp_path, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_results_without_runs_are_refused(tmp_path):
    (tmp_path / "tables").mkdir()
    for name in ("runs", "summary", "selections"):
        (tmp_path / "tables" / f"{name}.csv").write_text("run_id,protocol\n")
    with pytest.raises(UserError, match="has no runs"):
        draw_all(tmp_path, tmp_path / "figures")


def test_both_entry_points_draw_the_same(smallest, tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "ITEMS", [item for item in ITEMS if item.name in ("main_table", "paper_reference_ratio")])
    draw_figures(DrawFigures(results=smallest, figures=tmp_path / "a"))
    assert main(["--results", str(smallest), "--out", str(tmp_path / "b")]) == 0
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()


def test_command_line_tells_an_error_in_one_line(tmp_path, capsys):
    assert main(["--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_figures_do_not_import_training_code():
    code = (
        "import sys, paper_figures.draw; print([m for m in sys.modules if m.split('.')[0] in ('torch', 'diffusers', 'opacus')])"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.strip() == "[]"
