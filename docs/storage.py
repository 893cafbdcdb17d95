"""Why rows are read by positioned reads: the same random batches from four kinds of file.

``python docs/storage.py --folder /tmp/storage --out results/reference/storage.csv`` writes posterior means as large as Stable
Diffusion's (4 x 32 x 32 in fp16), reads random batches of 4,096 rows and then everything in order, each way in a process of its
own. zarr is measured if it is installed (``pip install zarr``).
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from dpsapf.support.arrays import open_arrays, writing
from dpsapf.support.measure import peak_memory_mb

ROWS, SHAPE, BATCH, BATCHES, CHUNK = 100_000, (4, 32, 32), 4_096, 20, 256


def main(arguments: list[str] | None = None) -> int:
    """Write one row per kind of file."""
    parser = argparse.ArgumentParser(prog="python docs/storage.py", description="random rows from four kinds of file")
    parser.add_argument("--folder", type=Path, required=True, help="where to write the files, 800 MB each")
    parser.add_argument("--out", type=Path, help="table to write (.csv)")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.kind:
        print(json.dumps(read(options.folder, options.kind)))
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    kinds = [kind for kind in KINDS if kind != "zarr" or importlib.util.find_spec("zarr")]
    write_files(options.folder, kinds)
    command = [sys.executable, __file__, "--folder", str(options.folder), "--kind"]
    rows = [json.loads(subprocess.run([*command, kind], check=True, capture_output=True, text=True).stdout) for kind in kinds]
    frame = pd.DataFrame(rows)
    print(frame.to_string(index=False))
    frame.to_csv(options.out, index=False)
    return 0


def write_files(folder: Path, kinds: list[str]) -> None:
    """Write the same random rows in every format."""
    generator = np.random.default_rng(0)
    plain = np.lib.format.open_memmap(folder / "rows.npy", "w+", np.float16, (ROWS, *SHAPE))
    with writing(folder / "rows.safetensors", {"rows": ("F16", (ROWS, *SHAPE))}) as writer:
        for start in range(0, ROWS, CHUNK):
            values = generator.standard_normal((min(CHUNK, ROWS - start), *SHAPE), np.float32).astype(np.float16)
            plain[start : start + CHUNK] = values
            writer.put("rows", start, values)
    if "zarr" in kinds:
        import zarr

        stored = zarr.create_array(
            str(folder / "rows.zarr"), shape=(ROWS, *SHAPE), chunks=(CHUNK, *SHAPE), dtype="float16", overwrite=True
        )
        for start in range(0, ROWS, CHUNK):
            stored[start : start + CHUNK] = plain[start : start + CHUNK]


def read(folder: Path, kind: str) -> dict:
    """Time random batches and one pass in order, and look at what the process holds."""
    before, rows = peak_memory_mb(), KINDS[kind](folder)
    generator, start = np.random.default_rng(1), time.monotonic()
    for _ in range(BATCHES):
        assert rows(generator.choice(ROWS, BATCH, replace=False)).shape == (BATCH, *SHAPE)
    middle = time.monotonic()
    for first in range(0, ROWS, CHUNK):
        rows(np.arange(first, min(ROWS, first + CHUNK)))
    end = time.monotonic()
    return {
        "kind": kind,
        "random_batch_ms": 1e3 * (middle - start) / BATCHES,
        "in_order_rows_per_second": ROWS / (end - middle),
        "memory_mb": peak_memory_mb() - before,
    }


def _positioned(folder: Path):  # noqa: ANN202
    stored = open_arrays(folder / "rows.safetensors")[0]["rows"]
    return stored.__getitem__


def _mapped(folder: Path):  # noqa: ANN202
    return np.load(folder / "rows.npy", mmap_mode="r").__getitem__


def _slices(folder: Path):  # noqa: ANN202
    from safetensors import safe_open

    stored = safe_open(folder / "rows.safetensors", "np").get_slice("rows")
    return lambda rows: np.concatenate([stored[row : row + 1] for row in rows.tolist()])


def _zarr(folder: Path):  # noqa: ANN202
    import zarr

    return zarr.open_array(str(folder / "rows.zarr"), mode="r").oindex.__getitem__


KINDS = {"positioned reads": _positioned, "numpy.memmap": _mapped, "safetensors slices": _slices, "zarr": _zarr}

if __name__ == "__main__":
    sys.exit(main())
