"""What the texts say of settings is what the records were made with."""

import re

import pandas as pd
import pytest

from dpsapf.experiment.registries import load_yaml
from dpsapf.experiment.settings import Config
from dpsapf.support.checked import parse
from tests.docs.test_kept_runs import KEPT, REFERENCE, ROOT, configs, in_the_checkout, runs, sources
from tests.docs.test_tables import change, copy, tables

__all__ = ["copy", "in_the_checkout"]  # fixtures
SECTIONS = ("privacy", "saliency", "finetune", "sampling", "evaluation")
WORDS = ("no", "one", "two", "three", "four", "five")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), REFERENCE / "README.md"]


def kept_config(folder):
    path = REFERENCE / folder / "config.yaml"
    return parse(Config, load_yaml(path), str(path))


def caption(table):
    """The paragraph before a table of docs/results.md, as a reader sees it."""
    before = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").split(f"<!-- table: {table} -->")[0]
    return re.sub(r"<!--.*?-->", "", before.strip().split("\n\n")[-1])


def test_the_table_of_scores_names_the_bound_that_it_was_made_with():
    named = {float(value) for value in re.findall(r"C = ([\d.]*\d)", caption("agreement"))}
    assert named == {load_yaml(ROOT / "config" / "config.yaml")["saliency"]["clipping_norm"]}


@pytest.mark.parametrize("folder", KEPT)
def test_a_kept_config_has_the_settings_of_the_shipped_one(folder):
    kept, (shipped, *_) = kept_config(folder), configs(folder)
    assert [getattr(kept, section) for section in SECTIONS] == [getattr(shipped, section) for section in SECTIONS]
    assert "evolution" not in kept.model_fields_set or kept.evolution == shipped.evolution


@pytest.mark.parametrize("folder", KEPT)
def test_kept_runs_were_trained_as_the_kept_config_says(folder):
    config, table = kept_config(folder), runs(folder)
    if "used_steps" not in table:
        pytest.skip("a table of before these columns")
    own = table[(table["trainable_parameters"] > 0) & table["learning_rate"].isna()]
    assert set(own["used_steps"]) == {config.privacy.steps}
    assert own["used_batch"].to_numpy() == pytest.approx(config.privacy.expected_batch_size, rel=1e-9)  # N q, in floats
    rates = own["adapter"].isna().map({True: config.finetune.learning_rate_full, False: config.finetune.learning_rate_lora})
    assert own["used_learning_rate"].to_numpy() == pytest.approx(rates.to_numpy(float))


@pytest.mark.parametrize("folder", KEPT)
def test_the_table_of_folders_counts_seeds_and_runs(folder):
    text, table = sources()[folder], runs(folder)
    for number in re.findall(rf"({'|'.join(WORDS)}) seeds?\b", text):
        assert table["seed"].nunique() == WORDS.index(number)
    for number in re.findall(r"(\d+) runs", text):
        assert len(table) == int(number)


@pytest.mark.parametrize(
    "caption",
    [
        "At the bound `C = 1`, each score:",
        "With three seeds:",
        "Epsilon 10 and sigma_s = 5, the top 30 %:",
        "100 steps on two CPU cores:",
    ],
)
def test_a_setting_that_is_typed_into_a_caption_is_refused(copy, caption, capsys):
    change(copy / "docs/results.md", "<!-- table: agreement -->", f"{caption}\n\n<!-- table: agreement -->")
    assert tables.main(["--check", "--root", str(copy)]) == 1
    assert "a caption's setting" in capsys.readouterr().err


def test_captions_of_figures_are_checked_and_commands_are_free(copy):
    change(
        copy / "docs/results.md",
        "<!-- table: agreement -->",
        "`bench --seeds two seeds`:\n\n<!-- table: agreement -->",
    )
    assert tables.main(["--check", "--root", str(copy)]) == 0
    change(copy / "docs/results.md", "![Agreement of", "With two seeds:\n\n![Agreement of")
    assert tables.main(["--check", "--root", str(copy)]) == 1


@pytest.mark.parametrize(
    ("record", "old", "new"),
    [
        ("demo/config.yaml", "clipping_norm: 0.1", "clipping_norm: 1.0"),
        ("cifar10-mini/config.yaml", "steps: 100", "steps: 30"),
        ("bench-gpu.csv", "NVIDIA H100 80GB HBM3", "another card"),
    ],
)
def test_another_record_needs_another_caption(copy, record, old, new):
    path = copy / "results" / "reference" / record
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    assert tables.main(["--check", "--root", str(copy)]) == 1


def test_texts_do_not_deny_the_gpu_that_a_record_names():
    devices = set(pd.read_csv(REFERENCE / "bench-gpu.csv")["device"])
    assert not any("cpu" in device for device in devices)
    for page in PAGES:
        assert not re.search(r"\b(?:nothing|never|not yet)\b[^.\n]*\bGPU", page.read_text(encoding="utf-8"), re.IGNORECASE), page


def test_results_were_trained_where_the_limits_say():
    assert "No result here was trained on a GPU" in (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    assert {kept_config(folder).compute.device for folder in KEPT} == {"cpu"}
