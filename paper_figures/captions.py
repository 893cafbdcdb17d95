"""Captions of figures, from the template that Snakemake's report has too."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import jinja2
from docutils import nodes
from docutils.core import publish_doctree, publish_parts

SAFE = {"report_level": 5, "raw_enabled": False, "file_insertion_enabled": False}


@dataclass(frozen=True)
class Caption:
    """A caption as HTML, safe to embed, and its first sentence as plain text."""

    html: str
    sentence: str


class Captions:
    """The captions of one results folder.

    Args:
        template: ``workflow/report/figure.rst``: Jinja that makes reStructuredText of a figure's name and a config.
        config: the config, as far as it is known: ``name`` and ``evaluation.protocol`` at least.
    """

    def __init__(self, template: Path, config: dict) -> None:
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # docutils escapes
        self._template, self._config = environment.from_string(template.read_text(encoding="utf-8")), config

    def of(self, name: str) -> Caption:
        """Return the caption of a figure or table, by its name."""
        told = SimpleNamespace(config=self._config, wildcards=SimpleNamespace(name=name))
        text = self._template.render(snakemake=told).strip()
        html = publish_parts(text, writer="html5", settings_overrides=SAFE)["body"]
        paragraphs = publish_doctree(text, settings_overrides=SAFE).findall(nodes.paragraph)
        first = " ".join(next((node.astext() for node in paragraphs), name).split())
        return Caption(html, first.split(". ", 1)[0].rstrip(".") + ".")
