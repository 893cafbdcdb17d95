"""bench: what the saliency pass, DP-SGD and sampling cost against plain ones, as medians of ratios within one process."""

import functools
import gc
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd
import torch

from dpsapf.bench import steps
from dpsapf.bench.steps import OpacusGradients, Step
from dpsapf.experiment.methods import Precision
from dpsapf.experiment.stages import Bench
from dpsapf.support.errors import out_of_memory
from dpsapf.support.files import atomic
from dpsapf.support.progress import track
from dpsapf.support.replay import without_replay

LOG = logging.getLogger(__name__)
RATIO = 0.3
LOGICAL = (256, 1024, 4096)
PRODUCT = 4096  # side of the matrices whose product says what a device can do


@dataclass(frozen=True)
class Comparison:
    """Two steps, each made when its turn comes.

    Attributes:
        label: what is compared.
        base: makes the step that the other is measured by.
        other: makes that other step.
        repeats: pairs of timings; None: as the options say.
    """

    label: str
    base: Callable[[], Step]
    other: Callable[[], Step]
    repeats: int | None = None


def bench(options: Bench) -> None:
    """Write one row per comparison: seconds of both sides, the median of the ratios, peak memory, operations.

    A row is written as soon as it is there. A comparison that does not fit into memory has a row without numbers.
    """
    torch.set_num_threads(options.threads)
    able, rows = device_tflops(options.device, options.precision), []
    for comparison in track(list(comparisons(options)), "bench", "comparison"):
        rows.append(_row(comparison, options, able))
        with atomic(options.out) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)
        gc.collect()
    LOG.info("\n%s", pd.DataFrame(rows).to_string(index=False))


def comparisons(options: Bench) -> Iterator[Comparison]:
    """List what the options ask for."""
    for name in options.comparisons:
        yield from COMPARISONS[name](options)


def saliency(options: Bench) -> Iterator[Comparison]:
    """Ghost norms against a plain forward and backward pass, and against the batch-of-one loop."""
    plain, loop, energy, signal = (
        functools.partial(make, options) for make in (steps.plain_pass, steps.one_by_one, steps.energy, steps.signal)
    )
    if options.device == "cuda":
        yield Comparison("plain pass as a CUDA graph against launched one by one", steps.not_recorded(plain), plain)
    yield Comparison("saliency pass against plain forward + backward", plain, energy)
    yield Comparison("saliency pass against the batch-of-one loop", loop, energy)
    yield Comparison("score signal against score energy", energy, signal)


def adapters(options: Bench) -> Iterator[Comparison]:
    """A DP-SGD step on LoRA against the same step without privacy, on 30 % of the matrices and on all."""
    for label, share in (("DP-LoRA step, 30 % of the matrices", RATIO), ("DP-LoRA step, all attention", 1.0)):
        make = functools.partial(steps.training, options, "dp-lora", share)
        yield from _private(options, label, make)


def full(options: Bench) -> Iterator[Comparison]:
    """A DP-SGD step on every parameter, by ghost clipping."""
    make = functools.partial(steps.training, options, "dp-full", 1.0)
    yield from _private(options, "dp-full step, ghost clipping", make)


def _private(options: Bench, label: str, make: Callable[..., Step]) -> Iterator[Comparison]:
    """A private step against the plain one; on a GPU also against the plain one as a loop of diffusers does it."""
    plain = functools.partial(make, None)
    yield Comparison(label, plain, make)
    if options.device == "cuda":
        yield Comparison(f"{label}, against a plain step launched one by one", steps.not_recorded(plain), make)


def opacus(options: Bench) -> Iterator[Comparison]:
    """The same step by Opacus' per-sample gradients, which are all in memory at once."""
    make = functools.partial(steps.training, options, "dp-full", 1.0)
    other = functools.partial(make, lambda unet, parameters, _: OpacusGradients(unet, parameters))
    yield Comparison("dp-full step, Opacus per-sample gradients", functools.partial(make, None), other)


def logical_batches(options: Bench) -> Iterator[Comparison]:
    """A DP-LoRA step over logical batches at one micro-batch: time grows linearly, memory does not."""
    base, *sizes = (functools.partial(steps.training, options, "dp-lora", RATIO, images=size) for size in LOGICAL)
    for make, size in zip(sizes, LOGICAL[1:], strict=True):
        yield Comparison(f"logical batch {size} against {LOGICAL[0]}", base, make, repeats=1)


