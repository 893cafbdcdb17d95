"""Break the privacy code on purpose, one place at a time: every mutant must make a test fail (`make mutants`).

`operators` makes the mutants from the source, `semantic` lists those that it cannot make, `run` runs them, and
`equivalent.toml` names those that change no behaviour. The working tree is never changed.
"""

import argparse
import json
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.mutation import run
from tests.mutation.operators import Mutant, mutants
from tests.mutation.run import ROOT, Job
from tests.mutation.semantic import SEMANTIC, SemanticMutant

AnyMutant = Mutant | SemanticMutant
SOURCE = ROOT / "dpsapf"
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
FOLDERS = ("privacy", "gradients")
FILES = (
    *sorted(f"{folder}/{path.name}" for folder in FOLDERS for path in (SOURCE / folder).glob("*.py")),
    *(f"finetune/{name}.py" for name in ("checkpoint", "dp_sgd", "train")),
    *(f"saliency/{name}.py" for name in ("plan", "progress", "score", "scores", "signal")),
    "datasets/splits.py",  # whom the guarantee is for
    "evolution/votes.py",
    "support/parallel.py",
    "public_models/latents.py",  # what a unit's draw is
)
QUICK = (  # what a sample is drawn from: modules with quick tests that no mutant survives
    *(f"privacy/{name}.py" for name in ("audit", "clipping", "compose", "evidence", "mechanisms", "meter", "plan", "poisson")),
    "datasets/splits.py",
    "saliency/scores.py",
)
EXTRA = {  # test files besides the mirrored one that exercise a module
    "gradients/ghost_norms.py": ("gradients/test_ghost_clipping.py", "gradients/test_per_image.py", "saliency/test_score.py"),
    "gradients/ghost_clipping.py": ("gradients/test_per_image.py", "finetune/test_dp_sgd.py"),
    "gradients/per_image.py": ("finetune/test_dp_sgd.py", "finetune/test_train.py"),
    "public_models/latents.py": ("contracts/test_user_level.py",),
    "privacy/accounting.py": ("privacy/test_plan.py", "privacy/test_audit.py", "saliency/test_plan.py"),
    "privacy/plan.py": ("saliency/test_plan.py",),
    "privacy/clipping.py": ("saliency/test_scores.py",),
    "privacy/meter.py": ("privacy/test_audit.py", "privacy/test_mechanisms.py"),
    "privacy/evidence.py": ("privacy/test_audit.py",),
    "privacy/compose.py": ("privacy/test_audit.py",),
    "privacy/mechanisms.py": ("saliency/test_plan.py", "saliency/test_score.py"),
    "privacy/spend_record.py": ("privacy/test_spends.py", "privacy/test_spends_found.py"),
    "privacy/spends.py": ("privacy/test_spends_found.py", "saliency/test_plan.py"),
    "privacy/noise.py": ("privacy/test_mechanisms.py", "finetune/test_train.py"),
    "privacy/noise_seen.py": ("privacy/test_meter.py",),
    "saliency/scores.py": ("saliency/test_plan.py", "saliency/test_score.py"),
    "saliency/score.py": ("saliency/test_agreement.py",),
    "finetune/dp_sgd.py": ("finetune/test_train.py", "support/test_parallel.py"),
}
MIRRORS = {  # tested through it
    "privacy/selected.py": "privacy/test_leaving.py",
    "privacy/trained.py": "privacy/test_leaving.py",
    "privacy/calibrations.py": "privacy/test_plan.py",
}
FORKED = ("support/parallel.py",)  # reached in processes that a test forks, where nothing is measured


def made() -> list[AnyMutant]:
    """Make every mutant: file by file the generated ones, then the listed ones."""
    return [mutant for file in FILES for mutant in mutants(_text(file), file)] + list(SEMANTIC)


def tests_of(file: str) -> tuple[str, ...]:
    """Return the test files that may notice a fault in a module, its mirror first."""
    folder, name = file.split("/")
    return tuple(f"tests/{test}" for test in (MIRRORS.get(file, f"{folder}/test_{name}"), *EXTRA.get(file, ())))


def equivalents() -> dict[str, str]:
    """Return the reason why a mutant changes no behaviour, by its id."""
    rows = tomllib.loads(EQUIVALENT.read_text())["equivalent"]
    return {row["id"]: row["reason"] for row in rows}


def chosen(every: list[AnyMutant], words: list[str], sample: int | None, seed: str) -> list[AnyMutant]:
    """Choose mutants whose place or id contains one of the words; of them a sample, which other mutants do not shift."""
    some = [mutant for mutant in every if not words or any(word in mutant.where or word in mutant.id for word in words)]
    if sample is None:
        return some
    left_out = equivalents()
    quick = [mutant for mutant in some if mutant.file.startswith(QUICK) and mutant.id not in left_out]
    return sorted(quick, key=lambda mutant: run.digest(seed, mutant.id))[:sample]


