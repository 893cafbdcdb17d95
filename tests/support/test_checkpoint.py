import signal

import pytest
import torch

from dpsapf.support import checkpoint
from dpsapf.support.checkpoint import Checkpoint
from dpsapf.support.errors import UserError
from dpsapf.support.interruption import Interrupted, listening
from dpsapf.support.parallel import Processes


@pytest.fixture
def kept(tmp_path):
    return Checkpoint.beside(tmp_path / "out" / "weights.safetensors", {"rate": 0.1, "files": ["digest ab"], "none": None}, 10)


def state(step):
    return {"step": step, "nan": [1 / 3]}, {"a": torch.full((2, 3), float(step)).T, "bytes": torch.tensor(7, dtype=torch.uint8)}


def equal(saved, other):
    (facts, tensors), (told, values) = saved, other
    return facts == told and tensors.keys() == values.keys() and all(torch.equal(tensors[name], values[name]) for name in values)


def files(kept):
    return sorted(file.name for file in kept.path.parent.iterdir())


def test_what_is_kept_comes_back(kept):
    assert kept.load() is None
    for step in (1, 2, 3):
        kept.save(*state(step))
    assert equal(kept.load(), state(3))
    assert files(kept) == ["private.checkpoint.weights.before.safetensors", "private.checkpoint.weights.safetensors"]
    assert kept.path.stat().st_mode & 0o077 == 0, "for its owner's eyes"
    kept.remove()
    assert files(kept) == []


def test_the_time_of_earlier_starts_counts(kept, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    first = Checkpoint(kept.path, kept.settings)
    clock[0] = 130.0
    first.save(*state(1))
    clock[0] = 500.0
    second = Checkpoint(kept.path, kept.settings)
    second.load()
    clock[0] = 512.0
    assert first.seconds == 412.0 and second.seconds == 42.0


def test_tensors_may_share_memory(kept):
    whole = torch.arange(6.0)
    kept.save({}, {"whole": whole, "part": whole[2:4]})
    assert kept.load()[1]["part"].tolist() == [2, 3]


@pytest.mark.parametrize(
    "settings", [{"rate": 0.2}, {"rate": 0.1}, {"rate": 0.1, "files": ["digest ab"], "none": None, "more": 1}]
)
def test_another_setting_is_refused_by_name_and_nothing_is_lost(kept, settings):
    kept.save(*state(1))
    with pytest.raises(UserError, match="--(rate|files|more) = .*was made with .*or delete the file to start anew"):
        Checkpoint(kept.path, settings, 10).load()
    assert equal(kept.load(), state(1))


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: b"",
        lambda path: path.read_bytes()[:-5],
        flipped,
        lambda path: b"x" * 1000,
        lambda path: b"\x08" + b"\0" * 7 + b"{}      ",
    ],
    ids=["empty", "truncated", "flipped", "noise", "no header"],
)
def test_a_file_that_cannot_be_read_is_set_aside_for_the_one_before(kept, damage, caplog):
    kept.save(*state(1))
    kept.save(*state(2))
    kept.path.write_bytes(damage(kept.path))
    assert equal(kept.load(), state(1))
    assert "private.checkpoint.weights.unreadable" in files(kept) and "cannot be read" in caplog.text
    kept.save(*state(3))
    assert equal(kept.load(), state(3))


def test_two_files_that_cannot_be_read_mean_a_new_start(kept):
    kept.save(*state(1))
    kept.save(*state(2))
    for path in kept.path.parent.iterdir():
        path.write_bytes(b"")
    assert kept.load() is None


def test_a_kill_while_writing_leaves_the_one_before(kept, monkeypatch):
    kept.save(*state(1))

    def killed(tensors, file, facts):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        kept.save(*state(2))
    assert equal(kept.load(), state(1)) and files(kept) == ["private.checkpoint.weights.safetensors"]


def test_a_kill_between_the_two_names_leaves_the_one_before(kept, monkeypatch):
    kept.save(*state(1))
    replace, calls = type(kept.path).replace, []

    def killed(path, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(type(kept.path), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        kept.save(*state(2))
    monkeypatch.undo()
    assert equal(kept.load(), state(1))


def done(kept, items, state=state, **options):
    seen = []
    for item in kept.kept(items, lambda: state(len(seen)), **options):
        seen.append(item)
    return seen


@pytest.mark.parametrize(("every", "saved"), [(None, []), (2, [2, 4]), (1, [1, 2, 3, 4, 5])])
def test_it_is_kept_every_so_many_items(kept, monkeypatch, every, saved):
    kept.every, steps = every, []
    monkeypatch.setattr(Checkpoint, "save", lambda self, facts, tensors: steps.append(facts["step"]))
    assert done(kept, "abcde") == list("abcde") and steps == saved


def test_it_is_kept_every_so_many_minutes(kept, monkeypatch):
    clock = iter(range(0, 10000, 61))
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: next(clock))
    kept.minutes, kept._saved, steps, right = 2, -1, [], Checkpoint.save
    monkeypatch.setattr(
        Checkpoint, "save", lambda self, facts, tensors: steps.append(facts["step"]) or right(self, facts, tensors)
    )
    done(kept, range(6))
    assert steps == [3, 5]  # each look at the clock takes 61 s, each file one, too


def test_a_signal_lets_the_item_end_and_keeps_it(kept):
    seen = []
    with listening(), pytest.raises(Interrupted, match=f"asked to end by SIGUSR1: the same command goes on from {kept.path}"):
        for item in kept.kept(range(5), lambda: state(len(seen))):
            if item == 2:
                signal.raise_signal(signal.SIGUSR1)
            seen.append(item)
    assert seen == [0, 1, 2] and equal(kept.load(), state(3))


class Follower(Processes):
    """One of two processes; the other says what is in ``others``."""

    def largest(self, number):
        return max(number, self.others.pop(0))


@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_end_after_the_same_item_and_one_writes(kept, rank):
    """Another process was asked: this one was not. Before that, another one's file was due."""
    joined, told = Follower(rank, 2), []
    object.__setattr__(joined, "others", [0, 0, 0, 1, 1])  # asked, due; asked, due; asked
    with pytest.raises(Interrupted):
        for _ in kept.kept(range(5), lambda: told.append(len(joined.others)) or state(1), joined):
            pass
    assert told == [1, 0], "all processes give their state at once: it may be summed over them"
    assert joined.others == [] and kept.path.exists() == (rank == 0)
