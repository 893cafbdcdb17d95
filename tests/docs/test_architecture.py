"""docs/architecture.md names files, functions, rules and rooms: all of them exist, in the order that import-linter holds."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CODE = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL))
FILES = sorted({word for word in CODE if re.fullmatch(r"[\w./-]+/[\w.-]*", word)})
FUNCTIONS = sorted({word for word in CODE if re.fullmatch(r"(dpsapf|paper_figures)(\.\w+)+", word)})
RULES = sorted({word.removeprefix("rule ") for word in CODE if word.startswith("rule ")})
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def defined(body, name):
    """The node that defines a name in a module or class: a function, a class, or an assignment."""
    for node in body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if getattr(node, "name", None) == name or any(getattr(target, "id", None) == name for target in targets):
            return node
    return None


def exists(dotted):
    """Whether a dotted name leads to a module and then to what is defined in it; nothing is imported."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:end]).with_suffix(".py")
        if path.exists():
            node = ast.parse(path.read_text(encoding="utf-8"))
            for name in parts[end:]:
                node = defined(node.body, name)
                if node is None:
                    return False
            return True
    return ROOT.joinpath(*parts).is_dir()


def layers():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = (contract for contract in contracts if contract["type"] == "layers")
    return [room.strip() for layer in reversed(contract["layers"]) for room in layer.split("|")]


def test_something_is_named():
    assert len(FILES) > 30 and len(FUNCTIONS) > 50 and len(RULES) > 5


@pytest.mark.parametrize("file", FILES)
def test_every_file_exists(file):
    assert (ROOT / file).exists()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_exists(name):
    assert exists(name)


@pytest.mark.parametrize("name", ["dpsapf.nowhere", "dpsapf.privacy.plan.nothing", "dpsapf.privacy.mechanisms.Gaussian.nothing"])
def test_what_does_not_exist_is_found_out(name):
    assert not exists(name)


def test_every_rule_exists():
    rules = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "workflow" / "rules").glob("*.smk")))
    assert set(RULES) <= set(re.findall(r"^rule (\w+):", rules, re.MULTILINE))


def test_function_of_a_step_is_in_the_file_of_the_step():
    steps = re.findall(r"^\| \d+ \| `((?:dpsapf|paper_figures)/\S+)\.py` \| `([\w.]+)` \|", TEXT, re.MULTILINE)
    assert len(steps) > 30
    for file, function in steps:
        assert function.startswith(file.replace("/", ".") + "."), function


def test_rooms_stand_in_the_order_of_the_layers():
    picture = re.search(r"```mermaid\n(.*?)```", TEXT, re.DOTALL)[1]
    rooms = layers()
    assert re.findall(r'^  (\w+)\["', picture, re.MULTILINE) == rooms
    assert re.findall(r"^\| `(\w+)` \| .* \| `dpsapf/", TEXT, re.MULTILINE) == rooms
    assert set(rooms) == {path.parent.name for path in (ROOT / "dpsapf").glob("*/__init__.py")}


def test_edges_of_the_picture_join_its_rooms():
    picture = re.search(r"```mermaid\n(.*?)```", TEXT, re.DOTALL)[1]
    edges = re.findall(r"^  (\w+) -[-.].* (\w+)$", picture, re.MULTILINE)
    assert len(edges) > 15
    assert {end for edge in edges for end in edge} == {*layers(), "figures"}


@pytest.mark.parametrize("page", PAGES)
def test_source_files_named_on_a_page_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for file in re.findall(r"`((?:dpsapf|paper_figures|tests|workflow|config|docs|slurm|envs)/[\w./-]*)`", text):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = ROOT / page
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        to = (path.parent / file).resolve() if file else path
        assert to.exists(), target
        if anchor:
            assert anchor in anchors(to.read_text(encoding="utf-8")), target


def anchors(text):
    """GitHub's anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
