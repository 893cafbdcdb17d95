"""Numbers of the documentation are those of the records; what differs, or was typed, is found out."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def script(name):
    """A script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")  # as when it is called
        spec.loader.exec_module(module)
    return module


tables, record_tables, measure = script("tables"), script("record_tables"), script("measure")


@pytest.fixture
def copy(tmp_path):
    """What the check reads, to change it."""
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.py", "*.png"))
    shutil.copytree(ROOT / "config", tmp_path / "config")
    shutil.copytree(ROOT / "results" / "reference", tmp_path / "results" / "reference", ignore=shutil.ignore_patterns("*.p*"))
    return tmp_path


def change(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def check(root):
    return tables.main(["--check", "--root", str(root)])


def test_texts_are_those_of_the_records():
    assert check(ROOT) == 0


def test_check_finds_a_changed_number_and_rewriting_heals_it(copy, capsys):
    assert check(copy) == 0
    good = (copy / "README.md").read_text(encoding="utf-8")
    change(copy / "README.md", "<!-- n:demo-range -->", "<!-- n:demo-range -->1")
    assert check(copy) == 1
    assert "README.md: differs from the records" in capsys.readouterr().err
    assert tables.main(["--root", str(copy)]) == 0
    assert (copy / "README.md").read_text(encoding="utf-8") == good


def test_check_finds_a_changed_table(copy):
    row = next(line for line in (copy / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| DP-LoRA |"))
    change(copy / "README.md", row, re.sub(r"\d\.\d", "9.9", row, count=1))
    assert check(copy) == 1


def test_check_finds_a_changed_record(copy):
    entries = json.loads((copy / "results/reference/measured.json").read_text())
    entries[0]["seconds"] += 600
    (copy / "results/reference/measured.json").write_text(json.dumps(entries))
    assert check(copy) == 1


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
@pytest.mark.parametrize("typed", ["It reaches 71.2 %.", "| DP-SAPF | 66.2 |", "FID fell by -2.04 here", "`66.2`"])
def test_a_typed_result_is_refused(copy, page, typed, capsys):
    change(copy / page, "\n\n", f"\n\n{typed}\n\n")
    assert check(copy) == 1
    assert "a typed result" in capsys.readouterr().err


@pytest.mark.parametrize(
    "allowed",
    [
        "Python 3.11 or 3.12",
        "[paper](https://arxiv.org/abs/2605.30312)",
        "arXiv 2206.07136",
        "at `C = 0.1`, `ema_decay: 0.8`",
        "```bash\nsleep 1.5\n```",
        "<!-- n:x -->1.5<!-- /n -->",
        "32x32, 1/(N ln N), 5,000",
    ],
)
def test_settings_versions_and_marked_numbers_are_free(allowed):
    assert not tables.typed(allowed)


@pytest.mark.parametrize(
    "text", ["<!-- n:nobody -->1<!-- /n -->", "<!-- table: nobody -->\n<!-- end -->", "<!-- n:demo-runs -->1", "1<!-- /n -->"]
)
def test_a_broken_marker_is_refused(text):
    with pytest.raises(SystemExit, match="marker"):
        tables.rewrite(text, tables.Records(ROOT))


def test_fenced_code_is_left_alone():
    text = "```\n<!-- n:demo-runs -->1<!-- /n -->\n```\n"
    assert tables.rewrite(text, tables.Records(ROOT)) == text


def test_every_name_is_used_and_gives_a_value():
    records = tables.Records(ROOT)
    written = "".join(path.read_text(encoding="utf-8") for path in tables.texts(ROOT))
    for name, make in {**tables.TABLES, **tables.NUMBERS}.items():
        assert make(records)
        assert f":{name} -->" in written or f": {name} -->" in written, name


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_differences_are_dp_sapf_minus_dp_lora():
    summary = tables.Records(ROOT).table("demo/tables/summary.csv")
    mnist = summary[(summary["dataset"] == "mnist5k") & (summary["epsilon"] == 10) & summary["learning_rate"].isna()]
    ours = mnist[(mnist["method"] == "dp-sapf") & (mnist["level"] == "matrix") & (mnist["ratio"] == 0.3)]
    theirs = mnist[mnist["method"] == "dp-lora"]
    expected = 100 * (ours["accuracy_mean"].item() - theirs["accuracy_mean"].item())
    lines = record_tables.differences(tables.Records(ROOT)).splitlines()
    row = next(line for line in lines if line.startswith("| accuracy (points), ε = 10"))
    assert f"| {expected:+.1f} |" in row


HOLDS_200_MB = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "import time; x = bytes([1]) * 200_000_000; time.sleep(2)"])
"""


def test_measure_updates_the_entry(copy):
    before = json.loads((copy / "results/reference/measured.json").read_text())
    assert measure.main(["--root", str(copy), "demo", sys.executable, "-c", HOLDS_200_MB]) == 0
    after = json.loads((copy / "results/reference/measured.json").read_text())
    assert 200 < after[0]["peak_memory_mb"] < 300 and 2 <= after[0]["seconds"] < 60
    assert after[1:] == before[1:] and set(after[0]) == set(before[0])


def test_measure_adds_an_entry(copy):
    assert measure.main(["--root", str(copy), "new", sys.executable, "-c", ""]) == 0
    assert json.loads((copy / "results/reference/measured.json").read_text())[-1]["what"] == "new"


def test_measure_keeps_nothing_of_a_failure(copy):
    before = (copy / "results/reference/measured.json").read_text()
    assert measure.main(["--root", str(copy), "demo", sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert (copy / "results/reference/measured.json").read_text() == before
