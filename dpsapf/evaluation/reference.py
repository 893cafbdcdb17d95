"""reference-features: what synthetic images are compared with, and how well real ones would do."""

import numpy as np
import torch

from dpsapf.datasets.archive import write_archive
from dpsapf.evaluation.features import extract_features
from dpsapf.experiment.records import DatasetRecord, Utility
from dpsapf.experiment.registries import ProtocolEntry, entry
from dpsapf.experiment.stages import ReferenceFeatures
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
    with np.load(options.archive, allow_pickle=False) as archive:
        train = archive["train_images"], archive["train_labels"]
        test = archive["test_images"], archive["test_labels"]
    features = extract_features(train[0], protocol, options.device)
    scores = accuracies(train, test, len(dataset.classes), protocol, options.seed, options.device)
    ceiling = Utility(
        protocol=options.protocol,
        trained_on="real",
        accuracy=float(np.mean(list(scores.values()))),
        per_classifier=scores,
        train_images=len(train[1]),
        test_images=len(test[1]),
        outside_the_guarantee=True,
        provenance=provenance(),
    )
    write_archive(options.features, {"features": features, "protocol": np.array(options.protocol)})
    write_record(options.ceiling, ceiling)
