import functools
import types

import pandas as pd
import pytest
import torch

from dpsapf.bench import compare, steps
from dpsapf.bench.compare import COMPARISONS, Comparison
from dpsapf.experiment.stages import Bench
from dpsapf.support.checked import replace
from tests.bench.test_steps import tiny_subject

LABELS = {
    "saliency": 3,
    "adapters": 2,
    "full": 1,
    "opacus": 1,
    "logical-batches": len(compare.LOGICAL) - 1,
    "sampling": 1,
}


@pytest.fixture
def options(tmp_path):
    return Bench(batch=2, repeats=1, threads=1, out=tmp_path / "bench.csv")


@pytest.fixture
def costs(monkeypatch):
    """No profiler, no counter of operations and no large product, which take seconds."""
    monkeypatch.setattr(compare, "_peak_mb", lambda step, device: 1.0)
    monkeypatch.setattr(compare, "_tflop", lambda step: 2.0)
    monkeypatch.setattr(compare, "device_tflops", lambda device, precision: 4.0)


@pytest.mark.slow
def test_every_comparison_has_a_row(options, monkeypatch):
    monkeypatch.setattr(steps, "subject", functools.partial(tiny_subject, []))
    monkeypatch.setattr(compare, "PRODUCT", 64)
    monkeypatch.setattr(compare, "LOGICAL", (3, 7, 13))
    compare.bench(options)
    table = pd.read_csv(options.out)
    assert table["comparison"].is_unique and len(table) == 3 + 2 + 2 + 2 + 1
    assert set(table["architecture"]) == {"public-mini"} and set(table["batch"]) == {2} and set(table["precision"]) == {"fp32"}
    assert set(table["device"]) == {"cpu, 1 threads"} and table["note"].isna().all()
    assert (table.drop(columns="note").select_dtypes("number") > 0).all(axis=None)
    assert table["ratio"].tolist() == pytest.approx((table["seconds"] / table["base_seconds"]).tolist())  # of one pair each
    shares = table["tflop"] / table["seconds"] / table["device_tflops"]
    assert table["share_of_peak"].tolist() == pytest.approx(shares.tolist())
    assert [path.name for path in options.out.parent.iterdir()] == ["bench.csv"]


@pytest.mark.parametrize("name", COMPARISONS)
def test_what_is_asked_for_is_listed_and_nothing_is_built(options, name):
    listed = list(compare.comparisons(replace(options, comparisons=(name,))))
    assert len(listed) == LABELS[name] and all(isinstance(entry, Comparison) for entry in listed)


@pytest.mark.parametrize(("name", "more"), [("saliency", 1), ("adapters", 2), ("full", 1), ("sampling", 0)])
def test_on_a_gpu_plain_loops_are_listed_too(options, name, more):
    listed = [entry.label for entry in compare.comparisons(replace(options, comparisons=(name,), device="cuda"))]
    assert len(set(listed)) == len(listed) == LABELS[name] + more
    assert sum("launched one by one" in label for label in listed) == more


def test_a_batched_products_operations_are_counted_once():
    left, right = torch.zeros(2, 3, 4), torch.zeros(2, 4, 5)
    assert compare._tflop(lambda: torch.bmm(left, right)) == pytest.approx(2 * 2 * 3 * 4 * 5 / 1e12)


def test_all_comparisons_are_the_default(options):
    assert options.comparisons == tuple(COMPARISONS)
    assert len(list(compare.comparisons(options))) == sum(LABELS.values())


def idle():
    return lambda: None


def fails(error):
    def make():
        raise error

    return make


def one(*made):
    return lambda options: iter(made)


