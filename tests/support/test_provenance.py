"""Provenance: versions, and a commit that says ``+dirty`` if and only if the code is another one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpsapf.support.provenance import CODE, git_commit, provenance

ROOT = Path(__file__).parents[2]
TRACKED = ("config", "docs", "dpsapf", "envs", "slurm", "workflow", "Snakefile", "README.md", "pyproject.toml", ".gitignore")
GIT = ("git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
ASK = "from dpsapf.support.provenance import git_commit; print(git_commit())"


def test_provenance_names_versions():
    record = provenance()
    assert record["versions"]["opacus"] and record["python"].startswith("3.")


def test_the_commit_is_twelve_digits_or_unknown():
    assert git_commit() is None or len(git_commit().removesuffix("+dirty")) == 12


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """This checkout's code and texts, committed into a repository of their own."""
    root = tmp_path_factory.mktemp("checkout")
    for name in TRACKED:
        path = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "*.png")
        shutil.copytree(path, root / name, ignore=ignore) if path.is_dir() else shutil.copy(path, root)
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "all")):
        subprocess.run([*GIT, *words], cwd=root, check=True)
    return root


def commit_of(root):
    """The commit as the package of a checkout says it."""
    made = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout.strip()


@pytest.fixture
def changed(checkout, request):
    """A file of the checkout with a line more, for one test."""
    path = checkout / request.param
    before = path.read_bytes()
    path.write_bytes(before + b"\n# mine\n")
    yield checkout
    path.write_bytes(before)


def asked_for():
    """Files outside the code that the docs link to or ask to edit: configs, registries, the cluster's names."""
    text = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    return sorted(name for name in set(re.findall(r"\b(?:config|slurm)/[\w-]+\.yaml", text)) if (ROOT / name).exists())


def test_docs_ask_for_some_files():
    assert {"config/my-datasets.yaml", "config/image-folder.yaml", "slurm/site.yaml"} <= set(asked_for())


def test_a_fresh_checkout_is_its_commit(checkout):
    assert re.fullmatch("[0-9a-f]{12}", commit_of(checkout))


def test_configs_and_registries_of_ones_own_are_no_other_code(checkout):
    before = {name: (checkout / name).read_bytes() for name in asked_for()}
    for name, text in before.items():
        (checkout / name).write_bytes(text + b"\n# mine\n")
    commit = commit_of(checkout)
    for name, text in before.items():
        (checkout / name).write_bytes(text)
    assert "dirty" not in commit


def test_own_images_and_what_a_run_leaves_are_no_other_code(checkout):
    for name in ("data/my-images.zip", "config/mine.yaml", "results/mine/runs/run/plan.json", "my-release/STATEMENT.md"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("x")
    assert "dirty" not in commit_of(checkout)


@pytest.mark.parametrize(
    "changed", ["dpsapf/privacy/noise.py", "Snakefile", "workflow/rules/privacy.smk", "pyproject.toml"], indirect=True
)
def test_another_line_of_code_is_told(changed):
    assert commit_of(changed).endswith("+dirty")


def test_a_staged_or_removed_line_of_code_is_told(checkout):
    path = checkout / "dpsapf" / "privacy" / "noise.py"
    before = path.read_bytes()
    try:
        path.unlink()
        assert commit_of(checkout).endswith("+dirty")
        path.write_bytes(before + b"\n# mine\n")
        subprocess.run([*GIT, "add", "-A", "dpsapf"], cwd=checkout, check=True)
        assert commit_of(checkout).endswith("+dirty")
    finally:
        path.write_bytes(before)
        subprocess.run([*GIT, "add", "-A", "dpsapf"], cwd=checkout, check=True)


def test_what_counts_as_code_is_there():
    assert all((ROOT / name).exists() for name in CODE)
