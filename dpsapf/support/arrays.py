"""Arrays in one safetensors file, written and read a few rows at a time, so that memory does not grow with the file.

Rows are read by the operating system's positioned reads: unlike mapped pages they do not stay in the process, and rows in
any order cost one read each. ``safetensors`` itself reads whole tensors or slices; it can open every file from here.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic

DTYPES = {"U8": "u1", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8"}  # safetensors' names
MAX_HEADER = 100 * 2**20  # bytes, as in safetensors
Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Arrays by name: their dtype, a key of `DTYPES`, and shape."""


@dataclass(frozen=True)
class Rows:
    """An array in a file, indexed by its first axis; what is read is a copy.

    Attributes:
        path: the file.
        offset: of the first row [bytes].
        dtype: of its entries.
        shape: [N, ...].
    """

    path: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def __len__(self) -> int:
        """Return N."""
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Read rows.

        Args:
            rows: a slice, or positions int64 [n] in [0, N), in any order.

        Raises:
            IndexError: a position is outside the array.
            UserError: the file has become shorter.
        """
        file = os.open(self.path, os.O_RDONLY)
        try:
            return self._slice(file, *rows.indices(len(self))) if isinstance(rows, slice) else self._each(file, np.asarray(rows))
        finally:
            os.close(file)

    def _slice(self, file: int, start: int, stop: int, step: int) -> np.ndarray:
        if step != 1:
            return self._each(file, np.arange(start, stop, step))
        found = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
        self._read(file, found, start)
        return found

    def _each(self, file: int, rows: np.ndarray) -> np.ndarray:
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for place, row in enumerate(rows.tolist()):
            self._read(file, found[place : place + 1], row)
        return found

    def _read(self, file: int, into: np.ndarray, row: int) -> None:
        buffer = memoryview(into.reshape(-1).view(np.uint8))
        position, done = self.offset + row * math.prod(self.shape[1:]) * self.dtype.itemsize, 0
        while done < len(buffer):
            count = os.preadv(file, [buffer[done:]], position + done)
            if not count:
                raise UserError("file", str(self.path), "is shorter than its header says: make it again")
            done += count


def open_arrays(path: Path) -> tuple[dict[str, Rows], dict[str, str]]:
    """Read a safetensors file's header.

    Returns:
        Its arrays by name, unread, and its metadata.

    Raises:
        UserError: the file is missing, truncated, or no safetensors file of the dtypes that are known here.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= MAX_HEADER else None
        facts, start = header.pop("__metadata__", {}), 8 + length
        arrays = {name: _rows(path, start, described) for name, described in header.items()}
        end = max((rows.offset + math.prod(rows.shape) * rows.dtype.itemsize for rows in arrays.values()), default=start)
        size = path.stat().st_size
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError("file", str(path), f"is no readable safetensors file ({error}): make it again") from error
    if size != end:
        raise UserError("file", str(path), f"has {size} bytes and should have {end}: it is truncated, make it again")
    return arrays, facts


def _rows(path: Path, start: int, described: dict) -> Rows:
    return Rows(path, start + described["data_offsets"][0], np.dtype(DTYPES[described["dtype"]]), tuple(described["shape"]))


class Writer:
    """A file under way; see `writing` and `Partial`."""

    def __init__(self, file: int, rows: dict[str, Rows]) -> None:
        self._file, self._rows = file, rows

    def put(self, name: str, start: int, values: np.ndarray) -> None:
        """Write rows [n, ...] of an array from position ``start`` on; values are converted to its dtype.

        Raises:
            ValueError: they are of another shape, or more than the array has.
        """
        rows = self._rows[name]
        if values.shape[1:] != rows.shape[1:] or start + len(values) > len(rows):
            raise ValueError(f"{name}: rows {start} to {start + len(values)} of shape {values.shape[1:]} into {rows.shape}")
        data = memoryview(np.ascontiguousarray(values.astype(rows.dtype, copy=False)).reshape(-1).view(np.uint8))
        position, done = rows.offset + start * math.prod(rows.shape[1:]) * rows.dtype.itemsize, 0
        while done < len(data):
            done += os.pwrite(self._file, data[done:], position + done)

    def rows(self, name: str) -> Rows:
        """Return an array of the file under way, to read what was put."""
        return self._rows[name]

    def flush(self) -> None:
        """Wait until everything that was put is on the disk."""
        os.fsync(self._file)


@contextmanager
def writing(path: Path, layout: Layout, facts: Mapping[str, str] | None = None) -> Iterator[Writer]:
    """Give a writer of a new file that takes its name only if the block succeeds; equal contents give equal bytes.

    Args:
        path: the file.
        layout: of its arrays; entries that are never put are 0.
        facts: metadata.
    """
    with atomic(path) as temporary:
        partial = Partial(temporary, layout, facts or {})
        partial.create()
        with partial.open() as writer:
            yield writer


@dataclass(frozen=True)
class Partial:
    """A file of arrays that may be written over several starts of a command, and by several processes.

    Attributes:
        path: where it stands until it is whole.
        layout: of its arrays; entries that are never put are 0.
        facts: metadata.
    """

    path: Path
    layout: Layout
    facts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def beside(cls, target: Path, layout: Layout, facts: Mapping[str, str] | None = None) -> "Partial":
        """Put it into the folder of the file that it is to become, or to be turned into."""
        return cls(target.with_name(f"private.partial.{target.stem}.safetensors"), layout, facts or {})

    @property
    def exists(self) -> bool:
        """Whether an earlier start left a file of this layout."""
        head, size = self._head()
        if not self.path.exists() or self.path.stat().st_size != size:
            return False
        with self.path.open("rb") as file:
            return file.read(len(head)) == head

    def create(self) -> None:
        """Make the file, with nothing but zeros in it."""
        head, size = self._head()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.path.open("wb") as file:
                file.write(head)
                os.posix_fallocate(file.fileno(), 0, size)  # so that a disk that is too small is told now
        except OSError:
            self.path.unlink()
            raise

    @contextmanager
    def open(self) -> Iterator[Writer]:
        """Give a writer of the file that is there; a mistake in the input leaves no file."""
        try:
            with self.path.open("r+b") as file:
                yield Writer(file.fileno(), open_arrays(self.path)[0])
        except UserError:
            self.path.unlink(missing_ok=True)
            raise

    def memory(self, name: str) -> np.ndarray:
        """Map an array, for reading."""
        rows = open_arrays(self.path)[0][name]
        return np.memmap(self.path, rows.dtype, "r", rows.offset, rows.shape)

    def finish(self, target: Path) -> None:
        """Give the whole file its name."""
        self.path.replace(target)

    def _head(self) -> tuple[bytes, int]:
        """Return the bytes before the arrays, and the size of the file."""
        header, end = {"__metadata__": dict(self.facts)} if self.facts else {}, 0
        for name, (dtype, shape) in self.layout.items():
            start, end = end, end + math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that the arrays are aligned
        return len(text).to_bytes(8, "little") + text, 8 + len(text) + end
