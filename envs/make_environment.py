"""Write environment.yaml, the conda file, from the lock: `make lock` calls it."""

import re
from pathlib import Path

HEAD = """# Made of requirements.txt by make_environment.py: the same versions, for those who want conda.
#   conda env create -f envs/environment.yaml && conda activate dpsapf && pip install --no-deps -e .
name: dpsapf
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def main() -> None:
    """Write one pip line per locked requirement, with its marker and without its hashes."""
    here = Path(__file__).parent
    lines = (here / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [line.rstrip("\\ ") for line in lines if re.match(r"[A-Za-z0-9]", line)]
    quoted = [f"      - {line!r}" if ";" in line else f"      - {line}" for line in found]
    (here / "environment.yaml").write_text(HEAD + "\n".join(quoted).replace("\\'", "'") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
