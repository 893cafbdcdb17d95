"""Classifiers are trained on labelled images, by a protocol's recipe, and predict."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from dpsapf.evaluation.features import Pixels
from dpsapf.experiment.registries import Recipe
from dpsapf.optimization.schedule import average_weight

SHIFT = 2  # pixels by which augmentation shift moves a batch at most; no flips, which would change a digit
CROP = 4  # and crop-flip each image (He et al. 2016, section 4.2)
TESTED = 500  # images that are classified at a time
RESIDENT = 0.5  # of the device's free memory that images may fill
Labelled = tuple[Pixels | torch.Tensor, np.ndarray]
"""Images, uint8 [N, H, W, 3], in memory, in a file or on the device, and their labels, int64 [N]."""


@dataclass(frozen=True)
class Images:
    """Some labelled images, put on a device a batch at a time.

    Attributes:
        pixels: uint8 [N, H, W, 3], in memory, in a file, or on the device.
        labels: int64 [N].
        positions: of these images among them, int64 [n].
        device: where batches go.
    """

    pixels: Pixels | torch.Tensor
    labels: np.ndarray
    positions: np.ndarray
    device: str

    @classmethod
    def all(cls, pixels: Pixels | torch.Tensor, labels: np.ndarray, device: str) -> "Images":
        """Take all of some images."""
        return cls(pixels, labels, np.arange(len(labels)), device)

    def __len__(self) -> int:
        """Return n."""
        return len(self.positions)

    def batch(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images with values in [-1, 1], fp32 [b, 3, H, W], and labels [b], at int64 ``rows`` [b] of these."""
        chosen = self.positions[rows.numpy()]
        if isinstance(self.pixels, torch.Tensor):
            pixels = self.pixels[torch.from_numpy(chosen).to(self.device)]
        else:
            pixels = torch.from_numpy(self.pixels[chosen]).to(self.device)
        labels = torch.from_numpy(self.labels[chosen]).to(self.device)
        return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, labels


def resident(images: Labelled, device: str) -> Labelled:
    """Copy images to a GPU if they fill no more than half of its free memory; else they are streamed, batch by batch."""
    pixels, labels = images
    if device != "cuda":
        return images
    size = len(labels) * pixels[:1].nbytes
    free, _ = torch.cuda.mem_get_info()
    return (copied(pixels, len(labels), device), labels) if size <= RESIDENT * free else images


def copied(pixels: Pixels, count: int, device: str) -> torch.Tensor:
    """Copy images to a device, some at a time: uint8 [N, H, W, 3]."""
    held = torch.empty((count, *pixels[:1].shape[1:]), dtype=torch.uint8, device=device)
    for start in range(0, count, TESTED):
        held[start : start + TESTED] = torch.from_numpy(pixels[start : start + TESTED]).to(device)
    return held


def train_classifier(
    model: torch.nn.Module,
    train: Images,
    recipe: Recipe,
    generator: torch.Generator,
    judged: Callable[[torch.nn.Module], float] | None,
) -> None:
    """Train a classifier by a recipe and leave the state that is judged best, of equal ones the last.

    Args:
        model: changed in place.
        train: what is trained on.
        recipe: length, batch, optimizer, schedule, averaging, augmentation.
        generator: of batches and augmentation.
        judged: gives each of the recipe's checkpoints a number, more is better; None: the last state is left.
    """
    steps = recipe.length(len(train))
    optimizer, tested = _optimizer(recipe, model), copy.deepcopy(model) if recipe.ema_decay else model
    schedule = _schedule(recipe, optimizer, steps, len(train))
    checked = checked_steps(steps, recipe.checkpoints) if judged else {steps}
    best, best_state = -float("inf"), None
    for step, rows in enumerate(_batches(recipe, len(train), generator), 1):
        _step(model, optimizer, train.batch(rows), recipe, generator)
        schedule.step()
        if tested is not model:
            follow(tested, model, average_weight(recipe.ema_decay, step))
        if step in checked:
            score = judged(tested) if judged else 0.0
            if score >= best:
                best, best_state = score, copy.deepcopy(tested.state_dict())
    model.load_state_dict(best_state)


def checked_steps(steps: int, checkpoints: int) -> set[int]:
    """Return at most so many steps at equal distances, the last one among them."""
    return {max(1, round(steps * number / checkpoints)) for number in range(1, checkpoints + 1)}


def _optimizer(recipe: Recipe, model: torch.nn.Module) -> torch.optim.Optimizer:
    common = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=recipe.momentum, **common)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer](model.parameters(), **common)


def _schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int, images: int) -> torch.optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
    falls = recipe.decay_every * -(-images // recipe.batch) if recipe.schedule == "step" else steps + 1
    return torch.optim.lr_scheduler.StepLR(optimizer, falls, recipe.decay_factor)


def _batches(recipe: Recipe, images: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Give the rows of each step's batch: drawn with replacement, or all images once an epoch, the last batch maybe smaller."""
    if recipe.steps:
        for _ in range(recipe.steps):
            yield torch.randint(images, (recipe.batch,), generator=generator)
        return
    for _ in range(recipe.epochs):
        yield from torch.randperm(images, generator=generator).split(recipe.batch)


def _step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[torch.Tensor, torch.Tensor],
    recipe: Recipe,
    generator: torch.Generator,
) -> None:
    model.train()
    images, labels = batch
    with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
        found = model(AUGMENTATIONS[recipe.augmentation](images, generator))
        loss = functional.cross_entropy(found, labels, label_smoothing=recipe.label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def follow(average: torch.nn.Module, model: torch.nn.Module, weight: float) -> None:
    """Move averaged weights towards a model's by a share in (0, 1], and copy what its batch norms have counted."""
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, weight)
    for mean, value in zip(average.buffers(), model.buffers(), strict=True):
        mean.copy_(value)


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Translate a batch by up to `SHIFT` pixels, edges repeated."""
    side = images.shape[-1]
    down, right = torch.randint(2 * SHIFT + 1, (2,), generator=generator).tolist()
    padded = functional.pad(images, (SHIFT,) * 4, mode="replicate")
    return padded[..., down : down + side, right : right + side]


def cropped_and_flipped(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Translate each image [b, 3, H, H] by up to `CROP` pixels, zeros around it, and mirror half of them."""
    count, channels, side, _ = images.shape
    down, right = torch.randint(2 * CROP + 1, (2, count, 1), generator=generator)
    flipped = torch.rand(count, 1, generator=generator) < 0.5
    places = torch.arange(side)
    rows, columns = down + places, right + torch.where(flipped, places.flip(0), places)
    padded = functional.pad(images, (CROP,) * 4)
    first, second = torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None]
    return padded[first, second, rows[:, None, :, None], columns[:, None, None, :]]


AUGMENTATIONS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "none": lambda images, generator: images,
    "shift": shifted,
    "crop-flip": cropped_and_flipped,
}


@torch.inference_mode()
def logits(model: torch.nn.Module, images: Images) -> torch.Tensor:
    """Return each image's logits, fp32 [n, classes], on the CPU."""
    model.eval()
    found = [model(images.batch(rows)[0]).float().cpu() for rows in torch.arange(len(images)).split(TESTED)]
    return torch.cat(found)


def right(model: torch.nn.Module, images: Images) -> np.ndarray:
    """Say of each image whether its class is predicted, bool [n]."""
    return logits(model, images).argmax(1).numpy() == images.labels[images.positions]


def accuracy(model: torch.nn.Module, images: Images) -> float:
    """Return the share of images whose class is predicted, in [0, 1]."""
    return float(right(model, images).mean())
