"""A checkout whose stages are stubs, for tests of what Snakemake starts, and when."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("Snakefile", "workflow", "config", "slurm", "profiles", "envs")
STAGE = """
import json, os, pathlib, sys, time
started = time.time()
time.sleep(float(os.environ.get("STUB_SECONDS", 1)))
for word in sys.argv[2:]:
    path = pathlib.Path(word)
    if word.startswith("results/") and not path.exists():
        path.touch() if path.suffix else path.mkdir()
        if (given := pathlib.Path("given", path.name)).exists():
            path.write_bytes(given.read_bytes())
with open("jobs.jsonl", "a") as file:
    file.write(json.dumps([sys.argv[1], started, time.time()]) + chr(10))
"""


def checkout(folder):
    """Make a checkout whose stages only take their time."""
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "dpsapf").mkdir()
    for part in (ROOT / "dpsapf").iterdir():
        (folder / "dpsapf" / part.name).symlink_to(part)
    (folder / "dpsapf" / "__main__.py").unlink()
    (folder / "dpsapf" / "__main__.py").write_text(STAGE)
    (folder / "bin").mkdir()
    return folder


@pytest.fixture
def work(tmp_path):
    return checkout(tmp_path)
