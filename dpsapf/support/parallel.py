"""Processes that torchrun started, which share a stage's work: a batch's units, rows, images; noise is drawn once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from dpsapf.support.errors import UserError


@dataclass(frozen=True)
class Processes:
    """The processes of a run; one without torchrun.

    Attributes:
        rank: this process' number, from 0.
        count: processes in all.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """True for the process that draws noise, writes files and logs."""
        return self.rank == 0

    def shard(self, units: int) -> torch.Tensor:
        """Return this process' positions in a batch of ``units``, int64; the shards partition the batch."""
        return torch.arange(units)[self.rank :: self.count]

    def rows(self, start: int, stop: int, size: int) -> range:
        """Return this process' rows of a round, in which each takes ``size`` from ``start`` on; none from ``stop`` on."""
        first = min(start + self.rank * size, stop)
        return range(first, min(first + size, stop))

    def rounds(self, start: int, stop: int, size: int) -> range:
        """Return where rounds over the rows from ``start`` to ``stop`` begin; each process takes ``size`` rows in a round."""
        return range(start, stop, size * self.count)

    def add(self, tensors: list[torch.Tensor]) -> None:
        """Sum tensors over processes, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def largest(self, number: float) -> float:
        """Return the largest of the processes' numbers."""
        return self._reduced(number, dist.ReduceOp.MAX)

    def total(self, number: float) -> float:
        """Return the sum of the processes' numbers."""
        return self._reduced(number, dist.ReduceOp.SUM)

    def agree(self, tensors: list[torch.Tensor]) -> None:
        """Replace tensors by those of the leading process, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def any(self, flag: bool) -> bool:
        """Say whether a flag is up in one of the processes; none goes on before all have come here."""
        return bool(self.largest(float(flag)))

    def check_equal(self, number: int, what: str) -> None:
        """Check that a number is the same in all processes.

        Raises:
            UserError: it is not, e.g. because one does not see the others' checkpoint.
        """
        self._check_equal(number, what, "put the outputs in a folder that all processes see")

    def check_same(self, numbers: torch.Tensor, what: str) -> None:
        """Check that numbers, int64 [n], are the same in all processes, by a hash of them.

        Raises:
            UserError: they are not.
        """
        if self.count > 1:
            self._check_equal(hash(tuple(numbers.tolist())), f"hash of {what}", "a defect of the code, report it")

    def _reduced(self, number: float, operation: dist.ReduceOp.RedOpType) -> float:
        if self.count == 1:
            return number
        value = torch.tensor(number, dtype=torch.float64, device=_talks_on())
        dist.all_reduce(value, operation)
        return value.item()

    def _check_equal(self, number: int, what: str, remedy: str) -> None:
        largest, least = torch.tensor(number), torch.tensor(number)
        if self.count > 1:
            largest, least = largest.to(_talks_on()), least.to(_talks_on())
            dist.all_reduce(largest, dist.ReduceOp.MAX)
            dist.all_reduce(least, dist.ReduceOp.MIN)
        if largest != least:
            raise UserError(what, number, f"others have {least} to {largest}: {remedy}")

    def agree_on_generator(self, generator: torch.Generator, device: str) -> torch.Generator:
        """Give a CPU generator the state of the leading process', so that all draw the same."""
        if self.count == 1:
            return generator
        state = generator.get_state().to(device)
        self.agree([state])
        return generator.set_state(state.cpu())


def _talks_on() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


ALONE = Processes()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, if it did; GPUs talk through NCCL, CPUs through gloo."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
