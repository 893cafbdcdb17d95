"""A prepared dataset from images in memory."""

import numpy as np

from dpsapf.datasets.prepared import preparing
from dpsapf.experiment.columns import SPLITS


def write_dataset(path, parts, users=None, salt=bytes(range(32))):
    """Write ``{split: (images, labels)}``, as prepare-dataset does; ``users``: of the training images, numbers [N]."""
    images, labels = (np.concatenate([part[index] for part in parts.values()]) for index in (0, 1))
    counts = [len(part[1]) for part in parts.values()]
    with preparing(path, images.shape, users=users is not None) as writer:
        writer.put("images", 0, images)
        writer.put("labels", 0, labels)
        writer.put("split", 0, np.repeat([SPLITS.index(name) for name in parts], counts).astype(np.uint8))
        writer.put("salt", 0, np.frombuffer(salt, np.uint8))
        if users is not None:
            everybody = np.full(len(labels), -1)
            everybody[np.repeat([name == "train" for name in parts], counts)] = users
            writer.put("users", 0, everybody)
    return path
