"""Time a command, and keep what it took in results/reference/measured.json.

``make clean && python docs/measure.py demo make demo`` times the demo from nothing (after ``make install``: a download is
no part of it), and ``python docs/measure.py test make test`` the tests. Run it on cores that do nothing else. The memory
is the largest ``max_rss`` among Snakemake's benchmarks that the command wrote, so that old ones do not count.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = Path("results/reference/measured.json")


def main(arguments: list[str] | None = None) -> int:
    """Run a command in the checkout, time it, update its entry; return the command's status, which is 0 if it was kept."""
    parser = argparse.ArgumentParser(prog="python docs/measure.py", description="time a command and keep what it took")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    parser.add_argument("--results", default="results/demo", help="folder whose benchmarks/ have the memory of processes")
    parser.add_argument("what", help="name of the entry: demo, test, ...")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command and its arguments")
    options = parser.parse_args(arguments)
    if not options.command:
        parser.error("name a command after the entry's name")
    started, start = time.time(), time.monotonic()
    status = subprocess.run(options.command, cwd=options.root, check=False).returncode
    seconds = time.monotonic() - start
    if status:
        print(f"not kept: {' '.join(options.command)} ended with status {status}", file=sys.stderr)
        return status
    entry = {
        "what": options.what,
        "command": " ".join(options.command),
        "seconds": round(seconds),
        "cores": len(os.sched_getaffinity(0)),
        "peak_memory_mb": peak_memory_mb(options.root / options.results / "benchmarks", started),
        "commit": commit(options.root),
    }
    keep(options.root / RECORD, entry)
    print(json.dumps(entry, indent=2))
    return 0


def peak_memory_mb(benchmarks: Path, since: float) -> float | None:
    """Return the largest ``max_rss`` [MB] in Snakemake's benchmarks written after a time; None if there are none."""
    peaks = [
        float(row["max_rss"])
        for path in benchmarks.rglob("*.tsv")
        if path.stat().st_mtime >= since
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t")
        if row["max_rss"] not in ("-", "NA", "")  # a process too short to be looked at
    ]
    return round(max(peaks), 1) if peaks else None


def commit(root: Path) -> str | None:
    """Return the short commit of a checkout; None outside git."""
    words = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def keep(path: Path, entry: dict) -> None:
    """Put an entry in the place of the one with its name, or at the end."""
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    names = [old["what"] for old in entries]
    if entry["what"] in names:
        entries[names.index(entry["what"])] = entry
    else:
        entries.append(entry)
    path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
