"""What a stage goes on from after an interruption: one private file beside its outputs, gone when they are written."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic
from dpsapf.support.interruption import Interrupted, postponed
from dpsapf.support.parallel import ALONE, Processes

LOG = logging.getLogger(__name__)
State = tuple[dict, dict[str, torch.Tensor]]
"""JSON-ready facts, and tensors by name."""


@dataclass
class Checkpoint:
    """The file of one stage, and the one before it, in case this one cannot be read.

    Attributes:
        path: safetensors; written atomically.
        settings: everything that the result depends on, as JSON; what may change it by rounding only is not among them.
        minutes: between two files of `kept` [minutes].
        every: or so many items, if fewer; None: minutes alone.
    """

    path: Path
    settings: Mapping[str, object]
    minutes: float = math.inf
    every: int | None = None
    _began: float = field(default_factory=lambda: time.monotonic())
    _saved: float = field(default_factory=lambda: time.monotonic())

    @classmethod
    def beside(
        cls, output: Path, settings: Mapping[str, object], minutes: float = math.inf, every: int | None = None
    ) -> "Checkpoint":
        """Put the file into the folder of an output, under a name of its own."""
        return cls(output.with_name(f"private.checkpoint.{output.stem}.safetensors"), settings, minutes, every)

    def load(self) -> State | None:
        """Return what was kept last, None if nothing was; a file that cannot be read is set aside.

        Raises:
            UserError: it was made with another setting, or of other inputs; names the first.
        """
        for path in (self.path, self._before):
            if not path.exists():
                continue
            try:
                return self._read(path)
            except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
                if isinstance(error, UserError):
                    raise
                aside = path.with_suffix(".unreadable")
                path.replace(aside)
                LOG.warning("%s cannot be read (%s): it is now %s", path, error, aside.name)
        return None

    def save(self, facts: dict, tensors: Mapping[str, torch.Tensor]) -> None:
        """Replace the file, and keep the one before it."""
        copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}  # they may share memory
        told = {"settings": self.settings, "digest": _digest(copies), "seconds": self.seconds, "facts": facts}
        with atomic(self.path) as temporary:
            save_file(copies, temporary, {"told": json.dumps(told)})
            if self.path.exists():
                self.path.replace(self._before)
        self._saved = time.monotonic()

    def kept(
        self,
        items: Iterable,
        state: Callable[[], State],
        joined: Processes = ALONE,
    ) -> Iterator:
        """Give items one by one; keep the state after some of them, and after the one in which the process is asked to end.

        Args:
            items: what is iterated over.
            state: gives what `load` is to return, as it is after the item that was given last; all processes call it at once.
            joined: processes that give the same number of items: all stop after the same one, and one of them writes.

        Raises:
            Interrupted: the process was asked to end; what it has is kept.
        """
        with postponed() as asked:
            for number, item in enumerate(items, 1):
                yield item
                ends = joined.any(asked())
                if ends or joined.any(joined.leads and self._due(number)):
                    facts, tensors = state()
                    if joined.leads:
                        self.save(facts, tensors)
                if ends:
                    raise Interrupted(f"the same command goes on from {self.path}")

    @property
    def seconds(self) -> float:
        """Time since this was made, and that of the earlier starts that it goes on from."""
        return time.monotonic() - self._began

    def remove(self) -> None:
        """Leave nothing: the outputs are written."""
        for path in (self.path, self._before):
            path.unlink(missing_ok=True)

    @property
    def _before(self) -> Path:
        return self.path.with_suffix(f".before{self.path.suffix}")

    def _due(self, number: int) -> bool:
        return bool(self.every and number % self.every == 0) or time.monotonic() - self._saved >= 60 * self.minutes

    def _read(self, path: Path) -> State:
        with safe_open(path, "pt") as file:
            told = json.loads(file.metadata()["told"])
            self._check(path, told["settings"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if told["digest"] != _digest(tensors):
            raise ValueError("its digest is another than its contents'")
        self._began -= told["seconds"]
        return told["facts"], tensors

    def _check(self, path: Path, made_with: dict[str, object]) -> None:
        asked = json.loads(json.dumps(self.settings))
        for name in sorted(made_with.keys() | asked.keys()):
            if made_with.get(name) != asked.get(name):
                remedy = f"{path} was made with {made_with.get(name)!r}: give that again, or delete the file to start anew"
                raise UserError("--" + name.replace("_", "-"), asked.get(name), remedy)


def named(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Take the tensors whose names begin with a prefix, and leave it off."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
