import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpsapf.cli import code
from dpsapf.cli.commands import COMMANDS

ROOT = Path(__file__).parents[2]
SOURCES = [path for package in code.PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
RULES = re.split(r"^rule ", "".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk"))), flags=re.M)[1:]
# what a command really imports, one after the other, each time with the suite's own modules forgotten
IMPORTS = """
import importlib, json, sys
found = {}
for module in sys.argv[1:]:
    for name in [name for name in sys.modules if name.split(".")[0] in ("dpsapf", "paper_figures")]:
        del sys.modules[name]
    importlib.import_module(module)
    found[module] = [name for name in sys.modules if name.split(".")[0] in ("dpsapf", "paper_figures")]
print(json.dumps(found))
"""


def forget():
    for cached in (code._file, code._read, code._templates):
        cached.cache_clear()


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """Edit a file of a copy of the two packages; the commands whose digests change."""
    for package in code.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    monkeypatch.setattr(code, "ROOT", tmp_path)

    def digests():
        forget()
        return {command: code.code_digest(command) for command in COMMANDS}

    known = digests()

    def edit(file, old, new):
        before, path = dict(known), tmp_path / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
        known.update(digests())
        return {command for command in COMMANDS if known[command] != before[command]}

    yield edit
    forget()


TOLD = [  # docstrings, comments, empty lines, help of a key and of a file
    ("dpsapf/support/errors.py", '"""A mistake in an input', '"""One mistake in an input'),
    ("dpsapf/experiment/runs.py", "Readable, stable name", "A name that is readable and stable"),
    ("dpsapf/experiment/methods.py", "\nWALKING = ", "\n\n\n# which adapters\nWALKING = "),
    ("dpsapf/experiment/methods.py", "# which adapters", "# adapters"),
    ("dpsapf/experiment/settings.py", 'description="DP-SGD steps [steps]"', 'description="steps of DP-SGD [steps]"'),
    ("dpsapf/experiment/stages.py", 'source("plan.json")', 'source("plan.json, of plan-privacy")'),
]
CODE = [  # an edit, commands that it concerns, and some that it does not
    ("dpsapf/finetune/dp_sgd.py", "\nimport torch\n", "\nimport torch\nX = 1\n", {"finetune"}, {"score-saliency", "sample"}),
    ("dpsapf/sampling/sample.py", ".round()", ".floor()", {"sample"}, {"finetune", "audit-privacy"}),
    ("dpsapf/privacy/noise.py", "\nimport torch\n", "\nimport torch\nX = 1\n", {"finetune", "score-saliency"}, {"aggregate"}),
    ("dpsapf/experiment/settings.py", "ge=1", "ge=2", {"finetune", "sample", "aggregate"}, set()),
    ("dpsapf/cli/main.py", "import json\n", "import json\nX = 1\n", set(), set(COMMANDS)),
    ("paper_figures/templates/report.css", "{", "{ ", {"write-report"}, {"aggregate", "finetune"}),
]


def test_what_only_a_reader_is_told_makes_nothing_again(changed):
    assert {edit: found for edit in TOLD if (found := changed(*edit))} == {}


def test_an_edit_of_code_makes_again_what_runs_it_and_nothing_else(changed):
    for *edit, some, none in CODE:
        found = changed(*edit)
        assert some <= found and not none & found, edit


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_but_comments_docstrings_and_help_is_left_out(path):
    """With an empty string in the place of each docstring and help, what is left parses to the same program."""
    text = path.read_bytes()
    tree = ast.parse(text)
    left = ast.parse(code.meaning(text, tree, b'""'))
    for node in code._told(tree):
        node.value = ""
    assert ast.dump(tree) == ast.dump(left)


COMMENTED = (
    'x = "# no comment"  # END',
    "x = '''#\n\n  # a\n'''\n\n\n# END",
    "x = f\"{'#'}\" \\\n  'y' # END",
    "x = r'\\d' # END",
)


@pytest.mark.parametrize("text", COMMENTED)
def test_a_comment_is_told_from_a_string(text):
    left = code.meaning(text.encode(), ast.parse(text)).decode()
    assert ast.dump(ast.parse(left)) == ast.dump(ast.parse(text)) and "# END" not in left


@pytest.mark.slow
def test_a_digest_covers_every_module_that_its_command_imports():
    modules = sorted({command.module for command in COMMANDS.values()})
    ran = subprocess.run([sys.executable, "-c", IMPORTS, *modules], capture_output=True, text=True, cwd=ROOT, check=True)
    for module, imported in json.loads(ran.stdout).items():
        assert set(imported) <= set(code.behind(module)), module
        assert len(imported) > 3, "it was imported at all"


def test_an_import_inside_a_function_counts_and_one_for_a_type_checker_does_not():
    assert "dpsapf.public_models.check" in code.behind("dpsapf.sampling.sample")
    text = "import typing\nif typing.TYPE_CHECKING:\n    import dpsapf.a\ndef f():\n    from dpsapf import b\n"
    names = [name for node in code._statements(ast.parse(text).body) for name in code._imported(node)]
    assert names == ["dpsapf", "dpsapf.b"]


@pytest.mark.parametrize("rule", [rule for rule in RULES if "code_digest" in rule], ids=lambda rule: rule.split(":")[0])
def test_a_rule_names_the_code_of_its_own_command(rule):
    (command,) = set(re.findall(r"(?:-m|LAUNCH) dpsapf ([a-z-]+)", rule))
    assert re.findall(r'code_digest\("([a-z-]+)"\)', rule) == [command]


def test_every_rule_that_runs_a_command_names_its_code():
    assert [rule.split(":")[0] for rule in RULES if re.search(r"dpsapf [a-z-]+ ", rule) and "code_digest" not in rule] == []
