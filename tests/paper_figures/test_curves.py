import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from paper_figures.curves import curve_figure, log_axis
from paper_figures.style import Look, theme

LOOKS = {"curve": Look("curve", "tab:blue"), "bound": Look("bound", "black", line=":")}
DATA = pd.DataFrame(
    {
        "panel": "p",
        "series": ["curve", "curve", "bound"],
        "label": ["curve", "curve", "bound"],
        "x": [20.0, 10.0, np.nan],
        "reference": [False, False, True],
        "accuracy_pct": [60.0, 50.0, 90.0],
        "accuracy_pct_interval95": [2.0, np.nan, np.nan],
        "fid": [5.0, 6.0, np.nan],
        "fid_interval95": np.nan,
    }
)


@pytest.fixture
def axes():
    return curve_figure(DATA, LOOKS, "x (%)", "test").axes


def test_curve_is_drawn_in_the_order_of_x(axes):
    container = axes[0].containers[0]
    assert list(container[0].get_xdata()) == [10, 20]
    assert list(container[0].get_ydata()) == [50, 60]


def test_error_bar_has_the_half_width_and_one_seed_has_none(axes):
    bars = axes[0].containers[0][2][0].get_segments()
    drawn = [segment[:, 1].tolist() for segment in bars if len(segment) and np.isfinite(segment).all()]
    assert drawn == [[58.0, 62.0]]


def test_reference_without_a_value_is_not_drawn(axes):
    levels = [[line.get_ydata()[0] for line in ax.lines if list(line.get_xdata()) == [0, 1]] for ax in axes]
    assert levels == [[90.0], []]


def test_interval_of_a_reference_is_a_band_and_one_seed_has_none(axes):
    assert not any(isinstance(patch, Rectangle) for ax in axes for patch in ax.patches)
    several = DATA.assign(accuracy_pct_interval95=[np.nan, np.nan, 3.0])
    (band,) = curve_figure(several, LOOKS, "x (%)", "test").axes[0].patches
    assert (band.get_y(), band.get_height()) == (87.0, 6.0)


def test_legend_shows_lines_without_error_bars():
    (legend,) = curve_figure(DATA, LOOKS, "x (%)", "test").legends
    assert len(legend.get_lines()) == 2
    assert not legend.findobj(LineCollection)


def test_one_row_of_two_panels_per_panel_name():
    figure = curve_figure(pd.concat([DATA, DATA.assign(panel="q")]), LOOKS, "x (%)", "test")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["p", "", "q", ""]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["curve", "bound"]


def test_unknown_series_is_an_error():
    with pytest.raises(KeyError, match="curve"):
        curve_figure(DATA, {"bound": LOOKS["bound"]}, "x", "test")


def test_log_axis_has_a_tick_at_every_value():
    figure = curve_figure(DATA, LOOKS, "ε", "test")
    log_axis(figure, pd.Series([0.2, 10.0, np.nan, 10.0]))
    assert list(figure.axes[0].get_xticks()) == [0.2, 10.0]
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == ["0.2", "10"]


def test_theme_does_not_outlast_its_context():
    before = dict(mpl.rcParams)
    with theme():
        assert mpl.rcParams["pdf.fonttype"] == 42
    assert dict(mpl.rcParams) == before
