import pytest
import torch

from dpsapf.privacy.meter import Meter
from dpsapf.saliency.progress import Progress
from dpsapf.support.checkpoint import Checkpoint
from dpsapf.support.parallel import Processes


class Beside(Processes):
    """One of several processes, whose others have added nothing and say nothing."""

    def largest(self, number):
        return number

    total = largest

    def add(self, tensors):
        self.asked.append(len(tensors))

    def check_equal(self, number, what):
        self.asked.append((number, what))


def beside(rank, count):
    joined = Beside(rank, count)
    object.__setattr__(joined, "asked", [])
    return joined


@pytest.mark.parametrize(("total", "size", "count"), [(12, 5, 1), (12, 5, 2), (3, 5, 2), (0, 5, 3), (7, 1, 3)])
def test_rounds_give_each_row_to_one_process(total, size, count):
    parts = [list(Progress(Meter(1), None, beside(rank, count)).parts(total, size)) for rank in range(count)]
    assert sorted(row for own in parts for part in own for row in part) == list(range(total))
    assert len({len(own) for own in parts}) == 1, "all meet after every round"
    assert max((len(part) for own in parts for part in own), default=0) <= size


def test_rows_are_counted_once_they_are_added():
    progress, seen = Progress(Meter(1)), []
    for _ in progress.parts(12, 5):
        seen.append(progress.rows)
    assert seen == [0, 5, 10] and progress.rows == 12


def test_sums_begin_at_zero_and_go_on_in_the_leading_process_alone(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {}, 10)
    first = Progress(Meter(5), checkpoint)
    first.begin([torch.zeros(3, dtype=torch.float64)])
    batch = first.meter.batch(1.0, torch.Generator())
    first.add(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]), 4.0)
    first.rows = 2
    checkpoint.save(*first.state())
    for rank, expected in ((0, [1.0, 2.0, 3.0]), (1, [0.0, 0.0, 0.0])):
        joined = beside(rank, 2)
        again = Progress.resumed(Meter(5), checkpoint, joined, "cpu")
        again.begin([torch.zeros(3, dtype=torch.float64)])
        assert again.rows == 2 and again.total()[0].tolist() == expected
        assert joined.asked == [(2, "rows that a process goes on after"), 1]
        assert torch.equal(again.meter.participants(), batch)
        assert again.meter.measured(0.0).largest_contribution == 3.0


def test_totals_are_copies():
    """What is summed over processes for a checkpoint must not be added to again."""
    progress = Progress(Meter(1))
    progress.begin([torch.zeros(2, dtype=torch.float64)])
    progress.add(torch.ones(1, 2), 2.0)
    progress.total()[0].fill_(9)
    assert progress.sums[0].tolist() == [1.0, 1.0]


def test_no_rows_contribute_nothing():
    progress = Progress(Meter(1))
    progress.begin([torch.zeros(2, dtype=torch.float64)])
    progress.add(torch.zeros(0, 2), 2.0)
    assert progress.sums[0].tolist() == [0.0, 0.0]
    assert progress.meter.measured(0.0).largest_contribution == 0.0


def test_without_a_file_it_begins_at_the_first_row(tmp_path):
    checkpoint, joined, meter = Checkpoint(tmp_path / "c.safetensors", {}, 10), beside(0, 1), Meter(5)
    progress = Progress.resumed(meter, checkpoint, joined, "cpu")
    assert (progress.meter, progress.checkpoint, progress.joined) == (meter, checkpoint, joined)
    assert progress.rows == 0 and joined.asked == [(0, "rows that a process goes on after")]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_was_added_is_kept_after_each_round_that_is_due(tmp_path, rank):
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {}, minutes=1e-9)
    progress, kept = Progress(Meter(5), checkpoint, beside(rank, 2)), []
    progress.begin([torch.zeros(1, dtype=torch.float64)])
    for part in progress.parts(7, 2):
        saved = checkpoint.load()
        kept.append(saved and (saved[0]["rows"], saved[1]["sums/0"].item()))
        progress.add(torch.tensor([[float(len(part))]]), 4.0)
    assert kept == ([None, (4, 2.0)] if rank == 0 else [None, None]), "the leading process writes"