def test_what_does_not_fit_into_memory_leaves_the_other_rows(options, costs, monkeypatch):
    first, last = (Comparison(name, idle, idle) for name in ("first", "last"))
    large = Comparison("large", idle, fails(MemoryError()))
    allocator = Comparison("allocator", fails(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")), idle)
    monkeypatch.setitem(COMPARISONS, "full", one(first, large, allocator, last))
    compare.bench(replace(options, comparisons=("full",)))
    table = pd.read_csv(options.out)
    assert table["comparison"].tolist() == ["first", "large", "allocator", "last"]
    assert table["note"].tolist()[1:3] == ["out of memory"] * 2 and table["note"].isna().tolist() == [True, False, False, True]
    assert table["seconds"].isna().tolist() == [False, True, True, False]


def test_another_error_ends_it_and_keeps_the_rows_before(options, costs, monkeypatch):
    first = Comparison("first", idle, idle)
    monkeypatch.setitem(COMPARISONS, "full", one(first, Comparison("broken", idle, fails(KeyError("x")))))
    with pytest.raises(KeyError):
        compare.bench(replace(options, comparisons=("full",)))
    assert pd.read_csv(options.out)["comparison"].tolist() == ["first"]


@pytest.fixture
def clock(monkeypatch, costs):
    """Makers of steps that take given seconds, one call after the other, by a clock of their own."""
    now = [0.0]

    def maker(*durations):
        left = iter(durations)

        def take():
            now[0] += next(left, 0.0)

        return lambda: take

    monkeypatch.setattr(compare, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    return maker


def test_the_first_of_two_steps_is_not_timed(clock):
    assert compare._seconds(clock(100.0, 3.0)(), "cpu") == 3.0


def test_the_ratio_is_the_median_of_the_pairs_ratios(clock, options):
    """Three pairs, each behind a step that is not timed: (1, 2), (10, 30), (2, 2) seconds."""
    base, other = clock(9.0, 1.0, 9.0, 10.0, 9.0, 2.0), clock(9.0, 2.0, 9.0, 30.0, 9.0, 2.0)
    row = compare._compared(Comparison("x", base, other, repeats=3), options, 4.0)
    assert (row["base_seconds"], row["seconds"], row["ratio"]) == (2.0, 2.0, 2.0)
    assert row["share_of_peak"] == 2.0 / 2.0 / 4.0
    slow, steady = clock(0.0, 1.0, 0.0, 5.0), clock(0.0, 2.0, 0.0, 10.0)
    assert compare._compared(Comparison("x", slow, steady, repeats=2), options, 4.0)["ratio"] == 2.0, "a slower machine cancels"


def named(name, calls, clock):
    def make():
        calls.append(f"make {name}")
        take = clock(*[1.0] * 6)()
        return lambda: (calls.append(name), take())

    return make


def test_pairs_are_timed_in_turns_as_often_as_the_options_say(clock, options):
    calls = []
    sides = [named(name, calls, clock) for name in ("base", "other")]
    compare._compared(Comparison("x", *sides), replace(options, repeats=3), 4.0)
    assert calls == ["make base", "make other"] + ["base", "base", "other", "other"] * 3


def test_a_single_pair_is_never_in_memory_together(clock, options):
    calls = []
    sides = [named(name, calls, clock) for name in ("base", "other")]
    compare._compared(Comparison("x", *sides), options, 4.0)
    assert calls == ["make base", "base", "base", "make other", "other", "other"]


def megabytes(count):
    return torch.empty(count * 250_000)


def test_peak_memory_counts_what_is_held_at_once():
    held = megabytes(8)
    assert compare._peak_mb(lambda: [megabytes(2), megabytes(3)], "cpu") == pytest.approx(5, rel=0.01)
    assert compare._peak_mb(lambda: [megabytes(2).sum(), megabytes(3).sum()], "cpu") == pytest.approx(3, rel=0.01)
    assert held.numel() == 8 * 250_000


def test_operations_are_those_of_products():
    first, second = torch.ones(20, 30), torch.ones(30, 50)
    assert compare._tflop(lambda: first @ second) == 2 * 20 * 30 * 50 / 1e12


def test_what_a_device_does_is_the_best_of_three_products(monkeypatch):
    seconds = iter([3.0, 2.0, 4.0])
    monkeypatch.setattr(compare, "PRODUCT", 100)
    monkeypatch.setattr(compare, "_seconds", lambda step, device: next(seconds))
    assert compare.device_tflops("cpu", "bf16") == pytest.approx(2 * 100**3 / 2.0 / 1e12)
