"""What Snakemake says of a config that it cannot or must not take, before any rule."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def refused(tmp_path):
    """What a dry run says that must fail."""

    def say(*words):
        command = [sys.executable, "-m", "snakemake", "-n", "-s", str(ROOT / "Snakefile"), "--cores", "1"]
        result = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode
        return result.stdout + result.stderr

    (tmp_path / "config").symlink_to(ROOT / "config")
    return say


@pytest.mark.parametrize("place", [0, 1])
def test_a_key_that_stands_twice_in_any_of_several_files_is_refused_with_both_lines(refused, tmp_path, place):
    good = ROOT / "config" / "config.yaml"
    bad = tmp_path / "bad.yaml"
    bad.write_text("privacy:\n  steps: 15\n  steps: 30\n")
    files = [str(good), str(good)]
    files[place] = str(bad)
    expected = f"{bad}: line 3 = 'privacy.steps': stands in line 2 already"
    assert expected in refused("--configfile", *files, "--config", "name=never-run")


def test_the_default_config_is_read_as_carefully(refused, tmp_path):
    (tmp_path / "config").unlink()
    (tmp_path / "config").mkdir()
    for text, told in (
        ("name: a\nname: b\n", "line 2 = 'name': stands in line 1 already"),
        ("name: [a\n", "line 2 = 'not YAML': "),
    ):
        (tmp_path / "config" / "config.yaml").write_text(text)
        assert f"config/config.yaml: {told}" in refused()


def test_a_registry_in_which_an_entry_stands_twice_is_refused(refused, tmp_path):
    text = (ROOT / "config" / "datasets.yaml").read_text()
    (tmp_path / "datasets.yaml").write_text(f"digits: {{}}\n{text}")
    line = text.splitlines().index("digits:") + 2
    said = refused("--config", "name=never-run", f"datasets_file={tmp_path}/datasets.yaml")
    assert f"{tmp_path}/datasets.yaml: line {line} = 'digits': stands in line 1 already" in said
