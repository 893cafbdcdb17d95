import math

import pandas as pd
import pytest

from paper_figures.main_table import span
from paper_figures.tables import Cell, Table, amount, decimals, latex, markdown, plain

NASTY = "a_b & 30 % | *c* {d} #1 $2 ~3 ^4 \\ <i>"
TABLE = Table(("name", "ε"), ((Cell(NASTY), Cell("1.0 ± 0.1", bold=True)), (Cell("—"), Cell("2"))))


def test_markdown_escapes_what_would_change_the_table():
    lines = markdown(TABLE).splitlines()
    assert lines[0] == "| name | ε |"
    assert lines[1] == "| :-- | --: |"
    assert lines[2] == r"| a\_b & 30 % \| \*c\* {d} #1 $2 ~3 ^4 \\ \<i> | **1.0 ± 0.1** |"


def test_latex_escapes_specials_and_marks_the_best():
    lines = latex(TABLE).splitlines()
    assert lines[0] == r"\begin{tabular}{lr}"
    assert lines[2] == r"name & $\varepsilon$ \\"
    body = r"a\_b \& 30 \% | *c* \{d\} \#1 \$2 \textasciitilde{}3 \textasciicircum{}4 \textbackslash{} <i>"
    assert lines[4] == body + r" & \textbf{1.0 $\pm$ 0.1} \\"
    assert lines[5] == r"--- & 2 \\"
    assert lines[-1] == r"\end{tabular}"


@pytest.mark.parametrize(
    ("value", "places", "interval", "text"),
    [
        (1234567.0, 0, math.nan, "1,234,567"),
        (68.25, 1, 1.04, "68.2 ± 1.0"),
        (68.25, 2, math.nan, "68.25"),
        (math.nan, 2, 1.0, "—"),
        (0.5, 1, 0.0, "0.5 ± 0.0"),
    ],
)
def test_amount(value, places, interval, text):
    assert amount(value, places, interval) == text


@pytest.mark.parametrize(
    ("values", "places"), [([93.1, 2.0], 1), ([231.0], 0), ([6.7, math.nan], 2), ([0.012], 4), ([math.nan], 0)]
)
def test_decimals_show_three_digits_of_the_largest(values, places):
    assert decimals(pd.Series(values)) == places


@pytest.mark.parametrize(("value", "text"), [(10.0, "10"), (0.5, "0.5"), (math.nan, "—")])
def test_plain(value, text):
    assert plain(value) == text


@pytest.mark.parametrize(("values", "text"), [([5.0, 5.0], "5"), ([9000.0, 5.0, 70.0], "5–9,000"), ([math.nan], "—")])
def test_span(values, text):
    assert span(pd.Series(values)) == text
