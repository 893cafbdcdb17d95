"""What docs/utility.md says of classifiers and recipes is what the code has."""

import re
from pathlib import Path

import torch
import yaml

from dpsapf.evaluation.classifiers import CLASSIFIERS, build_classifier
from dpsapf.experiment.registries import ProtocolEntry, Recipe, load_yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "utility.md").read_text(encoding="utf-8")
TABLE = TEXT.split("## Classifiers")[1].split("\n\nAll but")[0]


def test_every_classifier_is_in_the_table_and_no_other():
    rows = [line for line in TABLE.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted(named) == sorted([*CLASSIFIERS, "probe"])
    for row in rows:
        names, counts = re.findall(r"`([^`]+)`", row.split("|")[1]), re.findall(r"`(\d+(?:,\d{3})+)`", row.split("|")[3])
        for name, count in zip(names, counts, strict=bool(counts)):
            with torch.random.fork_rng():
                model = build_classifier(name, 10)
            assert f"{sum(value.numel() for value in model.parameters()):,}" == count, name


def test_the_recipes_of_the_papers_code_are_a_protocols():
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    paper = load_yaml(ROOT / "config" / "protocols.yaml")["paper-text-v1"]
    protocol = ProtocolEntry.model_validate(paper | yaml.safe_load(block))
    text = ProtocolEntry.model_validate(paper)
    code = ProtocolEntry.model_validate(load_yaml(ROOT / "config" / "protocols.yaml")["paper-code-v1"])
    assert code.recipes == protocol.recipes
    assert [len(protocol.recipe(side).classifiers) for side in (32, 96)] == [3, 1]
    for side in (32, 96):  # text and code differ in the networks alone
        one, other = (each.recipe(side).model_dump(exclude={"classifiers"}) for each in (protocol, text))
        assert one == other
    assert all(set(recipe.classifiers) <= set(CLASSIFIERS) for each in (protocol, text) for recipe in each.recipes)


def test_every_key_of_a_recipe_is_told():
    told = set(re.findall(r"`([a-z_]+)`", TEXT.split("## Recipes")[1]))
    assert set(Recipe.model_fields) - {"classifiers", "batch"} <= told
