"""What is installed for everybody is used by everybody, and nothing private of a library is used without being named here."""

import ast
import importlib
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = [path for folder in ("dpsapf", "paper_figures") for path in (ROOT / folder).rglob("*.py")]
RULES = [ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")]
NOT_IMPORTED = {"pygments": "snakemake --report (make report) colours code with it, and does not ask for it"}
"""Dependencies that nothing here imports, and why they are there."""
DOCUMENTED = {"_asdict", "_fields", "_make", "_replace", "_exit"}
"""Names with an underscore that Python documents: of namedtuples, and of os."""
PRIVATE = {
    "torch._foreach_add_": "torch's own optimizers add lists of tensors by it; no public name",
    "torch._foreach_lerp_": "likewise",
    "torch.utils._pytree": "flattens nested tensors; torch itself has no public name for it",
    "executor._report_job_submission_threadsafe": "replaced for the plugin's one version that was tried; tests/cli/test_slurm.py",
    "executor._report_job_error_threadsafe": "likewise",
}
"""Private names of libraries that are used, and why that holds."""


def name(requirement):
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower().replace("_", "-")


def imported():
    """Names of the modules that are imported, or named in a string that is imported later."""
    words = set()
    for path in [*SOURCES, *RULES]:
        text = path.read_text()
        words |= set(re.findall(r"^\s*(?:from|import) ([A-Za-z0-9_]+)", text, re.MULTILINE))
        words |= {found.split(".")[0] for found in re.findall(r"import_module\(\"([\w.]+)\"", text)}
    return words


def test_every_dependency_is_imported_or_there_for_a_reason():
    modules, unused = imported(), set()
    provided = {}
    for module, owners in importlib.metadata.packages_distributions().items():
        for owner in owners:
            provided.setdefault(name(owner), set()).add(module)
    for requirement in PROJECT["project"]["dependencies"]:
        if not provided.get(name(requirement), set()) & modules:
            unused.add(name(requirement))
    assert unused == set(NOT_IMPORTED)


def test_no_dependency_is_installed_twice():
    everybody, developers = (
        {name(word) for word in words}
        for words in (
            PROJECT["project"]["dependencies"],
            PROJECT["dependency-groups"]["dev"],
        )
    )
    assert not everybody & developers


def private_names(tree):
    """Yield ``object._name`` and names that are imported with an underscore, of objects that are not a class's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner not in ("self", "cls"):
                yield owner, node.attr
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", word.name) for word in node.names if word.name.startswith("_"))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr"):
            word = getattr(node.args[1], "value", "")
            if isinstance(word, str) and re.match("_[a-z]", word):
                yield "", word


def own_names():
    """Names with an underscore that this code itself defines."""
    trees = [ast.parse(path.read_text()) for path in SOURCES]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    found = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    found |= {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
    }
    return found | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def test_private_names_of_libraries_are_listed():
    own, used = own_names(), set()
    for path in SOURCES:
        found = private_names(ast.parse(path.read_text()))
        used |= {f"{owner}.{word}" if owner else word for owner, word in found if word not in own | DOCUMENTED}
    known = {word if word in PRIVATE else word.rpartition(".")[2] for word in used}
    assert known == set(PRIVATE)


@pytest.mark.parametrize("word", [word for word in PRIVATE if word.startswith("torch.")])
def test_they_are_there(word):
    module, _, attribute = word.rpartition(".")
    assert getattr(importlib.import_module(module), attribute)
