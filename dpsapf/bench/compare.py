"""bench: what the saliency pass and DP-SGD cost against plain training, as medians of ratios within one process."""

import gc
import logging
import statistics
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch

from dpsapf.experiment.columns import MATRIX, SELECTED
from dpsapf.experiment.records import Release
from dpsapf.experiment.runs import RunSpec
from dpsapf.experiment.stages import Bench
from dpsapf.finetune.adapters import trainable
from dpsapf.finetune.dp_sgd import private_gradient
from dpsapf.gradients.ghost_clipping import GhostClipping
from dpsapf.gradients.ghost_norms import GhostNorms
from dpsapf.gradients.per_image import PerImageGradients, averaged, per_image_gradients
from dpsapf.privacy.clipping import Clipping, clipped_sum
from dpsapf.privacy.meter import Meter
from dpsapf.privacy.noise import SeededNoise
from dpsapf.public_models.candidates import PROJECTIONS
from dpsapf.public_models.families.stable_diffusion import NoiseObjective
from dpsapf.public_models.latents import Pairs
from dpsapf.public_models.load import packaged_unet
from dpsapf.saliency.scores import SIGNAL_BOUND
from dpsapf.support.files import atomic
from dpsapf.support.progress import track
from dpsapf.support.randomness import child_seed, torch_generator

if typing.TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

LOG = logging.getLogger(__name__)
Step = Callable[[], object]
RATIO = 0.3
LOGICAL = (256, 1024, 4096)


@dataclass(frozen=True)
class Subject:
    """What is timed: a UNet of the model's architecture and a batch for it."""

    unet: "UNet2DConditionModel"
    objective: NoiseObjective
    pairs: Pairs
    matrices: list[str]
    device: str

    def loss(self, model: torch.nn.Module) -> torch.Tensor:
        """Sum the loss of the batch."""
        return self.objective.loss(model, self.pairs.rows(0, len(self.pairs), self.device)).sum()


