"""Time a command, and keep what it took in results/reference/measured.json.

``make clean && python docs/measure.py demo make demo`` times the demo from nothing (after ``make install``: a download is
no part of it), and ``python docs/measure.py test make test`` the tests. Run it on cores that do nothing else. The memory
is the largest resident size of one process that the command started, looked at every half second. (Snakemake's own
benchmarks see the clients of the warm process only, see `dpsapf.cli.warm`.)
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
RECORD = Path("results/reference/measured.json")
INTERVAL = 0.5  # seconds between looks


def main(arguments: list[str] | None = None) -> int:
    """Run a command in the checkout, time it, update its entry; return the command's status, which is 0 if it was kept."""
    parser = argparse.ArgumentParser(prog="python docs/measure.py", description="time a command and keep what it took")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    parser.add_argument("what", help="name of the entry: demo, test, ...")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command and its arguments")
    options = parser.parse_args(arguments)
    if not options.command:
        parser.error("name a command after the entry's name")
    status, seconds, peak = watched(options.command, options.root)
    if status:
        print(f"not kept: {' '.join(options.command)} ended with status {status}", file=sys.stderr)
        return status
    entry = {
        "what": options.what,
        "command": " ".join(options.command),
        "seconds": round(seconds),
        "cores": len(os.sched_getaffinity(0)),
        "peak_memory_mb": round(peak, 1),
        "commit": commit(options.root),
    }
    keep(options.root / RECORD, entry)
    print(json.dumps(entry, indent=2))
    return 0


def watched(command: list[str], folder: Path) -> tuple[int, float, float]:
    """Run a command; return its status, its seconds, and the largest resident size of one of its processes [MB]."""
    start, peak = time.monotonic(), 0
    process = psutil.Popen(command, cwd=folder)
    while process.poll() is None:
        peak = max([peak, *map(_resident, [process, *_descendants(process)])])
        time.sleep(INTERVAL)
    return process.returncode, time.monotonic() - start, peak / 1e6


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


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
