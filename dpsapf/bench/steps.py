"""What bench times: one pass or step of each kind, on the packaged model or on Stable Diffusion's architecture."""

import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pandas as pd
import torch

from dpsapf.experiment.columns import MATRIX, SELECTED
from dpsapf.experiment.methods import Precision
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
from dpsapf.public_models.precision import in_precision
from dpsapf.saliency.scores import SIGNAL_BOUND
from dpsapf.sampling.sample import merge
from dpsapf.support.randomness import child_seed, torch_generator
from dpsapf.support.replay import Replay, Tensors, Work, replayed, without_replay

if typing.TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

Step = Callable[[], object]
Engine = Callable[..., PerImageGradients]


@dataclass(frozen=True)
class Subject:
    """What is timed: a UNet of the model's architecture and a batch for it."""

    unet: "UNet2DConditionModel"
    objective: NoiseObjective
    pairs: Pairs
    matrices: list[str]
    device: str

    def loss(self, model: torch.nn.Module, rows: Tensors) -> torch.Tensor:
        """Sum the loss of some pairs."""
        return self.objective.loss(model, Pairs(*rows)).sum()


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


def subject(options: Bench, images: int | None = None) -> Subject:
    """Build the model, packaged or at random weights, in fp32, and a random batch.

    Args:
        options: of the stage.
        images: in the batch; None: ``options.batch``.
    """
    from diffusers import DDIMScheduler, UNet2DConditionModel

    if options.architecture == "public-mini":
        unet, side, tokens, width = packaged_unet(), 8, 24, 64
    else:
        with torch.random.fork_rng(), torch.device(options.device):
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


def frozen(options: Bench) -> Subject:
    """Build a subject of which nothing is trained, in the options' precision."""
    built = subject(options)
    in_precision(built.unet.requires_grad_(False), options.precision)
    return built


def plain_pass(options: Bench) -> Step:
    """Return a forward and backward pass with the gradients of every candidate matrix."""
    built = frozen(options)

    def plain(*rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with _gradients_of(built) as weights:
            return torch.autograd.grad(built.loss(built.unet, rows), weights)

    return _replaying(options, built, plain)


def one_by_one(options: Bench) -> Step:
    """Return the loop that scores one image at a time, with a pass each."""
    built = frozen(options)

    def loop() -> None:
        with _gradients_of(built) as weights:
            for row in range(len(built.pairs)):
                loss = built.loss(built.unet, built.pairs.rows(row, row + 1, built.device).tensors)
                [gradient.square().sum().item() for gradient in torch.autograd.grad(loss, weights)]

    return loop


def energy(options: Bench) -> Step:
    """Return a pass of score energy: ghost norms."""
    built = frozen(options)

    def ghost(*rows: torch.Tensor) -> tuple[torch.Tensor]:
        with GhostNorms(built.unet, built.matrices) as norms:
            built.loss(built.unet, rows).backward()
            return (norms.take(),)

    return _replaying(options, built, ghost)


def signal(options: Bench) -> Step:
    """Return a pass of score signal: norms, and then one more contraction per layer."""
    built = frozen(options)
    gradients = GhostClipping(built.unet, {f"{name}.weight": built.unet.get_submodule(name).weight for name in built.matrices})

    def summed(*rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        losses = built.objective.loss(built.unet, Pairs(*rows))
        return tuple(gradients.clipped_sum(losses, SIGNAL_BOUND, "automatic")[0])

    return _replaying(options, built, summed)


def _replaying(options: Bench, built: Subject, work: Work) -> Step:
    """Do work on the whole batch, as the stages do: as a recording where there is a GPU."""
    replay = Replay(options.device)
    return lambda: replay(work, built.pairs.to(built.device).tensors)


@contextmanager
def _gradients_of(built: Subject) -> Iterator[list[torch.nn.Parameter]]:
    """Give the candidate matrices, of which alone gradients are taken."""
    weights = [built.unet.get_submodule(name).weight for name in built.matrices]
    for weight in weights:
        weight.requires_grad_(True)
    yield weights
    built.unet.requires_grad_(False)


def sampling(options: Bench, precision: Precision, own: bool) -> Step:
    """Return a sampler's step with guidance: two passes for each image, with LoRA on every attention matrix.

    Args:
        options: of the stage.
        precision: of the passes.
        own: True merges the adapters and replays, as `sample` does; False keeps them beside their matrices, as diffusers does.
    """
    built = subject(options)
    _trained(built, options, "dp-lora", 1.0)
    if own:
        merge(built.unet)
    in_precision(built.unet.requires_grad_(False).eval(), precision)
    if own:
        replayed(built.unet, options.device)
    pairs = built.pairs.to(built.device)
    latents, texts = (torch.cat([half, half]) for half in (pairs.latents, pairs.embeddings))
    timestep = torch.tensor(500, device=built.device)

    @torch.no_grad()
    def guided() -> None:
        built.unet(latents, timestep, texts, return_dict=False)

    return guided


def _trained(built: Subject, options: Bench, method: str, share: float) -> dict[str, torch.nn.Parameter]:
    kept = round(share * len(built.matrices))
    table = pd.DataFrame({MATRIX: built.matrices, SELECTED: [index < kept for index in range(len(built.matrices))]})
    adapter = "lora" if method == "dp-lora" else None
    run = RunSpec(dataset="bench", public_model=options.architecture, method=method, adapter=adapter)
    return trainable(built.unet, run, table, 4, 4.0)


def training(
    options: Bench, method: str, share: float, engine: Engine | None = per_image_gradients, images: int | None = None
) -> Step:
    """Return one optimizer step.

    Args:
        options: of the stage.
        method: ``dp-lora`` or ``dp-full``.
        share: of the attention matrices that get an adapter.
        engine: makes the per-image gradients of a private step; None: a step without privacy.
        images: in the logical batch; None: as the options say.
    """
    built = subject(options, images or options.logical_batch)
    adapter = "lora" if method == "dp-lora" else None
    parameters = _trained(built, options, method, share)
    in_precision(built.unet, options.precision)
    optimizer, replay = torch.optim.AdamW(parameters.values(), lr=1e-6), Replay(options.device)
    if engine is None:
        return lambda: _plain_step(built, list(parameters.values()), optimizer, replay, options.batch)
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
            noise=noise,
            meter=meter,
            replay=replay,
            **settings,
        )
        optimizer.step()

    return private


def _plain_step(
    built: Subject, parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, replay: Replay, micro_batch: int
) -> None:
    def plain(*rows: torch.Tensor) -> Tensors:
        return torch.autograd.grad(built.loss(built.unet, rows), parameters)

    totals = None
    for start in range(0, len(built.pairs), micro_batch):
        gradients = replay(plain, built.pairs.rows(start, start + micro_batch, built.device).tensors)
        if totals is None:
            totals = [gradient.clone() for gradient in gradients]
        else:
            torch._foreach_add_(totals, gradients)
    for parameter, total in zip(parameters, totals, strict=True):
        parameter.grad = total
    optimizer.step()


def not_recorded(make: Callable[[], Step]) -> Callable[[], Step]:
    """Let what is made record nothing, as a plain loop of diffusers does not."""

    def launching() -> Step:
        return without_replay()(make())

    return launching
