"""reference-features: what synthetic images are compared with, and how well real ones would do."""

import numpy as np
import torch

from dpsapf.datasets.prepared import read_part
from dpsapf.evaluation.real import write_reference
from dpsapf.experiment.fields import settings
from dpsapf.experiment.records import DatasetRecord, Utility
from dpsapf.experiment.registries import ProtocolEntry, digest, entry
from dpsapf.experiment.stages import ReferenceFeatures
from dpsapf.support.checked import replace
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
    write_reference(options.features, options.archive, dataset.id, options.protocol, protocol, options.device)
    write_record(options.ceiling, replace(ceiling, protocol_digest=digest(protocol)))
    checkpoint.remove()
