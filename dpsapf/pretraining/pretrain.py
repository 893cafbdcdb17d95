"""pretrain-public-model: train ``public-mini`` and the demo protocol's feature network on public images."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from dpsapf.evaluation.network import FeatureNetwork, standardise
from dpsapf.experiment.stages import PretrainPublicModel
from dpsapf.pretraining.architecture import Parts, build, save_pipeline
from dpsapf.pretraining.card import PartLog, write_card
from dpsapf.pretraining.public_data import CLASSES, draw_range
from dpsapf.public_models.load import tokenise
from dpsapf.support.errors import UserError
from dpsapf.support.files import atomic, sha256
from dpsapf.support.progress import track
from dpsapf.support.randomness import child_seed, torch_generator

LOG = logging.getLogger(__name__)
DROPPED_PROMPTS = 0.1  # share trained without prompt, for classifier-free guidance (Ho and Salimans 2022)
KL_WEIGHT = 1e-5
STANDARDISED = 4096  # public images over which the features get mean 0 and variance 1
AVERAGE_DECAY = 0.999


@dataclass(frozen=True)
class PublicImages:
    """The drawn images on the training device.

    Attributes:
        images: uint8 [N, 3, 32, 32].
        prompts: unique prompts, the empty one first.
        prompt_ids: index in ``prompts`` of each image, int64 [N].
        labels: class of each image, int64 [N].
    """

    images: torch.Tensor
    prompts: list[str]
    prompt_ids: torch.Tensor
    labels: torch.Tensor

    def pixels(self, rows: torch.Tensor) -> torch.Tensor:
        """Return images of some rows in [-1, 1], fp32."""
        return self.images[rows].float() / 127.5 - 1


def pretrain_public_model(options: PretrainPublicModel) -> None:
    """Train and write the model's folder (with model card, sample sheet and log) and the feature network.

    Raises:
        UserError: the folder exists already.
    """
    if options.out.exists():
        raise UserError("--out", str(options.out), "exists; remove it or name another folder")
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")
    work = options.out.with_name(f".{options.out.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    start = time.monotonic()
    data = draw_images(options)
    with torch.random.fork_rng():
        torch.manual_seed(child_seed(options.seed, "pretrain"))
        parts, network = build(work, data.prompts), FeatureNetwork(len(CLASSES))
    log = {"vae": train_autoencoder(parts, data, options), "unet": train_denoiser(parts, data, options)}
    log["features"] = train_features(network, data, options)
    save_pipeline(parts, work)
    write_card(work, options, log, data.prompts, time.monotonic() - start)
    with atomic(options.feature_network) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, temporary)
    work.replace(options.out)
    LOG.info("sha256 of %s: %s", options.out, sha256(options.out))
    LOG.info("sha256 of %s: %s", options.feature_network, sha256(options.feature_network))


def draw_images(options: PretrainPublicModel) -> PublicImages:
    """Draw the public images in parallel processes."""
    jobs = [(options.seed, start, min(start + 500, options.images)) for start in range(0, options.images, 500)]
    with get_context("spawn").Pool(options.threads) as pool:
        examples = [example for chunk in track(pool.imap(draw_range, jobs), "draw", "x500", len(jobs)) for example in chunk]
    prompts = ["", *sorted({example.prompt for example in examples})]
    position = {prompt: index for index, prompt in enumerate(prompts)}
    images = torch.from_numpy(np.stack([example.image for example in examples])).permute(0, 3, 1, 2)
    ids = torch.tensor([position[example.prompt] for example in examples])
    labels = torch.tensor([example.label for example in examples])
    return PublicImages(images.to(options.device), prompts, ids.to(options.device), labels.to(options.device))


def _batches(data: PublicImages, steps: int, batch: int, generator: torch.Generator, label: str) -> Iterator[torch.Tensor]:
    for _ in track(range(steps), label, "step"):
        yield torch.randint(len(data.labels), (batch,), generator=generator).to(data.images.device)


def _schedule(progress: float) -> float:
    """Warm up over 2 % of the training, then fall along a cosine to 0."""
    return min(progress / 0.02, 0.5 + 0.5 * float(np.cos(np.pi * min(progress, 1.0))))


def _update(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def _optimize(
    modules: list[torch.nn.Module],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    steps: int,
    options: PretrainPublicModel,
    label: str,
    data: PublicImages,
    minutes: float | None = None,
    after: Callable[[], None] | None = None,
) -> PartLog:
    """Run AdamW over random batches until the steps or the minutes are used up; the learning rate ends at 0."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=1e-4, fused=options.device == "cuda")
    generator, start, losses = torch_generator(options.seed, label, "batches"), time.monotonic(), []
    for step, rows in enumerate(_batches(data, steps, options.batch, generator, label), start=1):
        elapsed = (time.monotonic() - start) / 60
        progress = max(step / steps, elapsed / minutes if minutes else 0.0)
        loss = loss_of(rows)
        _update(optimizer, loss, options.learning_rate * _schedule(progress))
        if after is not None:
            after()
        if step % 100 == 0 or progress >= 1:
            losses.append(loss.item())
        if progress >= 1:
            break
    log = PartLog(steps=step, seconds=time.monotonic() - start, losses=losses)
    LOG.info("%s: %d steps in %.0f s, %.1f it/s, loss %.4f", label, step, log.seconds, step / log.seconds, losses[-1])
    return log


