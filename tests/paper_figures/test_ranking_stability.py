import pandas as pd
import pytest

from dpsapf.experiment.columns import RANKING_COLUMNS
from paper_figures import draw, ranking_stability
from paper_figures.results import MissingStudy
from paper_figures.style import theme


@pytest.fixture
def compared(results):
    """The demo's tables with a comparison of two scores beside them."""
    values = {"clipping_norm": (0.1, 1.0, 10.0), "images": (0.1, 1.0), "timesteps": (1.0,), "release": (1.0,)}
    rows = [
        ["mnist5k", "public-mini", name, varied, value, 0.3, draw, 0.9 - 0.01 * draw, 0.8 - 0.1 * draw * (varied != "timesteps")]
        for name in ("energy", "signal")
        for varied in values
        for value in values[varied]
        for draw in range(3)
        if (name, varied) != ("signal", "clipping_norm")
    ]
    path = results.layout.root / "tables" / "ranking_stability--mnist5k--public-mini.csv"
    pd.DataFrame(rows, columns=list(RANKING_COLUMNS)).to_csv(path, index=False)
    yield results
    path.unlink()


def test_means_and_ranges_over_draws(compared):
    data = ranking_stability.prepare(compared)
    assert len(data) == 7 + 4 and set(data["draws"]) == {3}
    moved = data[data["varied"] != "timesteps"]
    assert moved["overlap"].to_numpy() == pytest.approx(0.7)
    assert moved["overlap_least"].to_numpy() == pytest.approx(0.6) and moved["overlap_greatest"].to_numpy() == pytest.approx(0.8)


def test_three_panels_with_a_line_per_score(compared, tmp_path, monkeypatch):
    with theme():
        figure = ranking_stability.draw(ranking_stability.prepare(compared))
        figure.draw_without_rendering()
    clipping, images, pairs = figure.axes
    assert {line.get_label() for line in clipping.lines} == {"energy", "random order"}
    assert {line.get_label() for line in images.lines} == {"energy", "signal", "random order"}
    assert len(pairs.containers) == 4 and images.lines[0].get_ydata() == pytest.approx([0.7, 0.7])
    texts = [text for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= 8
    monkeypatch.setattr(draw, "ITEMS", [item for item in draw.ITEMS if item.name == "ranking_stability"])
    assert draw.draw_all(compared.layout.root, tmp_path) == ["ranking_stability"]


def test_without_a_comparison_it_says_what_writes_it(results):
    with pytest.raises(MissingStudy, match="dpsapf compare-rankings"):
        ranking_stability.prepare(results)
