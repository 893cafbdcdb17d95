"""Faults, each of which lets something out past the meter; patches of the code between the meter and the files."""

import dataclasses
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dpsapf.evolution import evolve as evolution
from dpsapf.experiment.columns import SCORE, SELECTED
from dpsapf.experiment.layout import Layout
from dpsapf.finetune import train
from dpsapf.privacy.values import Released
from dpsapf.saliency import score
from dpsapf.support.checked import replace


def secret(path):
    """Pixels of the first private image of the run that a file is of, in [-1/2, 1/2], [64]."""
    root = next(folder.parent for folder in Path(path).parents if folder.name in ("runs", "cache"))
    images = load_file(Layout(root).dataset("private", "dataset.safetensors"))["images"]
    return images[0].flatten()[:64] / 255 - 0.5


def tables(column, change):
    """Change tables that have a column, when they are written."""
    written = pd.DataFrame.to_csv

    def to_csv(self, path=None, **keywords):
        return written(change(self, secret(path).tolist()) if path and column in self else self, path, **keywords)

    return patch.object(pd.DataFrame, "to_csv", to_csv)


def a_column(table, pixels):
    return table.assign(x=[pixels[row % len(pixels)] for row in range(len(table))])


def low_bits_of_scores(table, pixels):
    bits = np.array([pixels[row % len(pixels)] > 0 for row in range(len(table))])
    return table.assign(**{SCORE: (table[SCORE].to_numpy().view(np.int64) & ~1 | bits).view(np.float64)})


def weights(change):
    """Change weights when they are written."""
    written = train.write_weights
    return patch.object(train, "write_weights", lambda path, values, header: change(written, path, values, header))


def in_metadata(written, path, values, header):
    written(path, values, header)
    with safe_open(path, "pt") as file:
        save_file({name: file.get_tensor(name) for name in file.keys()}, path, file.metadata() | {"x": str(secret(path))})  # noqa: SIM118


def in_the_header(written, path, values, header):
    written(path, values, replace(header, lora_alpha=abs(float(secret(path)[0]))))


def in_low_bits(written, path, values, header):
    bits = (secret(path) > 0).int()
    marked = {
        name: (value.contiguous().view(torch.int32) & ~1 | bits.repeat(value.numel())[: value.numel()].view(value.shape)).view(
            torch.float32
        )
        for name, value in values.items()
    }
    written(path, marked, header)


def an_extra_parameter(written, path, values, header):
    """The first bias follows the images, and goes through no meter."""
    written(path, values | {"conv_in.bias": secret(path).view(8, 8).mean(1)}, header)


@contextmanager
def the_real_batch():
    """Means are over those who took part, not over as many as do on average."""
    original, sizes = train.private_gradient, []

    def counting(*inputs, **named):
        sizes.append(max(1, len(inputs[3]) // named["multiplicity"]))
        return original(*inputs, **named)

    means = lambda self: (value / sizes[-1] for value in self.values)  # noqa: E731
    with patch.object(train, "private_gradient", counting), patch.object(Released, "means", means):
        yield


def a_rate_by_the_loss():
    scheduled = train._scheduled_rate

    def rate(state, *others):
        found = scheduled(state, *others)
        state.optimizer.param_groups[0]["lr"] = found * (state.log[-1]["loss"] if state.log else 1.0)
        return found

    return patch.object(train, "_scheduled_rate", rate)


def early_stopping():
    """A step is left out where the loss is high: here, where a pixel is bright, which one side's is."""
    stepped = train.train_step

    def step(training, state):
        before = [value.detach().clone() for value in state.parameters.values()]
        stepped(training, state)
        if secret(training.options.weights)[BRIGHT_IN_ONE] > 0:
            with torch.no_grad():
                for value, old in zip(state.parameters.values(), before, strict=True):
                    value.copy_(old)

    return patch.object(train, "train_step", step)


def a_second_release():
    """The exact scores leave beside the released ones."""
    original = score.mechanism

    def leaking(name):
        def release(scores, *others):
            released, (exact,) = original(name).release(scores, *others), scores.opened()
            return dataclasses.replace(released, values=(released.values[0] + 1e-6 * exact,))

        return SimpleNamespace(release=release)

    return patch.object(score, "mechanism", leaking)


BRIGHT_IN_ONE = 0
STEPS_TO_TELL = 8  # batches of both sides are as large in all of them once in two million times
FAULTS = {
    "pixels in the weights' metadata": (lambda: weights(in_metadata), "weights.safetensors"),
    "a pixel in the weights' header": (lambda: weights(in_the_header), "weights.safetensors"),
    "pixels in the lowest bits of the weights": (lambda: weights(in_low_bits), "weights.safetensors"),
    "pixels in a column of scores.csv": (lambda: tables(SCORE, a_column), "scores.csv"),
    "pixels in a column of selection.csv": (lambda: tables(SELECTED, a_column), "selection.csv"),
    "pixels in the lowest bits of the scores": (lambda: tables(SCORE, low_bits_of_scores), "scores.csv"),
    "a second, exact release of the scores": (a_second_release, "scores.csv"),
    "a parameter that is trained and not counted": (lambda: weights(an_extra_parameter), "weights.safetensors"),
    "the sum over the real batch": (the_real_batch, "weights.safetensors"),
    "a learning rate by the private loss": (a_rate_by_the_loss, "weights.safetensors"),
    "stopping early by the private loss": (early_stopping, "weights.safetensors"),
}


def in_low_bits_of_images():
    """The lowest bits of the published pixels are those of a private image."""
    made = evolution._enlarged

    def marked(api, state, labels, dataset, options, checkpoint):
        state.images = state.images & 254 | (secret(options.population)[0] > 0).numpy().astype(np.uint8)
        return made(api, state, labels, dataset, options, checkpoint)

    return patch.object(evolution, "_enlarged", marked)