def sampling(options: Bench) -> Iterator[Comparison]:
    """A sampler's step with merged adapters, in the options' precision, against fp32 with adapters beside their matrices."""
    stock = functools.partial(steps.sampling, options, "fp32", False)
    own = functools.partial(steps.sampling, options, options.precision, True)
    yield Comparison("sampling step against unmerged adapters in fp32", stock, own)


COMPARISONS = {
    "saliency": saliency,
    "adapters": adapters,
    "full": full,
    "opacus": opacus,
    "logical-batches": logical_batches,
    "sampling": sampling,
}


def device_tflops(device: str, precision: Precision) -> float:
    """Measure what a device does on a large product of matrices: the best of three [TFLOP/s]."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    factor = torch.ones(PRODUCT, PRODUCT, device=device, dtype=dtype)
    return 2 * PRODUCT**3 / min(_seconds(lambda: factor @ factor, device) for _ in range(3)) / 1e12


def _row(comparison: Comparison, options: Bench, able: float) -> dict:
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"cpu, {options.threads} threads"
    facts = {"comparison": comparison.label, "architecture": options.architecture, "batch": options.batch}
    facts |= {
        "logical_batch": options.logical_batch or options.batch,
        "precision": options.precision,
        "device": device,
        "device_tflops": able,
    }
    try:
        return facts | _compared(comparison, options, able) | {"note": ""}
    except Exception as error:
        if not out_of_memory(error):
            raise
        LOG.warning("%s: does not fit into memory, left out", comparison.label)
        return facts | {"note": "out of memory"}


def _compared(comparison: Comparison, options: Bench, able: float) -> dict:
    """Alternate two steps; the ratio is the median of the pairs' ratios, so noise of the machine cancels.

    A single pair is taken one after the other, so that only one of them has to fit into memory.
    """
    repeats, device = comparison.repeats or options.repeats, options.device
    if repeats == 1:
        times, costs = zip(*(_alone(make, device) for make in (comparison.base, comparison.other)), strict=True)
        times = [times]
    else:
        sides = comparison.base(), comparison.other()
        for side in sides:
            _warm(side, device)
        times = [[_seconds(side, device) for side in sides] for _ in range(repeats)]
        costs = [(_peak_mb(side, device), _tflop(side)) for side in sides]
    (base_peak, base_tflop), (peak, tflop) = costs
    base_seconds, seconds = (statistics.median(side) for side in zip(*times, strict=True))
    return {
        "base_seconds": base_seconds,
        "seconds": seconds,
        "ratio": statistics.median(second / first for first, second in times),
        "base_peak_mb": base_peak,
        "peak_mb": peak,
        "memory_ratio": peak / base_peak,
        "base_tflop": base_tflop,
        "tflop": tflop,
        "share_of_peak": tflop / seconds / able,
    }


def _alone(make: Callable[[], Step], device: str) -> tuple[float, tuple[float, float]]:
    step = make()
    _warm(step, device)
    taken = _seconds(step, device), (_peak_mb(step, device), _tflop(step))
    del step
    gc.collect()
    return taken


def _tflop(step: Step) -> float:
    """Count the floating-point operations of a step's products, a multiplication and an addition as two, by torch [TFLOP]."""
    from torch.utils.flop_counter import FlopCounterMode

    with without_replay(), FlopCounterMode(display=False, custom_mapping={torch.ops.aten.bmm: _bmm_flop}) as counter:
        step()
    return counter.get_total_flops() / 1e12


def _bmm_flop(left: torch.Size, right: torch.Size, *_: object, **__: object) -> int:
    """Count a batched product's operations; torch's own count of it knows no ``out_dtype``."""
    return 2 * left.numel() * right[-1]


def _seconds(step: Step, device: str) -> float:
    """Time a step that follows itself, as in use: right after a smaller one it would pay for getting its memory back."""
    step()
    _finish(device)
    start = time.perf_counter()
    step()
    _finish(device)
    return time.perf_counter() - start


def _warm(step: Step, device: str) -> None:
    """Let a GPU record what it will replay: a step's second call does."""
    if device == "cuda":
        for _ in range(2):
            step()


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_mb(step: Step, device: str) -> float:
    """Return the peak of tensor memory that a step allocates beyond what is there before it, in MB (10^6 bytes)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with without_replay():
            step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held, peak = 0, 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 1e6
