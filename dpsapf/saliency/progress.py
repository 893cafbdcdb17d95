"""How much of a batch is scored, by all processes together, and what an interrupted score-saliency goes on from."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from dpsapf.privacy.meter import Meter, SumsOf
from dpsapf.support.checkpoint import Checkpoint, State, named
from dpsapf.support.parallel import ALONE, Processes
from dpsapf.support.progress import track


@dataclass
class Progress:
    """Sums over the rows of a batch, which processes share: each takes a micro-batch in a round.

    Who is in the batch is kept by the meter. A batch that is gone on with draws its later rows' timesteps and noise anew, in
    noise mode ``system`` others than it would have: independent of the earlier ones, and of the same law.

    Attributes:
        meter: of the release.
        checkpoint: where it is kept; None: nowhere.
        joined: the processes.
        rows: that are in the sums, of all processes.
        sums: one vector of scores [M], or clipped gradients, one tensor for each of M matrices, float64: over this process'
            rows, and in the leading one also over those before an interruption; empty before `begin`.
    """

    meter: Meter
    checkpoint: Checkpoint | None = None
    joined: Processes = ALONE
    rows: int = 0
    sums: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def resumed(cls, meter: Meter, checkpoint: Checkpoint, joined: Processes, device: str) -> "Progress":
        """Go on from a checkpoint, if there is one, with a meter that has measured nothing yet."""
        saved = checkpoint.load()
        joined.check_equal(saved[0]["rows"] if saved else 0, "rows that a process goes on after")
        if saved is None:
            return cls(meter, checkpoint, joined)
        facts, tensors = saved
        meter.restore(facts["measured"], named(tensors, "meter/"), joined.leads)
        sums = named(tensors, "sums/")
        return cls(meter, checkpoint, joined, facts["rows"], [sums[str(place)].to(device) for place in range(len(sums))])

    def begin(self, zeros: list[torch.Tensor]) -> None:
        """Start from zeros, unless it goes on from what was kept: that is the leading process'."""
        if not (self.rows and self.joined.leads):
            self.sums = zeros

    def parts(self, total: int, size: int) -> Iterator[range]:
        """Give this process' rows of each round, at most ``size`` of ``total``; what was added in between is kept at times."""
        starts = self.joined.rounds(self.rows, total, size)
        rounds = track(starts, "saliency", "batch")
        for start in rounds if self.checkpoint is None else self.checkpoint.kept(rounds, self.state, self.joined):
            yield self.joined.rows(start, total, size)
            self.rows = min(start + starts.step, total)

    def add(self, rows: torch.Tensor, sensitivity: float) -> None:
        """Add what some units contribute, see `dpsapf.privacy.meter.Meter.rows`."""
        self.sums[0] += self.meter.rows(rows, sensitivity)

    def add_clipped(self, chunks: list[torch.Tensor], sums_of: SumsOf) -> None:
        """Add clipped gradients of some units, see `dpsapf.privacy.meter.Meter.add`."""
        self.meter.add(self.sums, chunks, sums_of)

    def total(self) -> list[torch.Tensor]:
        """Return the sums over the rows of all processes. Private."""
        total = [part.clone() for part in self.sums]
        self.joined.add(total)
        self.meter.agree(self.joined)
        return total

    def state(self) -> State:
        """Give what a checkpoint keeps."""
        tensors = {f"sums/{place}": value for place, value in enumerate(self.total())}
        measured, measures = self.meter.state()
        tensors |= {f"meter/{name}": value for name, value in measures.items()}
        return {"rows": self.rows, "measured": measured}, tensors
