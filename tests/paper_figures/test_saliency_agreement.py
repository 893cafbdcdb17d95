import numpy as np
import pandas as pd
import pytest

from dpsapf.experiment.columns import AGREEMENT_COLUMNS
from paper_figures import draw, saliency_agreement
from paper_figures.results import MissingStudy


@pytest.fixture
def compared(results, tmp_path):
    """The demo's tables with a comparison of two scores beside them."""
    rows = [
        ["mnist5k", "public-mini", name, sigma, 0.3, draw, 1 - 0.01 * sigma - 0.01 * draw, 0.9 - 0.005 * sigma]
        for name in ("energy", "share")
        for sigma in (1.0, 10.0, 50.0)
        for draw in range(3)
    ]
    path = results.layout.root / "tables" / "saliency_agreement.csv"
    pd.DataFrame(rows, columns=list(AGREEMENT_COLUMNS)).to_csv(path, index=False)
    yield results
    path.unlink()


def test_means_and_ranges_over_the_draws(compared):
    data = saliency_agreement.prepare(compared)
    assert len(data) == 6 and set(data["draws"]) == {3}
    row = data[(data["score"] == "share") & (data["sigma_s"] == 10)].iloc[0]
    assert row["rank_correlation"] == pytest.approx(0.89)
    assert (row["rank_correlation_least"], row["rank_correlation_greatest"]) == (pytest.approx(0.88), pytest.approx(0.90))
    assert row["overlap"] == pytest.approx(0.85)


def test_lines_are_the_means(compared):
    data = saliency_agreement.prepare(compared)
    figure = saliency_agreement.draw(data)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert {"energy", "share", "random order"} <= set(lines)
    np.testing.assert_allclose(lines["energy"].get_ydata(), data[data["score"] == "energy"]["rank_correlation"])
    assert list(lines["energy"].get_xdata()) == [1.0, 10.0, 50.0]


def test_it_is_drawn_only_where_scores_were_compared(compared, tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "ITEMS", [item for item in draw.ITEMS if item.name == "saliency_agreement"])
    assert draw.draw_all(compared.layout.root, tmp_path) == ["saliency_agreement"]


def test_without_a_comparison_it_says_what_writes_it(results):
    with pytest.raises(MissingStudy, match="dpsapf compare-scores"):
        saliency_agreement.prepare(results)
