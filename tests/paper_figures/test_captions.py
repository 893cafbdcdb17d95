from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
import yaml
from docutils.core import publish_string

from paper_figures.draw import ITEMS

ROOT = Path(__file__).parents[2]
STRICT = {"report_level": 1, "halt_level": 2, "output_encoding": "unicode"}  # any warning of docutils is an error


def rendered(template, config, name=""):
    text = (ROOT / "workflow" / "report" / template).read_text(encoding="utf-8")
    config = yaml.safe_load((ROOT / "config" / config).read_text(encoding="utf-8"))
    snakemake = SimpleNamespace(config=config, wildcards=SimpleNamespace(name=name))
    return jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(text).render(snakemake=snakemake), config


@pytest.mark.parametrize("config", ["config.yaml", "paper.yaml"])
@pytest.mark.parametrize("name", [item.name for item in ITEMS])
def test_every_figure_has_a_caption_computed_from_the_config(config, name):
    text, config = rendered("figure.rst", config, name)
    caption, _, source = text.strip().rpartition("\n\n")
    assert len(caption.strip()) > 80
    assert source == f"Drawn from ``{name}.csv``."
    assert ("protocol" in caption) == (config["evaluation"]["protocol"] in caption)
    publish_string(text, writer="html", settings_overrides=STRICT)


@pytest.mark.parametrize("config", ["config.yaml", "paper.yaml"])
def test_the_report_names_protocol_and_every_study(config):
    text, config = rendered("workflow.rst", config)
    assert config["evaluation"]["protocol"] in text
    assert str(config["privacy"]["steps"]) in text
    for name, study in config["studies"].items():
        assert f"* **{name}**: " in text
        assert ", ".join(map(str, study["dataset"])) in text
    publish_string(text, writer="html", settings_overrides=STRICT)
