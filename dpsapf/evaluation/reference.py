"""reference-features: what synthetic images are compared with, and how well real ones would do."""

import itertools

import numpy as np
import torch

from dpsapf.datasets.prepared import Part, read_part
from dpsapf.evaluation.features import BATCH, feature_batches
from dpsapf.experiment.fields import settings
from dpsapf.experiment.records import DatasetRecord, Utility
from dpsapf.experiment.registries import ProtocolEntry, entry
from dpsapf.experiment.stages import ReferenceFeatures
from dpsapf.support.arrays import writing
from dpsapf.support.checkpoint import Checkpoint
from dpsapf.support.provenance import provenance
from dpsapf.support.records import read_record, write_record


def reference_features(options: ReferenceFeatures) -> None:
    """Write features of the real training images and the accuracy of classifiers trained on them.

    Both are computed from private images outside the guarantee.
    """
    from dpsapf.evaluation.utility import accuracies

    torch.set_num_threads(options.threads)
    protocol = entry(options.registry, options.protocol, ProtocolEntry)
    dataset = read_record(options.dataset, DatasetRecord)
    train, test = (read_part(options.archive, split) for split in ("train", "test"))
    checkpoint, parts = Checkpoint.beside(options.ceiling, settings(options)), [(part, part.labels) for part in (train, test)]
    scores = accuracies(*parts, len(dataset.classes), protocol, options.seed, options.device, checkpoint)
    ceiling = Utility(
        protocol=options.protocol,
        trained_on="real",
        accuracy=float(np.mean(list(scores.values()))),
        per_classifier=scores,
        train_images=len(train),
        test_images=len(test),
        outside_the_guarantee=True,
        provenance=provenance(),
    )
    _write_features(train, protocol, options)
    write_record(options.ceiling, ceiling)
    checkpoint.remove()


def _write_features(train: Part, protocol: ProtocolEntry, options: ReferenceFeatures) -> None:
    batches = feature_batches(train, protocol, options.device)
    first = next(batches)
    layout = {"features": ("F32", (len(train), first.shape[1]))}
    with writing(options.features, layout, {"protocol": options.protocol}) as writer:
        for number, batch in enumerate(itertools.chain([first], batches)):
            writer.put("features", number * BATCH, batch)