class OpacusGradients:
    """Per-sample gradients by Opacus' hooks (Yousefpour et al. 2021) on each layer that holds a trained parameter."""

    def __init__(self, model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter]) -> None:
        from opacus.grad_sample import GradSampleModule

        self.model = GradSampleModule(model, batch_first=True, loss_reduction="sum", strict=False)
        self._parameters = list(parameters.values())

    def clipped_sum(
        self,
        losses: torch.Tensor,
        bound: float,
        clipping: Clipping,
        multiplicity: int = 1,
        resting: frozenset[int] = frozenset(),
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """See `PerImageGradients`."""
        losses.sum().backward()
        gradients = [averaged(parameter.grad_sample, multiplicity) for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad_sample = parameter.grad = None
        for position in resting:
            gradients[position].zero_()
        return clipped_sum(gradients, bound, clipping)


def bench(options: Bench) -> None:
    """Write one row per comparison: seconds of both sides, the median of the ratios and the ratio of peak memory."""
    torch.set_num_threads(options.threads)
    rows = []
    for compare in track(COMPARISONS, "bench", "comparison"):
        rows += compare(options)
        gc.collect()
    frame = pd.DataFrame(rows)
    LOG.info("\n%s", frame.to_string(index=False))
    with atomic(options.out) as temporary:
        frame.to_csv(temporary, index=False)


def subject(options: Bench, images: int | None = None) -> Subject:
    """Build the model, packaged or at random weights, and a random batch on the device."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    if options.architecture == "public-mini":
        unet, side, tokens, width = packaged_unet(), 8, 24, 64
    else:
        with torch.random.fork_rng():
            torch.manual_seed(child_seed(0, "bench"))
            unet, side, tokens, width = UNet2DConditionModel(sample_size=32, cross_attention_dim=768), 32, 77, 768
    generator, count = torch_generator(0, "bench"), images or options.batch
    latents, noise = (torch.empty(count, 4, side, side).normal_(generator=generator) for _ in range(2))
    embeddings = torch.empty(1, tokens, width).normal_(generator=generator)
    steps = torch.randint(1000, (count,), generator=generator)
    pairs = Pairs(latents, noise, steps, torch.zeros(count, dtype=torch.int64), embeddings)
    names = [name for name, _ in unet.named_modules() if name.endswith(PROJECTIONS)]
    return Subject(
        unet.to(options.device).train(), NoiseObjective(DDIMScheduler(clip_sample=False)), pairs, names, options.device
    )


def saliency_pass(options: Bench) -> list[dict]:
    """Time ghost norms against a plain forward and backward pass, and against the batch-of-one loop."""
    built = subject(options)
    built.unet.requires_grad_(False)
    weights = [built.unet.get_submodule(name).weight for name in built.matrices]

    def loss(start: int, stop: int) -> torch.Tensor:
        return built.objective.loss(built.unet, built.pairs.rows(start, stop, built.device)).sum()

    def plain() -> None:
        for weight in weights:
            weight.requires_grad_(True)
        torch.autograd.grad(loss(0, options.batch), weights)
        built.unet.requires_grad_(False)

    def ghost() -> None:
        with GhostNorms(built.unet, built.matrices) as norms:
            loss(0, options.batch).backward()
            norms.take()

    def one_by_one() -> None:
        for weight in weights:
            weight.requires_grad_(True)
        for row in range(options.batch):
            [gradient.square().sum().item() for gradient in torch.autograd.grad(loss(row, row + 1), weights)]
        built.unet.requires_grad_(False)

    return [
        _compared("saliency pass against plain forward + backward", plain, ghost, options),
        _compared("saliency pass against the batch-of-one loop", one_by_one, ghost, options),
        _compared("score signal against score energy", ghost, _signal(options), options),
    ]


def _signal(options: Bench) -> Step:
    """Return a pass of score signal: norms, and then one more contraction per layer."""
    built = subject(options)
    gradients = GhostClipping(built.unet, {f"{name}.weight": built.unet.get_submodule(name).weight for name in built.matrices})

    def signal() -> None:
        rows = built.pairs.rows(0, options.batch, built.device)
        gradients.clipped_sum(built.objective.loss(built.unet, rows), SIGNAL_BOUND, "automatic")

    return signal


def adapter_steps(options: Bench) -> list[dict]:
    """Time a DP-SGD step on LoRA against the same step without privacy, on 30 % of the matrices and on all."""
    rows = []
    for label, share in (("DP-LoRA step, 30 % of the matrices", RATIO), ("DP-LoRA step, all attention", 1.0)):
        plain, private = _step(options, "dp-lora", share, None), _step(options, "dp-lora", share, per_image_gradients)
        rows.append(_compared(label, plain, private, options))
    return rows


def full_steps(options: Bench) -> list[dict]:
    """Time a DP-SGD step on every parameter by ghost clipping, and by Opacus' per-sample gradients."""
    plain = _step(options, "dp-full", 1.0, None)
    rows = [_compared("dp-full step, ghost clipping", plain, _step(options, "dp-full", 1.0, per_image_gradients), options)]
    opacus = _step(options, "dp-full", 1.0, lambda unet, parameters, _: OpacusGradients(unet, parameters))
    return [*rows, _compared("dp-full step, Opacus per-sample gradients", plain, opacus, options)]


def logical_batches(options: Bench) -> list[dict]:
    """Time a DP-LoRA step over logical batches at one micro-batch: time grows linearly, memory does not."""
    steps = {size: _step(options, "dp-lora", RATIO, per_image_gradients, size) for size in LOGICAL}
    return [
        _compared(f"logical batch {size} against {LOGICAL[0]}", steps[LOGICAL[0]], steps[size], options, repeats=1)
        for size in LOGICAL[1:]
    ]


COMPARISONS = (saliency_pass, adapter_steps, full_steps, logical_batches)


def _step(
    options: Bench, method: str, share: float, engine: Callable[..., PerImageGradients] | None, images: int | None = None
) -> Step:
    """Return one optimizer step: private with the given per-image gradients, plain with None."""
    built = subject(options, images)
    kept = round(share * len(built.matrices))
    table = pd.DataFrame({MATRIX: built.matrices, SELECTED: [index < kept for index in range(len(built.matrices))]})
    adapter = "lora" if method == "dp-lora" else None
    run = RunSpec(dataset="bench", public_model=options.architecture, method=method, adapter=adapter)
    parameters = trainable(built.unet, run, table, 4, 4.0)
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-6)
    if engine is None:
        return lambda: _plain_step(built, optimizer)
    gradients, values = engine(built.unet, parameters, adapter), list(parameters.values())
    release = Release(name="dp-sgd", noise_multiplier=1.0, sensitivity=1.0, sampling_rate=1.0, steps=1)
    noise = SeededNoise(torch_generator(0, "bench noise", device=options.device))
    settings = {"multiplicity": 1, "clipping": "automatic", "micro_batch": options.batch, "device": options.device}
    meter = Meter(len(built.pairs))

    def private() -> None:
        private_gradient(
            lambda rows: built.objective.loss(gradients.model, rows),
            gradients,
            values,
            built.pairs,
            release,
            expected_batch=len(built.pairs),
            noise=noise,
            meter=meter,
            **settings,
        )
        optimizer.step()

    return private


def _plain_step(built: Subject, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    built.loss(built.unet).backward()
    optimizer.step()


def _compared(label: str, base: Step, other: Step, options: Bench, repeats: int | None = None) -> dict:
    """Alternate two steps; the ratio is the median of the pairs' ratios, so noise of the machine cancels."""
    times = [(_seconds(base, options.device), _seconds(other, options.device)) for _ in range(repeats or options.repeats)]
    peaks = _peak_mb(base, options.device), _peak_mb(other, options.device)
    return {
        "comparison": label,
        "architecture": options.architecture,
        "batch": options.batch,
        "base_seconds": statistics.median(first for first, _ in times),
        "seconds": statistics.median(second for _, second in times),
        "ratio": statistics.median(second / first for first, second in times),
        "base_peak_mb": peaks[0],
        "peak_mb": peaks[1],
        "memory_ratio": peaks[1] / peaks[0],
        "device": torch.cuda.get_device_name() if options.device == "cuda" else f"cpu, {options.threads} threads",
    }


def _seconds(step: Step, device: str) -> float:
    """Time a step that follows itself, as in use: right after a smaller one it would pay for getting its memory back."""
    step()
    _finish(device)
    start = time.perf_counter()
    step()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_mb(step: Step, device: str) -> float:
    """Return the peak of tensor memory that a step allocates beyond what is there before it, in MB (10^6 bytes)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
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