class Results:
    """What is known of mutants, kept in a JSON file after each.

    A killed mutant is known as long as its module stays the same; a surviving one only while its tests do, too.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._facts = json.loads(path.read_text()) if path and path.exists() else {"reach": {}, "mutants": {}}

    def reach(self, file: str) -> dict[str, dict]:
        """Return which tests reach which lines of a file; measures it if it is not known."""
        key = run.digest(_text(file), _tests_digest(file))
        known = self._facts["reach"].get(file, {})
        if known.get("key") != key:
            print(f"measuring  {file}", flush=True)
            known = {"key": key, "tests": run.reached(SOURCE / file, tests_of(file))}
            self._facts["reach"][file] = known
            self._save()
        return known["tests"]

    def of(self, mutant: AnyMutant) -> dict | None:
        """Return what is known of a mutant."""
        known = self._facts["mutants"].get(mutant.id)
        if known is None or known["code"] != run.digest(_text(mutant.file)):
            return None
        return known if known["outcome"] == "killed" or known["tests"] == _tests_digest(mutant.file) else None

    def add(self, mutant: AnyMutant, outcome: str, job: Job) -> dict:
        """Keep and return a mutant's outcome."""
        row = {"outcome": outcome, "seconds": job.result["seconds"], "by": job.result.get("by", "time limit")}
        self._facts["mutants"][mutant.id] = row | job.facts
        self._save()
        return row

    def _save(self) -> None:
        if self._path:
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self._facts, indent=1))
            temporary.replace(self._path)


def _state(mutant: AnyMutant) -> dict[str, str]:
    """Return what an outcome depends on, as it is when the run starts."""
    return {"code": run.digest(_text(mutant.file)), "tests": _tests_digest(mutant.file)}


def _text(file: str) -> str:
    return (SOURCE / file).read_text()


def _tests_digest(file: str) -> str:
    return run.digest(*((ROOT / test).read_text() for test in ("tests/conftest.py", *tests_of(file))))


def job(mutant: AnyMutant, results: Results, measure: bool) -> Job:
    """Describe the run of a mutant's tests: those that reach it, quickest first, or without measuring all of them."""
    path, tests = SOURCE / mutant.file, tests_of(mutant.file)
    tree = mutant.tree(_text(mutant.file))
    if not measure:
        return Job(mutant.id, path, tree, tests, facts=_state(mutant))
    reach = results.reach(mutant.file)
    somewhere = mutant.inside and mutant.file not in FORKED
    order = run.ordered(reach, mutant.statement if somewhere else None)
    files = [test for test in tests if any(name.startswith(f"{test}::") for name in order)]
    return Job(mutant.id, path, tree, files or tests[:1], order, run.time_limit(reach, order), facts=_state(mutant))


def run_all(some: list[AnyMutant], results: Results, at_once: int, measure: bool) -> dict[str, dict]:
    """Run mutants and say how each ends; those that are known are not run again. Returns the rows by id."""
    rows = {mutant.id: known for mutant in some if (known := results.of(mutant))}
    by_id = {mutant.id: mutant for mutant in some}

    def jobs() -> Iterator[Job]:
        return (job(mutant, results, measure) for mutant in some if mutant.id not in rows)

    def report(ended: Job) -> None:
        mutant = by_id[ended.name]
        row = rows[mutant.id] = results.add(mutant, run.outcome(ended), ended)
        print(f"{row['outcome']:8}  {row['seconds']:5.1f} s  {mutant.where:32}  {mutant.id}", flush=True)

    run.import_heavy(models=measure)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is stopped, too
    run.run(jobs(), at_once, report)
    return rows


def summary(some: list[AnyMutant], rows: dict[str, dict], reasons: dict[str, str], minutes: float) -> list[str]:
    """Print totals by file; return the ids of mutants that survive without a reason."""
    counts: dict[str, Counter] = {}
    for mutant in some:
        kind = "equivalent" if mutant.id in reasons else rows[mutant.id]["outcome"]
        counts.setdefault(mutant.file, Counter())[kind] += 1
    total = sum(counts.values(), Counter())
    for file, count in [*counts.items(), ("all", total)]:
        print(f"{file:28} {count.total():5} made {count['killed']:5} killed {count['equivalent']:5} equivalent", end="")
        print(f" {count['SURVIVED']:5} survive")
    seconds = [row["seconds"] for row in rows.values()]
    print(f"{minutes:.1f} minutes; {sum(seconds) / max(1, len(seconds)):.2f} s of a core for a mutant")
    return [mutant.id for mutant in some if mutant.id not in reasons and rows[mutant.id]["outcome"] == "SURVIVED"]


def arguments(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.mutate", description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="run mutants whose file:line:column or id contains one of these")
    parser.add_argument("--list", action="store_true", help="say which mutants there are, run none")
    parser.add_argument("--sample", type=int, help=f"run this many mutants of {', '.join(QUICK)}")
    parser.add_argument("--seed", default="0", help="of the sample")
    parser.add_argument("--equivalent", action="store_true", help="run those said to be equivalent, too: none may be killed")
    parser.add_argument("--jobs", type=int, default=1, help="mutants run at once")
    parser.add_argument("--results", type=Path, help="JSON file to keep outcomes in, and to go on from")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Run the mutants chosen; 1 if one survives that is not equivalent, or one is killed that is said to be."""
    options, start = arguments(words), time.monotonic()
    some, reasons = chosen(made(), options.words, options.sample, options.seed), equivalents()
    if options.list:
        print("\n".join(f"{mutant.where:32}  {mutant.id}" for mutant in some))
        return 0
    to_run = [mutant for mutant in some if options.equivalent or mutant.id not in reasons]
    rows = run_all(to_run, Results(options.results), options.jobs, measure=options.sample is None)
    alive = summary(some, rows, reasons, (time.monotonic() - start) / 60)
    wrong = [name for name in reasons if rows.get(name, {}).get("outcome") == "killed"]
    print("\n".join([f"SURVIVED  {name}" for name in alive] + [f"KILLED, so not equivalent  {name}" for name in wrong]))
    return 1 if alive or wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
