"""reference-features: what synthetic images are compared with, and how well real ones would do."""

import torch

from dpsapf.datasets.prepared import read_held_out, read_part
from dpsapf.evaluation.real import real_images, write_reference
from dpsapf.experiment.fields import settings
from dpsapf.experiment.records import DatasetRecord
from dpsapf.experiment.registries import ProtocolEntry, digest, entry
from dpsapf.experiment.stages import ReferenceFeatures
from dpsapf.support.checked import replace
from dpsapf.support.checkpoint import Checkpoint
from dpsapf.support.records import read_record, write_record


def reference_features(options: ReferenceFeatures) -> None:
    """Write features of the real training images and the accuracy of classifiers trained on them.

    Both are computed from private images outside the guarantee.
    """
    from dpsapf.evaluation.utility import judge, side, utility_record

    torch.set_num_threads(options.threads)
    protocol = entry(options.registry, options.protocol, ProtocolEntry)
    real_images(options.archive, options.protocol, protocol)  # if they are too few, that is told before anything is trained
    dataset = read_record(options.dataset, DatasetRecord)
    classes = len(dataset.classes)
    train, test = read_part(options.archive, "train"), read_held_out(options.archive, "test", "the accuracy of classifiers")
    checkpoint, parts = Checkpoint.beside(options.ceiling, settings(options)), [(part, part.labels) for part in (train, test)]
    found = judge(*parts, classes, protocol, options.seed, options.device, checkpoint)
    selection = protocol.recipe(side(parts[0])).selection
    told = {"protocol": options.protocol, "trained_on": "real", "selection": selection}
    ceiling = utility_record(found, parts[0], test, classes, **told)
    write_reference(options.features, options.archive, dataset.id, options.protocol, protocol, options.device)
    write_record(options.ceiling, replace(ceiling, protocol_digest=digest(protocol)))
    checkpoint.remove()
