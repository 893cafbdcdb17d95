"""Put each fault of `table` and `unseen` into a copy of the tree, and say what stops it (``python -m tests.faults``).

Four things may stop a fault: construction (a stage refuses, or a contract on imports and names is broken), the audit (or
sampling, or the release), the tests, and the attacks. Fails if one is stopped less than twice without a reason in `FEW`.
"""

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.fault import Fault
from tests.faults.table import FAULTS, FEW, RIGHT, UNSEEN
from tests.mutation import run
from tests.mutation.run import ROOT, Job

COLUMNS = ("construction", "audit", "tests", "attacks")
CONTRACTS = ("tests/contracts/test_privacy_code.py",)
WHOLE_RUN = "tests/faults/test_whole_run.py"
ATTACK = "tests/faults/attacks.py::test_an_attack_finds_no_more_than_epsilon[{}]"
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "results", ".snakemake", ".*_cache", ".hypothesis")
SHOWN = 110  # characters of a cell
LIMIT = 900.0  # seconds of a core for one run of tests


def patched(fault: Fault, package: Path) -> dict[Path, str]:
    """Return the text of each file that a fault changes.

    Raises:
        ValueError: a text to be replaced does not occur exactly once.
    """
    texts: dict[Path, str] = {}
    for file, old, new in fault.edits:
        path = package / file
        text = texts.get(path) or path.read_text()
        if text.count(old) != 1:
            raise ValueError(f"{fault.name}: {file} has {text.count(old)} times {old!r}")
        texts[path] = text.replace(old, new)
    return texts


@contextlib.contextmanager
def faulty_tree(fault: Fault) -> Iterator[Path]:
    """Give a copy of the tree with a fault in it."""
    with tempfile.TemporaryDirectory(prefix="fault-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        for path, text in patched(fault, tree / run.PACKAGE).items():
            path.write_text(text)
        yield tree


def first_failure(tree: Path, tests: Sequence[str], options: Sequence[str] = ()) -> tuple[str, str]:
    """Run tests in a tree, if there are any; returns the first that fails, and why, or two empty texts.

    Raises:
        RuntimeError: pytest itself broke.
    """
    if not tests:
        return "", ""
    job = Job(str(tree), tree / run.PACKAGE, None, tests, limit=LIMIT, options=options, root=tree)
    run.run(iter([job]), 1, lambda job: None)
    if run.outcome(job) == "SURVIVED":
        return "", ""
    why = job.result.get("why", "time limit or crash").removeprefix("AssertionError: ")
    return job.result.get("by", "unknown"), re.sub(r"/\S*/", "", " ".join(why.split()))


def imports_broken(tree: Path) -> str:
    """Return the contract on imports that a tree breaks; empty if it keeps all."""
    words = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(words, cwd=tree, env={"PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False)
    return next((line for line in done.stdout.splitlines() if line.endswith("BROKEN")), "")


def tried(fault: Fault) -> dict[str, str]:
    """Return what stopped a fault, for each of `COLUMNS`; empty where nothing did.

    An attack that a stage or the audit refuses has found nothing of its own.
    """
    with faulty_tree(fault) as tree:
        contract, broken = first_failure(tree, CONTRACTS), imports_broken(tree)
        stage, refusal = first_failure(tree, (WHOLE_RUN,))
        built = "test_the_stages_run" in stage
        test, _ = first_failure(tree, fault.tests, ("-m", "not slow and not slurm"))
        attack, found = first_failure(tree, [ATTACK.format(name) if "::" not in name else name for name in fault.attacks])
        return {
            "construction": contract[0] or broken or (refusal if built else ""),
            "audit": "" if built else refusal,
            "tests": test.removeprefix("tests/"),
            "attacks": ""
            if "UserError" in found or not attack
            else f"{attack.rpartition('::')[2].partition('[')[2].rstrip(']')}: {found}",
        }


class Results:
    """What stopped each fault, kept in a JSON file as long as package and tests stay the same."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        sources = sorted([*(ROOT / run.PACKAGE).rglob("*.py"), *(ROOT / "tests").rglob("*.py")])
        self._digest = run.digest(*(source.read_text() for source in sources))
        self._rows = json.loads(path.read_text()) if path and path.exists() else {}

    def of(self, fault: Fault) -> dict[str, str]:
        """Return a fault's row; tries it if it is not known."""
        row = self._rows.get(fault.name)
        if row is None or row["digest"] != self._digest:
            row = {"digest": self._digest} | tried(fault)
            self._rows[fault.name] = row
            if self._path:
                self._path.write_text(json.dumps(self._rows, indent=1))
            print(f"{stops(row)} of {len(COLUMNS)}  {fault.name}", file=sys.stderr, flush=True)
        return row


def stops(row: dict[str, str]) -> int:
    """Count the columns that stopped a fault."""
    return sum(bool(row[column]) for column in COLUMNS)


def markdown(rows: dict[str, dict[str, str]]) -> str:
    """Write the table; faults by name."""
    lines = [f"| fault | breaks | {' | '.join(COLUMNS)} | stopped |", "| :-- | :-- | " + ":-- | " * len(COLUMNS) + "--: |"]
    breaks = {fault.name: fault.breaks for fault in (*FAULTS, *UNSEEN, RIGHT)}
    for name, row in rows.items():
        cells = [row[column].replace("|", "\\|").removeprefix("dpsapf ")[:SHOWN] or "—" for column in COLUMNS]
        lines.append(f"| {name} | {breaks[name]} | {' | '.join(cells)} | {stops(row)} |")
    return "\n".join(lines)


def wrong(rows: dict[str, dict[str, str]], few: dict[str, str]) -> list[str]:
    """Say which faults are stopped less than twice without a reason, or twice in spite of one; and if right code is stopped."""
    told = []
    for name, row in rows.items():
        if name == RIGHT.name:
            told += [f"{name} is stopped: {row}"] * bool(stops(row))
        elif (stops(row) < 2) != (name in few):
            told.append(f"{name}: stopped {stops(row)} times" + (f", and FEW says: {few[name]}" if name in few else ""))
    return told


def main(words: list[str]) -> int:
    """Try the faults chosen; print the table; 1 if something is wrong with it."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], help="faults whose name contains one of these")
    parser.add_argument("--list", action="store_true", help="say which faults there are, try none")
    parser.add_argument("--results", type=Path, help="JSON file to keep outcomes in, and to go on from")
    options = parser.parse_args(words)
    chosen = [fault for fault in (RIGHT, *FAULTS, *UNSEEN) if any(word in fault.name for word in options.only)]
    if options.list:
        print("\n".join(f"{fault.name}: {fault.breaks}" for fault in chosen))
        return 0
    run.import_heavy()
    results = Results(options.results)
    rows = {fault.name: results.of(fault) for fault in chosen}
    told = wrong(rows, FEW)
    print("\n".join([markdown(rows), "", *told]))
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
