"""reference-features: what synthetic images are compared with, and how well real ones would do."""

import itertools

import torch

from dpsapf.datasets.prepared import Part, read_part
from dpsapf.evaluation.features import BATCH, feature_batches
from dpsapf.experiment.fields import settings
from dpsapf.experiment.records import DatasetRecord
from dpsapf.experiment.registries import ProtocolEntry, entry
from dpsapf.experiment.stages import ReferenceFeatures
from dpsapf.support.arrays import writing
from dpsapf.support.checkpoint import Checkpoint
from dpsapf.support.records import read_record, write_record


def reference_features(options: ReferenceFeatures) -> None:
    """Write features of the real training images and the accuracy of classifiers trained on them.

    Both are computed from private images outside the guarantee.
    """
    from dpsapf.evaluation.utility import judge, side, utility_record

    torch.set_num_threads(options.threads)
    protocol = entry(options.registry, options.protocol, ProtocolEntry)
    classes = len(read_record(options.dataset, DatasetRecord).classes)
    train, test = (read_part(options.archive, split) for split in ("train", "test"))
    checkpoint, parts = Checkpoint.beside(options.ceiling, settings(options)), [(part, part.labels) for part in (train, test)]
    found = judge(*parts, classes, protocol, options.seed, options.device, checkpoint)
    selection = protocol.recipe(side(parts[0])).selection
    told = {"protocol": options.protocol, "trained_on": "real", "selection": "last" if selection == "last" else "synthetic"}
    ceiling = utility_record(found, parts[0], test, classes, **told)
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