def train_autoencoder(parts: Parts, data: PublicImages, options: PretrainPublicModel) -> PartLog:
    """Train the VAE on L1 + squared error + a small KL term, and set its scaling factor to 1/std of the latents."""
    vae = parts.vae.to(options.device).train()
    noise = torch_generator(options.seed, "vae", "noise", device=options.device)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        pixels = data.pixels(rows)
        posterior = vae.encode(pixels).latent_dist
        rebuilt = vae.decode(posterior.sample(noise)).sample
        return functional.l1_loss(rebuilt, pixels) + functional.mse_loss(rebuilt, pixels) + KL_WEIGHT * posterior.kl().mean()

    log = _optimize([vae], loss_of, options.autoencoder_steps, options, "vae", data)
    vae.eval().requires_grad_(False)
    mean, _ = encode(parts, data, limit=4096)
    vae.register_to_config(scaling_factor=1 / mean.std().item())
    return log


@torch.no_grad()
def encode(parts: Parts, data: PublicImages, limit: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode all images or the first ``limit``: posterior means and standard deviations [N, 4, 8, 8], unscaled."""
    rows = torch.arange(len(data.labels), device=data.images.device)[:limit]
    posteriors = [parts.vae.encode(data.pixels(chunk)).latent_dist for chunk in rows.split(512)]
    return torch.cat([posterior.mean for posterior in posteriors]), torch.cat([posterior.std for posterior in posteriors])


def train_denoiser(parts: Parts, data: PublicImages, options: PretrainPublicModel) -> PartLog:
    """Train UNet and text encoder jointly on noise prediction; leaves their weight averages in ``parts``."""
    mean, std = (value * parts.vae.config.scaling_factor for value in encode(parts, data))
    unet, text = parts.unet.to(options.device).train(), parts.text_encoder.to(options.device).train()
    tokens = tokenise(parts.tokenizer, data.prompts).to(options.device)
    generator = torch_generator(options.seed, "unet", "draws", device=options.device)
    parameters = [*unet.parameters(), *text.parameters()]
    average = [parameter.detach().clone() for parameter in parameters]

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        noise, posterior = (torch.randn(mean[rows].shape, generator=generator, device=options.device) for _ in range(2))
        steps = torch.randint(1000, (len(rows),), generator=generator, device=options.device)
        dropped = torch.rand(len(rows), generator=generator, device=options.device) < DROPPED_PROMPTS
        prompts = data.prompt_ids[rows].masked_fill(dropped, 0)
        noisy = parts.scheduler.add_noise(mean[rows] + std[rows] * posterior, noise, steps)
        predicted = unet(noisy, steps, text(tokens[prompts]).last_hidden_state, return_dict=False)[0]
        return functional.mse_loss(predicted, noise)

    def follow() -> None:
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1 - AVERAGE_DECAY)

    log = _optimize([unet, text], loss_of, options.unet_steps, options, "unet", data, options.minutes, follow)
    with torch.no_grad():
        for parameter, value in zip(parameters, average, strict=True):
            parameter.copy_(value)
    unet.eval()
    text.eval()
    return log


def train_features(network: FeatureNetwork, data: PublicImages, options: PretrainPublicModel) -> PartLog:
    """Train the feature network to tell the public classes apart, under random shifts."""
    network.to(options.device).train()
    generator = torch_generator(options.seed, "features", "shifts")

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
        return functional.cross_entropy(network.classify(data.pixels(rows).roll((down, right), (2, 3))), data.labels[rows])

    log = _optimize([network], loss_of, options.feature_steps, options, "features", data)
    standardise(network.eval(), data.pixels(torch.arange(min(STANDARDISED, len(data.labels)), device=options.device)))
    return log
