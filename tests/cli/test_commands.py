import ast
import re
from pathlib import Path

import pytest

from dpsapf.cli.commands import COMMANDS, MODULES, Command
from dpsapf.experiment import fields, stages
from dpsapf.support.checked import Checked

ROOT = Path(__file__).parents[2]
# docs/architecture.md: these have no rule
BY_HAND = {"compose-releases", "spend-again", "diagnose", "merge", "check", "release", "bench", "estimate", "compare-with-paper"}


def called():
    """Commands that the rules call."""
    return {
        name for path in (ROOT / "workflow" / "rules").glob("*.smk") for name in re.findall(r"dpsapf ([a-z-]+)", path.read_text())
    }


def test_a_name_is_the_options_class_in_kebab_case():
    class DrawThisXNow(Checked):
        """Draw this now."""

    command = Command(DrawThisXNow, "nowhere")
    assert command.name == "draw-this-x-now"
    assert command.help == "Draw this now."
    assert {"bench", "prepare-public-model", "audit-privacy"} <= set(COMMANDS)


def test_no_stage_is_without_a_command():
    own = [kind for kind in vars(stages).values() if isinstance(kind, type) and issubclass(kind, Checked)]
    assert {kind for kind in own if kind.__module__ == stages.__name__} == set(MODULES)
    assert len(COMMANDS) == len(MODULES), "two classes of one name would hide each other"


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_the_module_has_a_function_of_the_commands_name_that_takes_its_options(command):
    tree = ast.parse((ROOT / command.module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    arguments = functions[command.name.replace("-", "_")].args
    (only,) = arguments.args
    assert ast.unparse(only.annotation).strip("'\"") == command.options.__name__
    assert not (arguments.kwonlyargs or arguments.vararg or arguments.kwarg)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_help_is_one_short_sentence(command):
    assert "\n" not in command.help and len(command.help) < 80 and command.help.endswith(".")
    assert command.help[0].isupper()


def test_every_command_has_a_rule_but_those_called_by_hand():
    assert called() == set(COMMANDS) - BY_HAND


def test_what_a_stage_reads_is_written_by_a_stage_before_it():
    """Records go by the name of their file: what comes later cannot have written it."""
    written, missing = set(), []
    for command in COMMANDS.values():
        reads = [field.description for field in command.options.model_fields.values() if field.json_schema_extra == fields.READS]
        named = {name for text in reads for name in re.findall(r"[a-z_]+\.json|candidates\.csv", text)}
        missing += [(command.name, name) for name in named if name not in written]
        writes = [
            (name, field.description)
            for name, field in command.options.model_fields.items()
            if field.json_schema_extra == fields.WRITES
        ]
        for name, text in writes:
            written |= {f"{name}.csv", *re.findall(r"[a-z_]+\.json", text)}
    assert missing == []
